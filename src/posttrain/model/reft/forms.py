"""The forms of an edit: low-rank functions of one hidden state.

h is a state [d], R a matrix [r, d] with orthonormal rows, W, W1, W2 matrices [r, d], b [r].

    loreft             h + R^T (W h + b - R h)      paper, eq. 2
    direft             h + W2^T (W1 h + b)          paper, eq. 3; pyreft's NodireftIntervention
    noreft             h + W2^T (W1 h + b - W2 h)   pyreft's NoreftIntervention
    consreft           h + R^T (b - R h)            pyreft's ConsreftIntervention
    lobireft           h + R^T b                    pyreft's LobireftIntervention
    direft_orthogonal  h + R^T (W h + b)            pyreft's DireftIntervention: not the paper's

Paper: arXiv 2404.03592. With an activation g, g(W h + b) takes the place of W h + b.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Form:
    """What distinguishes one form of edit from the others."""

    orthogonal: bool
    """Whether the rows that the edit is written along are orthonormal (R), or free (W2)."""
    learned: bool
    """Whether the target is a function of the state, W h + b, or only b."""
    difference: bool
    """Whether the state's own part along these rows is subtracted: it is replaced, not added to."""


FORMS = {
    "loreft": Form(orthogonal=True, learned=True, difference=True),
    "direft": Form(orthogonal=False, learned=True, difference=False),
    "noreft": Form(orthogonal=False, learned=True, difference=True),
    "consreft": Form(orthogonal=True, learned=False, difference=True),
    "lobireft": Form(orthogonal=True, learned=False, difference=False),
    "direft_orthogonal": Form(orthogonal=True, learned=True, difference=False),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def starts_as_identity(form: Form, activation: str) -> bool:
    """Whether an edit can begin by changing nothing and still have a gradient.

    direft does with W2 = 0, loreft and noreft with W = R (W1 = W2) and b = 0, direft_orthogonal
    with W = 0 and b = 0, lobireft with b = 0. consreft always replaces a part of the state.
    """
    if not form.orthogonal and not form.difference:
        return True
    if not form.learned:
        return not form.difference
    return activation == "linear"


def orthonormal(rows: Tensor) -> Tensor:
    """Return rows [r, d] with the same span that are orthonormal: L^-1 A with L L^T = A A^T.

    Differentiable, and the identity on rows that are orthonormal already.
    """
    factor, _ = torch.linalg.cholesky_ex(rows @ rows.T)
    result: Tensor = torch.linalg.solve_triangular(factor, rows, upper=False)
    return result


class Edit(nn.Module):
    """One edit of states of `width` numbers, of rank `rank`. It computes in fp32."""

    def __init__(
        self, width: int, rank: int, form: str, activation: str, dropout: float, identity: bool
    ) -> None:
        super().__init__()
        self.form, self.activation = FORMS[form], activation
        self.dropout = nn.Dropout(dropout)
        directions = torch.randn(rank, width) / math.sqrt(width)
        if self.form.orthogonal:
            directions = orthonormal(directions)
        self.directions = nn.Parameter(directions.contiguous())
        """[r, d]: W2, or the rows that `orthonormal` turns into R."""
        self.bias = nn.Parameter(torch.zeros(rank))
        if self.form.learned:
            self.weight = nn.Parameter(torch.randn(rank, width) / math.sqrt(width))
        if not (identity and starts_as_identity(self.form, activation)):
            if not self.form.learned:
                nn.init.normal_(self.bias)
        elif self.form.difference:
            self.weight.data = self.rows().detach().contiguous().clone()
        elif self.form.learned and self.form.orthogonal:
            nn.init.zeros_(self.weight)
        elif self.form.learned:
            nn.init.zeros_(self.directions)

    def rows(self) -> Tensor:
        """Return R or W2, [r, d], in fp32."""
        directions = self.directions.float()
        return orthonormal(directions) if self.form.orthogonal else directions

    def forward(self, states: Tensor) -> Tensor:
        """Return the change of states [K, d], in fp32."""
        with torch.autocast(states.device.type, enabled=False):
            states, rows, bias = states.float(), self.rows(), self.bias.float()
            if not self.form.learned:
                low = bias.expand(len(states), -1)
            elif self.form.difference and self.activation == "linear":
                # one product, which is exactly 0 at the start
                return self._written(F.linear(states, self.weight.float() - rows, bias), rows)
            else:
                low = ACTIVATIONS[self.activation](F.linear(states, self.weight.float(), bias))
            if self.form.difference:
                low = low - F.linear(states, rows)
            return self._written(low, rows)

    def _written(self, low: Tensor, rows: Tensor) -> Tensor:
        change: Tensor = self.dropout(low @ rows)
        return change
