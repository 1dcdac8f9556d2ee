"""What a preference method minimises, pair by pair: a name is a function below and a line in
`PAIR_LOSSES`.

With d the chosen completion's score less the rejected one's, a score being the log-ratio
log pi(y|x) - log pi_ref(y|x), or log pi(y|x) without a reference: a sum over the completion's
tokens, or a mean where the loss is listed in `AVERAGED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from posttrain.common.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


PairLoss = Literal[
    "sigmoid", "sigmoid_norm", "cdpo", "robust", "hinge", "ipo", "kto_pair", "simpo", "orpo",
    "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
]  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    chosen: Tensor  # [P] scores
    rejected: Tensor  # [P]
    kl_chosen: Tensor  # [P] estimate of the KL to the reference, the same for all of a step
    kl_rejected: Tensor  # [P]
    beta: float
    label_smoothing: float
    gamma: float

    @property
    def logits(self) -> Tensor:
        return self.beta * (self.chosen - self.rejected)


def sigmoid(p: Pairs) -> Tensor:
    """-log sigmoid(beta d) (Rafailov et al. 2023, arXiv 2305.18290, eq. 7)."""
    return -F.logsigmoid(p.logits)


def cdpo(p: Pairs) -> Tensor:
    """(1 - e) L(d) + e L(-d): labels are flipped with probability e (Mitchell 2023). TRL's sigmoid
    before 0.25; OpenRLHF's and torchtune's label smoothing."""
    e = p.label_smoothing
    return -(1 - e) * F.logsigmoid(p.logits) - e * F.logsigmoid(-p.logits)


def robust(p: Pairs) -> Tensor:
    """((1 - e) L(d) - e L(-d)) / (1 - 2e), unbiased under flips (Chowdhury et al. 2024, arXiv
    2403.00409, eq. 11)."""
    e = p.label_smoothing
    difference = -(1 - e) * F.logsigmoid(p.logits) + e * F.logsigmoid(-p.logits)
    return difference / (1 - 2 * e)


def hinge(p: Pairs) -> Tensor:
    """max(0, 1 - beta d) (Liu et al. 2023, arXiv 2309.06657, with the reference of SLiC)."""
    return torch.relu(1 - p.logits)


def ipo(p: Pairs) -> Tensor:
    """(d - 1 / (2 beta))^2, beta the paper's tau (Azar et al. 2023, arXiv 2310.12036, eq. 17)."""
    return (p.chosen - p.rejected - 1 / (2 * p.beta)).square()


def kto_pair(p: Pairs) -> Tensor:
    """Both halves of a pair judged as `kto` judges single rows, each against the KL estimated on
    the other half of the step's pairs (TRL until 0.8, LLaMA-Factory)."""
    wanted = 1 - torch.sigmoid(p.beta * (p.chosen - p.kl_rejected))
    unwanted = 1 - torch.sigmoid(p.beta * (p.kl_chosen - p.rejected))
    return wanted + unwanted


def simpo(p: Pairs) -> Tensor:
    """-log sigmoid(beta d - gamma) (Meng et al. 2024, arXiv 2405.14734, eq. 6)."""
    return -F.logsigmoid(p.logits - p.gamma)


def orpo(p: Pairs) -> Tensor:
    """-beta log sigmoid(log odds ratio) (Hong et al. 2024, arXiv 2403.07691, eq. 7), beta the
    paper's lambda."""
    return -p.beta * F.logsigmoid(log_odds_ratio(p))


def log_odds_ratio(p: Pairs) -> Tensor:
    """log(odds_chosen / odds_rejected), odds = P / (1 - P), P = exp(mean log-prob)."""
    return p.chosen - p.rejected - (log1mexp(p.chosen) - log1mexp(p.rejected))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation (Maechler 2012). x is held below
    -1e-7: a completion of probability 1 has infinite odds."""
    x = x.clamp(max=-1e-7)
    near = x > -0.6931472
    # each branch gets arguments at which its gradient is finite
    by_expm1 = torch.log(-torch.expm1(torch.where(near, x, -0.5)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, by_expm1, by_log1p)


def exo_pair(p: Pairs) -> Tensor:
    """KL(softmax(beta scores) || [1 - e, e]) (Ji et al. 2024, arXiv 2402.00856, eq. 16)."""
    e = torch.tensor(p.label_smoothing, dtype=p.chosen.dtype, device=p.chosen.device)
    won, lost = F.logsigmoid(p.logits), F.logsigmoid(-p.logits)
    return won.exp() * (won - torch.log1p(-e)) + lost.exp() * (lost - e.log())


def nca_pair(p: Pairs) -> Tensor:
    """Chen et al. 2024, arXiv 2402.05369, eq. 11 for two completions."""
    chosen, rejected = p.beta * p.chosen, p.beta * p.rejected
    pushed = F.logsigmoid(-chosen) + F.logsigmoid(-rejected)
    return -F.logsigmoid(chosen) - 0.5 * pushed


def bco_pair(p: Pairs) -> Tensor:
    """-log sigmoid(r_c) - log sigmoid(-r_r) (Jung et al. 2024, arXiv 2404.04656), with no shift."""
    return -F.logsigmoid(p.beta * p.chosen) - F.logsigmoid(-p.beta * p.rejected)


def sppo_hard(p: Pairs) -> Tensor:
    """Scores towards 1 / (2 beta) and its negative (Wu et al. 2024, arXiv 2405.00675, eq. 4.7)."""
    return (p.chosen - 0.5 / p.beta).square() + (p.rejected + 0.5 / p.beta).square()


def apo_zero(p: Pairs) -> Tensor:
    """Chosen up, rejected down (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7)."""
    return 1 - torch.sigmoid(p.beta * p.chosen) + torch.sigmoid(p.beta * p.rejected)


def apo_down(p: Pairs) -> Tensor:
    """Both down, rejected more (the same, eq. 8)."""
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
"""Losses of means over a completion's tokens."""

SMOOTHED: tuple[PairLoss, ...] = ("cdpo", "robust", "exo_pair")
"""Losses that read label_smoothing."""
