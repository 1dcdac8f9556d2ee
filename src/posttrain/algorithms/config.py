"""The trainer section: the keys that every method shares, and what a method's choices ask for.

Keys are fields. What follows from them (does this run need a reference? what head does it train?)
is a property, so that the trainer asks the config and never the name of a method.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from posttrain.common.lazy import torch
from posttrain.config.base import AlsoCalled, Free, StrictConfig
from posttrain.model.config import HeadKind


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
    """Stop after this many evaluations without a better value."""


class TrainerConfig(StrictConfig):
    """The keys that every method shares."""

    type: str
    """The method."""
    output_dir: Annotated[str, Free(), AlsoCalled("logging_dir")] = "results"
    """The folder in which the run's own folder is made."""
    run_name: Annotated[str | None, Free()] = None
    """What the run's folder begins with; the method's name by default."""
    num_epochs: Annotated[float | None, AlsoCalled("num_train_epochs")] = Field(None, gt=0)
    """Passes over the data. Give this or max_steps."""
    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps, or batches of rollouts. Give this or num_epochs."""
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
    """Tokens in one forward pass: the only memory knob. Does not change the result. By default
    8192 with a GPU and 768 without, since a CPU is as fast with less."""
    learning_rate: Annotated[float, AlsoCalled("lr")] = Field(2e-5, ge=0)
    """The rate after warm-up, from which the schedule descends."""
    scheduler: Annotated[
        Literal["cosine", "linear", "constant"], AlsoCalled("lr_scheduler_type", "lr_scheduler")
    ] = "cosine"
    """How the learning rate goes from its peak to min_learning_rate."""
    warmup: Annotated[
        float,
        AlsoCalled(
            warmup_ratio="trainer.warmup (below 1: a share of all steps)",
            warmup_steps="trainer.warmup (1 or more: steps)",
        ),
    ] = Field(0.03, ge=0)
    """Steps of linear warm-up; below 1, a share of all steps."""
    min_learning_rate: float = Field(0.0, ge=0)
    """The rate at the last step of a cosine or linear schedule."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, of matrices only."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    adam_eps: float = Field(1e-8, gt=0)
    """Added to the root of AdamW's second moment."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients of a larger norm are scaled down to it; null never scales."""
    seed: int = 0
    """Draws the order of rows, initial weights, dropout and the noise of sampling."""
    logging_steps: Annotated[int, Free()] = Field(10, ge=1)
    """Steps between two lines on the console; metrics.jsonl holds every step."""
    eval_steps: Annotated[int | None, AlsoCalled("eval_strategy")] = Field(None, ge=1)
    """Steps between two evaluations by the eval section; the last step always evaluates."""
    save_steps: Annotated[int | None, Free()] = Field(None, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: Annotated[int, Free(), AlsoCalled("save_total_limit")] = Field(2, ge=1)
    """Number of most recent checkpoints to keep, in addition to the best one by
    `early_stopping.metric`."""
    early_stopping: Annotated[
        EarlyStopping | None,
        AlsoCalled(
            load_best_model_at_end="trainer.early_stopping; a run stands for its best checkpoint"
        ),
    ] = None
    """Stop once an evaluation metric no longer improves; null never stops early."""
    resume_from_checkpoint: Annotated[str | None, Free()] = None
    """"latest", a run directory, or a checkpoint directory."""
    logger: Annotated[list[Literal["tensorboard"]], Free(), AlsoCalled("report_to")] = Field(
        default=["tensorboard"]
    )
    """Where metrics go besides metrics.jsonl."""

    @property
    def token_budget(self) -> int:
        """Tokens in one forward pass: micro_batch_tokens, or the device's default."""
        return self.micro_batch_tokens or (8192 if torch.cuda.is_available() else 768)

    @property
    def updates(self) -> tuple[int, int]:
        """Passes over one batch, and optimiser steps in each pass."""
        return 1, 1

    @property
    def examples_per_step(self) -> int:
        """Examples that one batch of the source holds, over all ranks."""
        return self.batch_size * self.updates[1]

    @property
    def needs_reference(self) -> bool:
        """Whether a reference policy is run during training."""
        return False

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference's log-probs of all rows are made before the first step."""
        return False

    @property
    def head(self) -> HeadKind | None:
        """The head that is trained beside, or instead of, the output head."""
        return None

    @property
    def own_value_network(self) -> bool:
        """Whether the value head sits on a network of its own, not on the policy's."""
        return False

    @property
    def writes_text(self) -> bool:
        """Whether what is trained is a model that writes; one with a score or label head is not."""
        return self.head not in ("score", "labels")

    @property
    def learning_rates(self) -> dict[str, float]:
        """Parameter-name prefix -> learning rate, for parameters with a rate of their own."""
        return {}

    @property
    def compares_completions(self) -> bool:
        """Whether a completion is compared with others of the same prompt."""
        return False

    @property
    def corrects_for_sampler(self) -> bool:
        """Whether completions of older weights than the policy's are weighted accordingly."""
        return False

    @property
    def row_options(self) -> dict[str, Any]:
        """Keyword arguments for the `to_examples` of the method's kind of row."""
        return {}
