"""The data and length sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from posttrain.config.base import AlsoCalled, StrictConfig
from posttrain.data.lengths import OnOverlong


class DataConfig(StrictConfig):
    """Where rows come from, and how they become prompts."""

    name: Annotated[
        str | None,
        AlsoCalled(dataset_name="data.name or data.path", dataset="data.name or data.path"),
    ] = None
    """A data set by name (see `posttrain data list`)."""
    path: str | None = None
    """A file (.jsonl, .json, .parquet, .csv, .tsv, .txt, each also .gz), a folder, or a hub name;
    with `name`, the place of that data set's own files."""
    split: Annotated[str, AlsoCalled("dataset_train_split")] = "train"
    """Which part of the data: a file of a folder, a split of a named data set or of the hub."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a named data set."""
    columns: Annotated[
        dict[str, str], AlsoCalled(prompt="data.columns, for example {prompt: question}")
    ] = Field(default_factory=dict)
    """Our column -> the file's column, for example {prompt: question, completion: answer}."""
    prompt_template: str | None = None
    """A name (see `posttrain data templates`) or a text with {columns} that becomes the prompt."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """chat: the tokenizer's chat template; plain: the bare text; auto: chat if there is one."""
    system_prompt: str | None = None
    """A system message before every prompt that has none."""
    max_samples: int | None = Field(None, ge=1)
    """Use the first rows only."""
    weight: float = Field(1.0, gt=0)
    """In a mixture: how many times each row is seen per epoch (0.5: half of the rows)."""

    @model_validator(mode="after")
    def _some_source(self) -> DataConfig:
        if self.name is None and self.path is None:
            raise ValueError("give data.name or data.path")
        if self.options and self.name is None:
            raise ValueError("data.options belong to a named data set (data.name)")
        return self

    @property
    def label(self) -> str:
        """What messages call the section: its source and split."""
        return f"{self.name or self.path} ({self.split})"


# one section or a list of them, told apart by form so that errors speak of the one that was meant
Mixture = Annotated[
    Annotated[DataConfig, Tag("DataConfig")] | Annotated[list[DataConfig], Tag("list[DataConfig]")],
    Discriminator(lambda data: "list[DataConfig]" if isinstance(data, list) else "DataConfig"),
]


def sections(mixture: DataConfig | list[DataConfig]) -> list[DataConfig]:
    """Return the parts of a mixture, one if it is a single section."""
    return mixture if isinstance(mixture, list) else [mixture]


class LengthConfig(StrictConfig):
    """How long a sequence may be, and what becomes of a longer one."""

    max_length: Annotated[
        int | None, AlsoCalled("max_seq_length", "cutoff_len", "sequence_len")
    ] = Field(None, ge=2)
    """Longest sequence in tokens; by default what the model takes."""
    on_overlong: OnOverlong = "error"
    """truncate keeps the first max_length tokens; split cuts a text into several rows."""
