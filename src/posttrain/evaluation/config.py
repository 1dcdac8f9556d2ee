"""The eval section: evaluation during training, on rows that are not trained on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from posttrain.config.base import AlsoCalled, StrictConfig
from posttrain.data.config import Mixture


class GateConfig(StrictConfig):
    """A metric that a run must not make worse."""

    metric: str
    """As the evaluations log it: eval_accuracy, eval_bbq/accuracy_ambiguous."""
    max_drop: float | None = Field(None, ge=0)
    """How far it may fall, in its own unit: 0.02 lets an accuracy of 0.60 become 0.58."""
    max_rise: float | None = Field(None, ge=0)
    """How far it may rise, if lower is better."""

    @model_validator(mode="after")
    def _one_bound(self) -> GateConfig:
        if (self.max_drop is None) == (self.max_rise is None):
            raise ValueError("eval.gate: give max_drop, or max_rise if lower is better")
        return self


class EvalConfig(StrictConfig):
    """Evaluation during training, on rows that are not trained on."""

    data: Annotated[
        Mixture | None, AlsoCalled("eval_dataset", dataset_test_split="eval.data.split")
    ] = None
    """Rows of another source than the training data."""
    split: Annotated[float | str | None, AlsoCalled("val_set_size", "val_size")] = None
    """Instead of `data`. A name: a split of the training data's own source, `test` by default. A
    number below 1: a share of the training rows to hold out, by a hash of the question, so that
    equal questions lie on one side whatever the order of rows."""
    split_by: str | None = None
    """A column whose equal values stay on one side of a share too: a document, a conversation."""
    max_samples: int | None = Field(200, ge=1)
    """Number of rows, drawn by chance, always the same ones; null takes all."""
    generate: bool = False
    """Also generate greedily and score with the reward: eval_accuracy."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest completion in tokens, the stop token included."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Maximum number of concurrent completions, for a method without a rollout section."""
    tasks: Annotated[list[str], AlsoCalled("eval_tasks")] = Field(default_factory=list)
    """Tasks of `posttrain eval` to run as well, TASK or TASK=PATH of its files:
    eval_TASK/FIGURE."""
    gate: list[GateConfig] = Field(default_factory=list)
    """Fail the run at its end if a metric regressed by more than these bounds."""

    @field_validator("split", mode="before")
    @classmethod
    def _share_or_name(cls, split: Any) -> Any:
        number = isinstance(split, int | float) and not isinstance(split, bool)
        if split is None or (isinstance(split, str) and split) or (number and 0 < split < 1):
            return split
        raise ValueError(
            f"eval.split is the name of a split, or a share above 0 and below 1; got {split!r}"
        )

    @model_validator(mode="after")
    def _one_source(self) -> EvalConfig:
        if self.split is not None and self.data is not None:
            raise ValueError("give eval.data or eval.split, not both")
        if self.split_by is not None and self.held_out is None:
            raise ValueError("eval.split_by goes with a share in eval.split, such as 0.05")
        return self

    @property
    def held_out(self) -> float | None:
        """The share of the training rows that is held out; None if none is."""
        return self.split if isinstance(self.split, float) else None

    @property
    def has_rows(self) -> bool:
        """Whether there are rows to evaluate on, not tasks alone."""
        return self.data is not None or self.split is not None or not self.tasks
