"""Learning from pairs: `dpo`, `ipo`, `kto_pair`, `simpo`, `cpo`, `orpo`.

There is one loss. A method is a set of defaults for its choices, and every choice is a key.

    L = sum_k weight_k mean over pairs of loss_k(scores) + sft_coef NLL(chosen)

The formulas are in pair_losses.py; docs/methods.md lists where frameworks differ under one name.
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
from posttrain.common import mesh
from posttrain.common.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.common.batch import Batch
    from posttrain.model.forward import Output
    from posttrain.model.models import Models


class PreferenceConfig(TrainerConfig):
    """The choices of a preference method."""

    learning_rate: float = Field(1e-6, ge=0)
    loss_type: PairLoss | list[PairLoss] = "sigmoid"
    """One loss, or several that are added up with loss_weights."""
    loss_weights: list[float] | None = None
    """The weight of each loss; by default 1."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference; for orpo the weight of the odds ratio."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability e that a label is wrong. cdpo: (1-e) L(d) + e L(-d); robust: the same with a
    minus, over 1 - 2e; exo_pair: the rejected completion's target. No other loss reads it."""
    gamma: float = Field(0.0, ge=0)
    """simpo: the margin that beta times the difference of the scores should exceed."""
    average_logprobs: bool | None = None
    """Whether scores are means over a completion's tokens instead of sums; by default as each loss
    is defined: ipo, simpo, orpo and sigmoid_norm average."""
    sft_coef: float = Field(0.0, ge=0)
    """Weight of the chosen completions' negative log-likelihood, a mean over their tokens."""
    nll_over: Literal["completion", "prompt_and_completion"] = "completion"
    """The tokens whose likelihood sft_coef weighs."""
    reference_free: bool = False
    """Whether scores are log-probs alone, as if the reference were uniform."""
    precompute_reference: bool = False
    """Compute the reference log-probs of all rows before the first step, so that no copy of the
    weights is kept and no step runs the reference."""

    @model_validator(mode="after")
    def _consistent(self) -> PreferenceConfig:
        names = self.losses
        if not names or len(set(names)) < len(names):
            raise ValueError(f"trainer.loss_type names no loss, or one twice: {names}")
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            raise ValueError(
                f"trainer.loss_weights has {len(self.loss_weights)} weights for {len(names)} "
                "losses in trainer.loss_type"
            )
        smoothed = [name for name in names if name in SMOOTHED]
        if self.label_smoothing > 0 and not smoothed:
            raise ValueError(
                f"trainer.label_smoothing: not read by {', '.join(names)}; TRL's is that of "
                "loss_type: cdpo (before TRL 0.25) or loss_type: robust (since)"
            )
        if self.label_smoothing == 0 and smoothed:
            raise ValueError(f"trainer.loss_type {smoothed[0]} needs trainer.label_smoothing > 0")
        if self.gamma > 0 and "simpo" not in names:
            raise ValueError("trainer.gamma is a key of loss_type simpo only")
        if self.nll_over != "completion" and self.sft_coef == 0:
            raise ValueError("trainer.nll_over has no effect: trainer.sft_coef is 0")
        if "orpo" in names and not self.reference_free:
            raise ValueError("trainer.loss_type orpo uses no reference: set reference_free: true")
        if self.precompute_reference and self.reference_free:
            raise ValueError("trainer.precompute_reference: reference_free uses no reference")
        return self

    @property
    def losses(self) -> list[PairLoss]:
        """loss_type as a list."""
        return self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]

    @property
    def needs_reference(self) -> bool:
        """Whether the loss has a reference that is not precomputed."""
        return not self.reference_free and not self.precompute_reference

    @property
    def precomputes_reference(self) -> bool:
        """The key precompute_reference."""
        return self.precompute_reference

    @property
    def row_options(self) -> dict[str, Any]:
        """Whether the loss mask includes the prompt."""
        return {"train_prompt": self.nll_over == "prompt_and_completion"}

    def averages(self, name: PairLoss) -> bool:
        """Return whether a loss takes means over a completion's tokens."""
        return name in AVERAGED if self.average_logprobs is None else self.average_logprobs


class DPOConfig(PreferenceConfig):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290)."""

    type: Literal["dpo"] = "dpo"


class IPOConfig(PreferenceConfig):
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036)."""

    type: Literal["ipo"] = "ipo"
    loss_type: PairLoss | list[PairLoss] = "ipo"


class KTOPairConfig(PreferenceConfig):
    """`kto`'s loss for both completions of a pair."""

    type: Literal["kto_pair"] = "kto_pair"
    loss_type: PairLoss | list[PairLoss] = "kto_pair"


class SimPOConfig(PreferenceConfig):
    """Simple preference optimisation, with its beta and gamma (Meng et al. 2024, arXiv 2405.14734).

    TRL's CPOTrainer with loss_type simpo and cpo_alpha 0."""

    type: Literal["simpo"] = "simpo"
    loss_type: PairLoss | list[PairLoss] = "simpo"
    beta: float = Field(2.0, gt=0)
    gamma: float = Field(1.0, ge=0)
    reference_free: bool = True


class CPOConfig(PreferenceConfig):
    """Contrastive preference optimisation: sigmoid without reference, and the NLL of the chosen.

    Xu et al. 2024, arXiv 2401.08417."""

    type: Literal["cpo"] = "cpo"
    sft_coef: float = Field(1.0, ge=0)
    reference_free: bool = True


