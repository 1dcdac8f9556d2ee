"""The eval section: evaluation during training, on held-out rows."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from posttrain.config.base import AlsoCalled, StrictConfig
from posttrain.data.config import Mixture
from posttrain.rewards.refusal import Refusal


class GateConfig(StrictConfig):
    """A metric that must not get worse during a run."""

    metric: str
    """Name of the metric in the evaluations: eval_accuracy, eval_bbq/accuracy_ambiguous."""
    max_drop: float | None = Field(None, ge=0)
    """How far it may fall, in its own unit: 0.02 allows an accuracy of 0.60 to become 0.58."""
    max_rise: float | None = Field(None, ge=0)
    """How far it may rise, if lower is better."""

    @model_validator(mode="after")
    def _one_bound(self) -> GateConfig:
        if (self.max_drop is None) == (self.max_rise is None):
            raise ValueError("eval.gate: give max_drop, or max_rise if lower is better")
        return self


class EvalConfig(StrictConfig):
    """Evaluation during training, on held-out rows."""

    data: Annotated[
        Mixture | None, AlsoCalled("eval_dataset", dataset_test_split="eval.data.split")
    ] = None
    """Rows from another source than the training data."""
    split: Annotated[float | str | None, AlsoCalled("val_set_size", "val_size")] = None
    """Instead of `data`. A name: a split of the training data's own source, `test` by default. A
    number below 1: a share of the training rows to hold out, by a hash of the question, so that
    equal questions stay on one side, whatever the order of the rows."""
    split_by: str | None = None
    """Column whose equal values also stay on one side of a share: a document, a conversation."""
    max_samples: int | None = Field(200, ge=1)
    """Maximum number of rows, a random sample that is always the same; null takes all."""
    generate: bool = False
    """Also generate greedily and score with the reward, logged as eval_accuracy."""
    max_new_tokens: int = Field(512, ge=1)
    """Maximum completion length in tokens, including the stop token."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Maximum number of concurrent completions, for a method without a rollout section."""
    tasks: Annotated[list[str], AlsoCalled("eval_tasks")] = Field(default_factory=list)
    """Tasks of `posttrain eval` to run as well, logged as eval_TASK/FIGURE. TASK, or TASK=PATH to
    read its files from PATH."""
    refusal: Refusal | None = None
    """Keys of the refusal reward for the tasks xstest and advbench, such as `rule: judge`."""
    gate: list[GateConfig] = Field(default_factory=list)
    """Fail the run at its end if a metric has got worse by more than these bounds."""

    @field_validator("split", mode="before")
    @classmethod
    def _share_or_name(cls, split: Any) -> Any:
        number = isinstance(split, int | float) and not isinstance(split, bool)
        if split is None or (isinstance(split, str) and split) or (number and 0 < split < 1):
            return split
        raise ValueError(
            f"eval.split: expected a split's name or a share above 0 and below 1, got {split!r}"
        )

    @model_validator(mode="after")
    def _one_source(self) -> EvalConfig:
        if self.split is not None and self.data is not None:
            raise ValueError("give eval.data or eval.split, not both")
        if self.split_by is not None and self.held_out is None:
            raise ValueError("eval.split_by needs a share in eval.split, such as 0.05")
        return self

    @property
    def held_out(self) -> float | None:
        """Return the share of the training rows to hold out; None if there is none."""
        return self.split if isinstance(self.split, float) else None

    @property
    def has_rows(self) -> bool:
        """Whether there are rows to evaluate on, not only tasks."""
        return self.data is not None or self.split is not None or not self.tasks
