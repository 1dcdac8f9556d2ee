"""The losses of preference methods, per pair: each is a function and a line in `PAIR_LOSSES`.

d is the chosen completion's score minus the rejected one's, L(d) = -log sigmoid(beta d). A score is
the log-ratio log pi(y|x) - log pi_ref(y|x), or log pi(y|x) without a reference: a sum over the
completion's tokens, or a mean if the loss is listed in `AVERAGED`. r_c, r_r are beta times a score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from posttrain.common.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


PairLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "cdpo",
    "robust",
    "hinge",
    "ipo",
    "kto_pair",
    "simpo",
    "orpo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
]


@dataclass(frozen=True)
class Pairs:
    """What a loss reads: scores of P pairs, and keys of the config."""

    chosen: Tensor  # [P] scores
    rejected: Tensor  # [P]
    kl_chosen: Tensor  # [P] estimate of the KL to the reference, the same for a whole step
    kl_rejected: Tensor  # [P]
    beta: float
    label_smoothing: float
    gamma: float

    @property
    def logits(self) -> Tensor:
        """The argument beta d of the sigmoid, [P]."""
        return self.beta * (self.chosen - self.rejected)


def sigmoid(p: Pairs) -> Tensor:
    """Return L(d), the loss of DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7)."""
    return -F.logsigmoid(p.logits)


def cdpo(p: Pairs) -> Tensor:
    """Return (1 - e) L(d) + e L(-d): labels are flipped with probability e (Mitchell 2023).

    TRL's sigmoid before 0.25; OpenRLHF's and torchtune's label smoothing."""
    e = p.label_smoothing
    return -(1 - e) * F.logsigmoid(p.logits) - e * F.logsigmoid(-p.logits)


def robust(p: Pairs) -> Tensor:
    """Return ((1 - e) L(d) - e L(-d)) / (1 - 2e), unbiased under flips of the labels.

    Chowdhury et al. 2024, arXiv 2403.00409, eq. 11."""
    e = p.label_smoothing
    difference = -(1 - e) * F.logsigmoid(p.logits) + e * F.logsigmoid(-p.logits)
    return difference / (1 - 2 * e)


def hinge(p: Pairs) -> Tensor:
    """Return max(0, 1 - beta d): SLiC with a reference (Liu et al. 2023, arXiv 2309.06657)."""
    return torch.relu(1 - p.logits)


def ipo(p: Pairs) -> Tensor:
    """Return (d - 1 / (2 beta))^2, beta = tau of Azar et al. 2023, arXiv 2310.12036, eq. 17."""
    return (p.chosen - p.rejected - 1 / (2 * p.beta)).square()


def kto_pair(p: Pairs) -> Tensor:
    """Return the losses that `kto` gives to both completions of a pair, added up.

    z is the KL on the step's rejected completions for the chosen one, and the other way round (TRL
    until 0.8, LLaMA-Factory)."""
    if_good = 1 - torch.sigmoid(p.beta * (p.chosen - p.kl_rejected))
    if_bad = 1 - torch.sigmoid(p.beta * (p.kl_chosen - p.rejected))
    return if_good + if_bad


def simpo(p: Pairs) -> Tensor:
    """Return -log sigmoid(beta d - gamma) (Meng et al. 2024, arXiv 2405.14734, eq. 6)."""
    return -F.logsigmoid(p.logits - p.gamma)


def orpo(p: Pairs) -> Tensor:
    """Return -beta log sigmoid(log odds ratio), beta = lambda of the paper.

    Hong et al. 2024, arXiv 2403.07691, eq. 7."""
    return -p.beta * F.logsigmoid(log_odds_ratio(p))


def log_odds_ratio(p: Pairs) -> Tensor:
    """Return log(odds_chosen / odds_rejected), odds = P / (1 - P), P = exp(mean log-prob)."""
    return p.chosen - p.rejected - (log1mexp(p.chosen) - log1mexp(p.rejected))


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, without cancellation (Maechler 2012).

    x is clamped to -1e-7, since a completion of probability 1 has infinite odds."""
    x = x.clamp(max=-1e-7)
    near = x > -0.6931472
    # where() multiplies the gradient of the other branch by 0: it must be finite
    by_expm1 = torch.log(-torch.expm1(torch.where(near, x, -0.5)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, by_expm1, by_log1p)


def exo_pair(p: Pairs) -> Tensor:
    """Return KL(softmax(beta scores) || [1 - e, e]) (Ji et al. 2024, arXiv 2402.00856, eq. 16)."""
    e = torch.tensor(p.label_smoothing, dtype=p.chosen.dtype, device=p.chosen.device)
    won, lost = F.logsigmoid(p.logits), F.logsigmoid(-p.logits)
    return won.exp() * (won - torch.log1p(-e)) + lost.exp() * (lost - e.log())


def nca_pair(p: Pairs) -> Tensor:
    """Return NCA's loss for two completions (Chen et al. 2024, arXiv 2402.05369, eq. 11)."""
    chosen, rejected = p.beta * p.chosen, p.beta * p.rejected
    lowered = F.logsigmoid(-chosen) + F.logsigmoid(-rejected)
    return -F.logsigmoid(chosen) - 0.5 * lowered


def bco_pair(p: Pairs) -> Tensor:
    """Return -log sigmoid(r_c) - log sigmoid(-r_r).

    Jung et al. 2024, arXiv 2404.04656, without their shift of the rewards."""
    return -F.logsigmoid(p.beta * p.chosen) - F.logsigmoid(-p.beta * p.rejected)


def sppo_hard(p: Pairs) -> Tensor:
    """Return the scores' squared distance to +-1 / (2 beta).

    Wu et al. 2024, arXiv 2405.00675, eq. 4.7."""
    return (p.chosen - 0.5 / p.beta).square() + (p.rejected + 0.5 / p.beta).square()


def apo_zero(p: Pairs) -> Tensor:
    """Return a loss that raises chosen and lowers rejected completions.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7."""
    return 1 - torch.sigmoid(p.beta * p.chosen) + torch.sigmoid(p.beta * p.rejected)


def apo_down(p: Pairs) -> Tensor:
    """Return a loss that lowers both completions, rejected ones more (eq. 8 of the same paper)."""
    return torch.sigmoid(p.beta * p.chosen) + 1 - torch.sigmoid(p.logits)


PAIR_LOSSES: dict[PairLoss, Callable[[Pairs], Tensor]] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid,
    "cdpo": cdpo,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "kto_pair": kto_pair,
    "simpo": simpo,
    "orpo": orpo,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}

AVERAGED: tuple[PairLoss, ...] = ("sigmoid_norm", "ipo", "simpo", "orpo")
"""Losses whose scores are means over a completion's tokens."""

SMOOTHED: tuple[PairLoss, ...] = ("cdpo", "robust", "exo_pair")
"""Losses that read label_smoothing."""