class ORPOConfig(PreferenceConfig):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691).

    As in TRL, the NLL is over prompt and chosen completion; LLaMA-Factory's is over the completion
    alone (and a mean of means)."""

    type: Literal["orpo"] = "orpo"
    loss_type: PairLoss | list[PairLoss] = "orpo"
    sft_coef: float = Field(1.0, ge=0)
    nll_over: Literal["completion", "prompt_and_completion"] = "prompt_and_completion"
    reference_free: bool = True


def preference(out: Output, batch: Batch, config: PreferenceConfig) -> Loss:
    """Return the loss of a micro-batch that holds chosen, rejected, chosen, ...

    `per_token["completion"]` is 1 on the tokens of a completion; the loss mask also covers the
    prompt if the NLL does."""
    completion = batch.per_token["completion"]
    lengths = batch.sum_per_seq(completion)
    logps = batch.sum_per_seq(out.logprobs * completion)
    scores = logps
    if not config.reference_free:
        # token by token: the difference of two sums of hundreds of nats would be rounded away
        log_ratio = out.logprobs - batch.per_token["ref_logprobs"]
        scores = batch.sum_per_seq(log_ratio * completion)
    weights = config.loss_weights or [1.0] * len(config.losses)
    per_pair = torch.zeros_like(scores[0::2])
    for name, weight in zip(config.losses, weights):
        pairs = pairs_of(scores / lengths if config.averages(name) else scores, batch, config)
        per_pair = per_pair + weight * PAIR_LOSSES[name](pairs)
    terms: dict[Unit, Tensor] = {"pair": per_pair.sum()}
    chosen_tokens = batch.expand(is_chosen(batch)) & batch.loss_mask
    nll = -masked_sum(out.logprobs, chosen_tokens)
    if config.sft_coef > 0:
        terms["chosen_token"] = config.sft_coef * nll
    # as TRL logs them: sums if there is a reference, even if the loss averages
    averaged = config.reference_free and config.averages(config.losses[0])
    logged = (logps / lengths if averaged else logps).detach()
    rewards = config.beta * (scores / lengths if averaged else scores).detach()
    metrics = pair_metrics(rewards)
    count = float(len(per_pair))
    metrics["logps/chosen"] = (logged[0::2].sum(), count)
    metrics["logps/rejected"] = (logged[1::2].sum(), count)
    metrics["nll_loss"] = (nll.detach(), chosen_tokens.sum())
    if "orpo" in config.losses:
        log_odds = log_odds_ratio(pairs_of(logps.detach() / lengths, batch, config))
        ratio = F.logsigmoid(log_odds)
        metrics["log_odds_chosen"] = (log_odds.sum(), count)
        metrics["log_odds_ratio"] = (ratio.sum(), count)
    return Loss(terms, metrics)


def pairs_of(scores: Tensor, batch: Batch, config: PreferenceConfig) -> Pairs:
    """Return what a pair loss reads, from the scores of chosen, rejected, chosen, ... [2P]."""
    kl = batch.per_seq.get("kl", torch.zeros_like(scores))
    keys = config.beta, config.label_smoothing, config.gamma
    return Pairs(scores[0::2], scores[1::2], kl[0::2], kl[1::2], *keys)


def is_chosen(batch: Batch) -> Tensor:
    """Return a mask [N] of the chosen: every other sequence, beginning with the first."""
    return torch.arange(batch.num_sequences, device=batch.input_ids.device) % 2 == 0


def pair_metrics(rewards: Tensor) -> dict[str, tuple[Tensor, Tensor | float]]:
    """Return the metrics rewards/* from the rewards of chosen, rejected, chosen, ... [2P]."""
    chosen, rejected, count = rewards[0::2], rewards[1::2], len(rewards) / 2
    return {
        "rewards/chosen": (chosen.sum(), count),
        "rewards/rejected": (rejected.sum(), count),
        "rewards/accuracies": ((chosen > rejected).float().sum(), count),
        "rewards/margins": ((chosen - rejected).sum(), count),
    }


def prepare(batch: Batch, models: Models, config: PreferenceConfig) -> Batch:
    """Add the reference log-probs and, for kto_pair, the KL estimated on the step's pairs."""
    add_reference_logprobs(batch, models, config)
    if "kto_pair" in config.losses and not config.reference_free:
        completion = batch.per_token["completion"]
        logprobs = models.logprobs(batch, config.token_budget)
        log_ratio = batch.sum_per_seq((logprobs - batch.per_token["ref_logprobs"]) * completion)
        kl = torch.zeros_like(log_ratio)
        for half in (0, 1):  # chosen, rejected
            kl[half::2] = mean_over_ranks(log_ratio[half::2])
        batch.per_seq["kl"] = kl.clamp(min=0)
    return batch


def add_reference_logprobs(batch: Batch, models: Models, config: PreferenceConfig) -> None:
    """Add the reference log-probs, unless they are precomputed or there is no reference."""
    if config.reference_free or "ref_logprobs" in batch.per_token:
        return
    with models.reference():
        batch.per_token["ref_logprobs"] = models.logprobs(batch, config.token_budget)


def mean_over_ranks(x: Tensor) -> float:
    """Return the mean of all ranks' values. A collective."""
    parts = mesh.gather_shares((float(x.double().sum()), len(x)))
    total, count = (sum(column) for column in zip(*parts))
    return float(total / max(1, count))


def method(config: type[PreferenceConfig]) -> Algorithm:
    """Return the algorithm of a method with these defaults."""
    return Algorithm(config, preference, rows="pair", prepare=prepare, group_size=2)


dpo, ipo, kto_pair = method(DPOConfig), method(IPOConfig), method(KTOPairConfig)
simpo, cpo, orpo = method(SimPOConfig), method(CPOConfig), method(ORPOConfig)
