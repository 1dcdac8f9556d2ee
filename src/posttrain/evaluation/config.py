"""The eval section: evaluation during training, on rows that are not trained on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

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
    """By default the training data's own `test` split; none if there are only tasks."""
    split: Annotated[float | None, AlsoCalled("val_set_size", "val_size")] = Field(None, gt=0, lt=1)
    """Share of the training rows to hold out for the evaluation, instead of `data`. A hash of the
    question decides a row's side, so equal questions lie on one side whatever the order of rows."""
    split_by: str | None = None
    """A column whose equal values lie on one side of `split` as well: a document, a conversation."""
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

    @model_validator(mode="after")
    def _one_source(self) -> EvalConfig:
        if self.split is not None and self.data is not None:
            raise ValueError("give eval.data or eval.split, not both")
        if self.split_by is not None and self.split is None:
            raise ValueError("eval.split_by goes with eval.split")
        return self
