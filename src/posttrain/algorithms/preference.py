"""Learning from pairs: `dpo`, `ipo`, `kto_pair`, `simpo`, `cpo`, `orpo`. One loss; a method is a
set of defaults for its choices, and every choice is a key.

    L = sum_k weight_k mean over pairs of loss_k(scores) + sft_coef NLL(chosen)

The formulas are in pair_losses.py; docs/methods.md says where frameworks differ under one name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from posttrain.algorithms.base import Algorithm, Loss, Unit, masked_sum
from posttrain.algorithms.config import TrainerConfig
from posttrain.algorithms.pair_losses import (
    AVERAGED,
    PAIR_LOSSES,
    SMOOTHED,
    PairLoss,
    Pairs,
    log_odds_ratio,
)
from posttrain.common import distributed
from posttrain.common.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.common.batch import Batch
    from posttrain.model.forward import Output
    from posttrain.model.models import Models


class PreferenceConfig(TrainerConfig):
    """The keys of learning from pairs."""

    learning_rate: float = Field(1e-6, ge=0)
    loss_type: PairLoss | list[PairLoss] = "sigmoid"
    """One loss or several, added up with loss_weights."""
    loss_weights: list[float] | None = None
    """By default 1 for each."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference; for orpo the weight of the odds ratio."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability e that a label is wrong. cdpo: (1-e) L(d) + e L(-d); robust: the same with a
    minus, over 1 - 2e; exo_pair: the target of the rejected. No other loss reads it."""
    gamma: float = Field(0.0, ge=0)
    """simpo: the margin that beta times the difference is to exceed."""
    average_logprobs: bool | None = None
    """Scores are means over a completion's tokens, not sums; by default as each loss is defined:
    ipo, simpo, orpo and sigmoid_norm average."""
    sft_coef: float = Field(0.0, ge=0)
    """Weight of the chosen completions' negative log-likelihood, a mean over their tokens."""
    nll_over: Literal["completion", "prompt_and_completion"] = "completion"
    """The tokens of that likelihood."""
    reference_free: bool = False
    """Scores are log-probs alone, as if the reference were uniform."""
    precompute_reference: bool = False
    """Reference log-probs of all rows before the first step, so that no copy of the weights is
    kept and no step runs the reference."""

    @model_validator(mode="after")
    def _consistent(self) -> PreferenceConfig:
        names = self.losses
        if not names or len(set(names)) < len(names):
            raise ValueError("trainer.loss_type names no loss, or one twice")
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            raise ValueError(
                f"trainer.loss_weights has {len(self.loss_weights)} weights for {len(names)} "
                "losses in trainer.loss_type"
            )
        smoothed = [name for name in names if name in SMOOTHED]
        if self.label_smoothing > 0 and not smoothed:
            raise ValueError(
                f"trainer.label_smoothing: {', '.join(names)} does not read it; what TRL called "
                "so before 0.25 is loss_type: cdpo, what it calls so now loss_type: robust"
            )
        if self.label_smoothing == 0 and smoothed:
            raise ValueError(f"trainer.loss_type {smoothed[0]} needs trainer.label_smoothing > 0")
        if self.gamma > 0 and "simpo" not in names:
            raise ValueError("trainer.gamma is a key of loss_type simpo")
        if self.nll_over != "completion" and self.sft_coef == 0:
            raise ValueError("trainer.nll_over says what trainer.sft_coef weighs: that is 0")
        if "orpo" in names and not self.reference_free:
            raise ValueError("trainer.loss_type orpo has no reference: set reference_free: true")
        if self.precompute_reference and self.reference_free:
            raise ValueError("trainer.precompute_reference: reference_free has no reference")
        return self

    @property
    def losses(self) -> list[PairLoss]:
        return self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free and not self.precompute_reference

    @property
    def precomputes_reference(self) -> bool:
        return self.precompute_reference

    @property
    def row_options(self) -> dict[str, Any]:
        return {"train_prompt": self.nll_over == "prompt_and_completion"}

    def averages(self, name: PairLoss) -> bool:
        return name in AVERAGED if self.average_logprobs is None else self.average_logprobs


class DPOConfig(PreferenceConfig):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290)."""

    type: Literal["dpo"] = "dpo"


class IPOConfig(PreferenceConfig):
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036)."""

    type: Literal["ipo"] = "ipo"
    loss_type: PairLoss | list[PairLoss] = "ipo"


class KTOPairConfig(PreferenceConfig):
    """Both halves of a pair judged as `kto` judges single rows."""

    type: Literal["kto_pair"] = "kto_pair"
    loss_type: PairLoss | list[PairLoss] = "kto_pair"


class SimPOConfig(PreferenceConfig):
    """TRL's CPOTrainer with loss_type simpo and cpo_alpha 0; beta and gamma are the paper's."""

    type: Literal["simpo"] = "simpo"
    loss_type: PairLoss | list[PairLoss] = "simpo"
    beta: float = Field(2.0, gt=0)
    gamma: float = Field(1.0, ge=0)
    reference_free: bool = True


class CPOConfig(PreferenceConfig):
    """Xu et al. 2024, arXiv 2401.08417: the sigmoid loss without reference, and the NLL."""

    type: Literal["cpo"] = "cpo"
    sft_coef: float = Field(1.0, ge=0)
    reference_free: bool = True


