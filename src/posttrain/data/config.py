"""The data and length sections."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from posttrain.config.base import AlsoCalled, StrictConfig
from posttrain.config.paths import expanded_or_error
from posttrain.config.yaml_values import as_text
from posttrain.data.lengths import OnOverlong


def _paths(value: Any) -> Any:
    """Return a path, or a list of them, expanded; raise an error of pydantic for anything else."""
    if isinstance(value, list) and value:
        return [_paths(part) for part in value]
    value = as_text(value)
    if value is None:
        return value
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("path", "expected a path or a list of paths")
    return expanded_or_error(value)


class DataConfig(StrictConfig):
    """Where rows come from, and how they become prompts."""

    name: Annotated[
        str | None,
        AlsoCalled(dataset_name="data.name or data.path", dataset="data.name or data.path"),
    ] = None
    """The name of a data set (see `posttrain data list`)."""
    path: Annotated[str | list[str] | None, BeforeValidator(_paths)] = None
    """A file (.jsonl, .json, .parquet, .csv, .tsv, .txt, .arrow, each also .gz, .bz2, .xz or .zst),
    a folder, a glob, a hub name, or a list of these; with `name`, the location of that data set's
    own files."""
    split: Annotated[str, AlsoCalled("dataset_train_split")] = "train"
    """The part to read: a file in a folder, or a split of a data set by name or on the hub."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a named data set."""
    columns: Annotated[
        dict[str, str], AlsoCalled(prompt="data.columns, for example {prompt: question}")
    ] = Field(default_factory=dict)
    """posttrain's column -> the file's, for example {prompt: question, completion: answer}."""
    prompt_template: str | None = None
    """The prompt: a template's name (see `posttrain data templates`), or a text with {columns}."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """chat: the tokenizer's chat template; plain: the bare text; auto: chat if there is one."""
    system_prompt: str | None = None
    """The system message of every prompt that has none."""
    turns: Literal["all", "last", "split"] | None = None
    """The assistant turns of a chat that are trained on in SFT. all: every turn, in one sequence;
    last: the last one; split: a row for each turn, rendered as at its time. By default all, or
    split for a chat whose earlier turns the chat template renders differently once later ones
    follow."""
    train_empty_turns: bool = False
    """Train on assistant turns without text, that is, on a bare stop token; by default they are
    context, and rows that have nothing else are dropped and counted."""
    date: datetime.date | None = None
    """The date that a chat template writes, for example 2026-11-29. By default the day on which
    the run begins, which is recorded: a run that is resumed later keeps it."""
    max_samples: int | None = Field(None, ge=1)
    """Use only that many rows, the first ones; by default all."""
    weight: float = Field(1.0, gt=0)
    """In a mixture, how often each row is seen per epoch; 0.5 takes a random half of the rows."""

    @model_validator(mode="after")
    def _some_source(self) -> DataConfig:
        if self.name is None and self.path is None:
            raise ValueError("set data.name or data.path")
        if self.name is not None and isinstance(self.path, list):
            raise ValueError("data.path: a data set by data.name takes one path, not a list")
        if self.options and self.name is None:
            raise ValueError("data.options are those of a named data set: set data.name too")
        return self

    @property
    def label(self) -> str:
        """The section's source and split, to name it in messages."""
        return f"{self.name or self.source} ({self.split})"

    @property
    def source(self) -> str | None:
        """The path, or the first one of a list and the number of others, to name it in messages."""
        if isinstance(self.path, list):
            others = len(self.path) - 1
            return self.path[0] + (f" and {others} more" if others else "")
        return self.path


# the value's type chooses between the two forms, so that an error is about the form that was meant
Mixture = Annotated[
    Annotated[DataConfig, Tag("DataConfig")] | Annotated[list[DataConfig], Tag("list[DataConfig]")],
    Discriminator(lambda data: "list[DataConfig]" if isinstance(data, list) else "DataConfig"),
]


def sections(mixture: DataConfig | list[DataConfig]) -> list[DataConfig]:
    """Return the sections of a mixture; a single section is a list of one."""
    return mixture if isinstance(mixture, list) else [mixture]


class LengthConfig(StrictConfig):
    """How long a sequence may be, and what happens to a longer one."""

    max_length: Annotated[
        int | None, AlsoCalled("max_seq_length", "cutoff_len", "sequence_len")
    ] = Field(None, ge=2)
    """Longest sequence in tokens; by default, what the model can take."""
    on_overlong: OnOverlong = "error"
    """error: stop; drop: leave the row out; truncate: keep the first max_length tokens (in
    classification, the last); split: cut a text into several sequences."""
