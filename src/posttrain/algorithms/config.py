"""The trainer section: the keys that every method shares, and what a method requires.

Keys are fields. What follows from them (is a reference needed? which head is trained?) is a
property, so that the trainer asks the config and never the name of a method.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from posttrain.config.base import AlsoCalled, Free, StrictConfig
from posttrain.config.paths import LocalPath, RunName
from posttrain.model.config import HeadKind
from posttrain.tracking.config import Logger

DEFAULT_MICRO_BATCH_TOKENS = {"cuda": 8192, "cpu": 768}
"""trainer.micro_batch_tokens by type of device, if it is not set."""


class EarlyStopping(StrictConfig):
    """When to stop before the last step, and which checkpoint is the best."""

    metric: Annotated[str, AlsoCalled("metric_for_best_model")] = "eval_loss"
    """A metric of the evaluation during training; the best checkpoint is chosen by it too."""
    mode: Annotated[
        Literal["min", "max"],
        AlsoCalled(greater_is_better="trainer.early_stopping.mode: max or min"),
    ] = "min"
    """Whether a lower or a higher value is better."""
    patience: Annotated[int, AlsoCalled("early_stopping_patience")] = Field(3, ge=1)
    """Stop after this many evaluations in a row without a better value."""


class TrainerConfig(StrictConfig):
    """The keys that every method shares."""

    type: str
    """The method."""
    output_dir: Annotated[LocalPath, Free(), AlsoCalled("logging_dir")] = "results"
    """The folder in which the run directory is created."""
    run_name: Annotated[RunName | None, Free()] = None
    """What the name of the run directory begins with; by default the method's name."""
    num_epochs: Annotated[float | None, AlsoCalled("num_train_epochs")] = Field(None, gt=0)
    """Passes over the data. Give this or max_steps."""
    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps or, for online methods, batches of rollouts. Give this or num_epochs."""
    batch_size: Annotated[
        int,
        AlsoCalled(
            "train_batch_size",
            per_device_train_batch_size="trainer.batch_size (over all devices) and "
            "trainer.micro_batch_tokens",
            gradient_accumulation_steps="trainer.batch_size; accumulation follows from it and "
            "trainer.micro_batch_tokens",
        ),
    ] = Field(16, ge=1)
    """Examples (rows, pairs, prompts) in one optimiser step, over all ranks."""
    micro_batch_tokens: Annotated[
        int | None,
        AlsoCalled(
            "per_device_eval_batch_size",
            "micro_batch_size",
            packing="nothing: rows are always packed",
        ),
    ] = Field(None, ge=1)
    """Maximum number of tokens in one forward pass: the only memory knob, without effect on the
    result. By default 8192 on a GPU and 768 on a CPU, where more is no faster."""
    learning_rate: Annotated[float, AlsoCalled("lr")] = Field(2e-5, ge=0)
    """Peak learning rate: reached after warm-up, then reduced by the scheduler."""
    scheduler: Annotated[
        Literal["cosine", "linear", "constant"], AlsoCalled("lr_scheduler_type", "lr_scheduler")
    ] = "cosine"
    """Shape of the decay from learning_rate to min_learning_rate; constant does not decay."""
    warmup: Annotated[
        float,
        AlsoCalled(
            warmup_ratio="trainer.warmup (below 1: a share of all steps)",
            warmup_steps="trainer.warmup (1 or more: steps)",
        ),
    ] = Field(0.03, ge=0)
    """Steps of linear warm-up; below 1, a share of all steps."""
    min_learning_rate: float = Field(0.0, ge=0)
    """The rate at the end of a cosine or linear schedule."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, for matrices only."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    adam_eps: float = Field(1e-8, gt=0)
    """Added to the square root of AdamW's second moment."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Maximum norm of the gradient: a larger one is scaled down to it; null never scales."""
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    """Seeds the order of rows, the initial weights, dropout and the noise of sampling."""
    logging_steps: Annotated[int, Free()] = Field(10, ge=1)
    """Steps between two lines on the console; metrics.jsonl has every step."""
    eval_steps: Annotated[int | None, AlsoCalled("eval_strategy")] = Field(None, ge=1)
    """Steps between two evaluations (eval section); the last step always evaluates."""
    save_steps: Annotated[int | None, Free()] = Field(500, ge=1)
    """Steps between two checkpoints; null saves only the last step, which is always saved."""
    keep_checkpoints: Annotated[int, Free(), AlsoCalled("save_total_limit")] = Field(2, ge=1)
    """Number of most recent checkpoints to keep, in addition to the best one by
    `early_stopping.metric`."""
    early_stopping: Annotated[
        EarlyStopping | None,
        AlsoCalled(
            load_best_model_at_end="trainer.early_stopping: a run directory given as a model is "
            "its best checkpoint"
        ),
    ] = None
    """Stop once an evaluation metric no longer improves; null never stops early."""
    resume_from_checkpoint: Annotated[LocalPath | None, Free()] = None
    """A run or checkpoint directory to resume from, or latest: the newest run of this run_name.
    true is latest."""
    logger: Annotated[list[Logger], Free(), AlsoCalled("report_to")] = Field(
        default=["tensorboard"]
    )
    """Where metrics go in addition to metrics.jsonl: views of it, with the keys of `tracking`."""

    @field_validator("resume_from_checkpoint", mode="before")
    @classmethod
    def _true_is_latest(cls, value: Any) -> Any:
        return {True: "latest", False: None}[value] if isinstance(value, bool) else value

    @property
    def token_budget(self) -> int:
        """Maximum tokens in one forward pass; a plan has set the default of the run's device."""
        return self.micro_batch_tokens or DEFAULT_MICRO_BATCH_TOKENS["cpu"]

    @property
    def updates(self) -> tuple[int, int]:
        """Passes over one batch, and optimiser steps in each pass."""
        return 1, 1

    @property
    def examples_per_step(self) -> int:
        """Examples in one batch from the source, over all ranks."""
        return self.batch_size * self.updates[1]

    @property
    def needs_reference(self) -> bool:
        """Whether a reference policy runs during training."""
        return False

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference's log-probs of all rows are computed before the first step."""
        return False

    @property
    def head(self) -> HeadKind | None:
        """The head that is trained in addition to, or instead of, the output head."""
        return None

    @property
    def own_value_network(self) -> bool:
        """Whether the value head has a network of its own instead of the policy's."""
        return False

    @property
    def writes_text(self) -> bool:
        """Whether the trained model writes text; one with a score or label head does not."""
        return self.head not in ("score", "labels")

    @property
    def learning_rates(self) -> dict[str, float]:
        """Parameter-name prefix -> learning rate, for parameters with a rate of their own."""
        return {}

    @property
    def compares_completions(self) -> bool:
        """Whether a completion's advantage depends on other completions of its prompt."""
        return False

    @property
    def corrects_for_sampler(self) -> bool:
        """Whether the loss corrects for a sampler that differs from the policy."""
        return False

    @property
    def row_options(self) -> dict[str, Any]:
        """Keyword arguments for `to_examples` of the method's kind of row."""
        return {}