class ORPOConfig(PreferenceConfig):
    """NLL over prompt and chosen completion, as TRL has it; LLaMA-Factory's is over the completion
    alone (and a mean of means)."""

    type: Literal["orpo"] = "orpo"
    loss_type: PairLoss | list[PairLoss] = "orpo"
    sft_coef: float = Field(1.0, ge=0)
    nll_over: Literal["completion", "prompt_and_completion"] = "prompt_and_completion"
    reference_free: bool = True


def preference(out: Output, batch: Batch, config: PreferenceConfig) -> Loss:
    """`batch` holds chosen, rejected, chosen, ...; `per_token["completion"]` is 1 on the tokens of
    a completion, which the loss mask may exceed where the NLL runs over the prompt too."""
    completion = batch.per_token["completion"]
    lengths = batch.sum_per_seq(completion)
    logps = batch.sum_per_seq(out.logprobs * completion)
    scores = logps
    if not config.reference_free:
        # term by term: of two sums of hundreds of nats the difference would be rounded away
        moved = out.logprobs - batch.per_token["ref_logprobs"]
        scores = batch.sum_per_seq(moved * completion)
    weights = config.loss_weights or [1.0] * len(config.losses)
    per_pair = torch.zeros_like(scores[0::2])
    for name, weight in zip(config.losses, weights):
        pairs = pairs_of(scores / lengths if config.averages(name) else scores, batch, config)
        per_pair = per_pair + weight * PAIR_LOSSES[name](pairs)
    terms: dict[Unit, Tensor] = {"pair": per_pair.sum()}
    of_chosen = batch.expand(is_chosen(batch)) & batch.loss_mask
    nll = -masked_sum(out.logprobs, of_chosen)
    if config.sft_coef > 0:
        terms["chosen_token"] = config.sft_coef * nll
    # as TRL logs them: sums where there is a reference, whatever the loss averages
    averaged = config.reference_free and config.averages(config.losses[0])
    logged = (logps / lengths if averaged else logps).detach()
    rewards = config.beta * (scores / lengths if averaged else scores).detach()
    metrics = pair_metrics(rewards)
    count = float(len(per_pair))
    metrics["logps/chosen"] = (logged[0::2].sum(), count)
    metrics["logps/rejected"] = (logged[1::2].sum(), count)
    metrics["nll_loss"] = (nll.detach(), of_chosen.sum())
    if "orpo" in config.losses:
        log_odds = log_odds_ratio(pairs_of(logps.detach() / lengths, batch, config))
        ratio = F.logsigmoid(log_odds)
        metrics["log_odds_chosen"] = (log_odds.sum(), count)
        metrics["log_odds_ratio"] = (ratio.sum(), count)
    return Loss(terms, metrics)


def pairs_of(scores: Tensor, batch: Batch, config: PreferenceConfig) -> Pairs:
    kl = batch.per_seq.get("kl", torch.zeros_like(scores))
    return Pairs(
        scores[0::2], scores[1::2], kl[0::2], kl[1::2], config.beta, config.label_smoothing,
        config.gamma,
    )  # fmt: skip


def is_chosen(batch: Batch) -> Tensor:
    """[N] bool: every other sequence, beginning with the first."""
    return torch.arange(batch.num_sequences, device=batch.input_ids.device) % 2 == 0


def pair_metrics(rewards: Tensor) -> dict[str, tuple[Tensor, Tensor | float]]:
    """rewards/* of chosen and rejected in turn, [2P]."""
    chosen, rejected, count = rewards[0::2], rewards[1::2], len(rewards) / 2
    return {
        "rewards/chosen": (chosen.sum(), count),
        "rewards/rejected": (rejected.sum(), count),
        "rewards/accuracies": ((chosen > rejected).float().sum(), count),
        "rewards/margins": ((chosen - rejected).sum(), count),
    }


def prepare(batch: Batch, models: Models, config: PreferenceConfig) -> Batch:
    """Reference log-probs, and the KL that kto_pair measures on the step's pairs."""
    add_reference_logprobs(batch, models, config)
    if "kto_pair" in config.losses and not config.reference_free:
        completion = batch.per_token["completion"]
        now = models.logprobs(batch, config.token_budget)
        moved = batch.sum_per_seq((now - batch.per_token["ref_logprobs"]) * completion)
        kl = torch.zeros_like(moved)
        for half in (0, 1):
            kl[half::2] = mean_over_ranks(moved[half::2])
        batch.per_seq["kl"] = kl.clamp(min=0)
    return batch


def add_reference_logprobs(batch: Batch, models: Models, config: PreferenceConfig) -> None:
    if config.reference_free or "ref_logprobs" in batch.per_token:
        return
    with models.reference():
        batch.per_token["ref_logprobs"] = models.logprobs(batch, config.token_budget)


def mean_over_ranks(x: Tensor) -> float:
    """The mean of all ranks' values. A collective."""
    parts = distributed.all_gather((float(x.double().sum()), len(x)))
    total, count = (sum(column) for column in zip(*parts))
    return float(total / max(1, count))


def method(config: type[PreferenceConfig]) -> Algorithm:
    return Algorithm(
        config,
        preference,
        rows="pair",
        prepare=prepare,
        group_size=2,
    )


dpo, ipo, kto_pair = method(DPOConfig), method(IPOConfig), method(KTOPairConfig)
simpo, cpo, orpo = method(SimPOConfig), method(CPOConfig), method(ORPOConfig)
