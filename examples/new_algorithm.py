"""A loss of your own, registered from a script.

    python examples/new_algorithm.py

Focal SFT: tokens that the model already knows count less (Lin et al. 2017, arXiv 1708.02002, eq. 5,
with the token's probability p):

    l_t = - (1 - p_t)^focus log p_t

In the package this would be one file, `algorithms/focal.py`, with everything down to `focal`, and
one line in `algorithms/__init__.py`; the invariant, resume and rank tests then cover it.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field

import posttrain
from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import Algorithm, Loss
from posttrain.algorithms.config import TrainerConfig
from posttrain.common.batch import Batch
from posttrain.model.forward import Output


class FocalConfig(TrainerConfig):
    """The trainer section of `type: focal`."""

    type: Literal["focal"] = "focal"
    focus: float = Field(2.0, ge=0)
    """How fast a known token's weight falls; 0 is SFT."""


def focal_loss(out: Output, batch: Batch, config: FocalConfig) -> Loss:
    """Return SUMS: the trainer divides once, by the count of trained tokens of the whole step.

    out.logprobs [T] and batch.loss_mask [T]; untrained positions hold 0. Never take a mean here: it
    would make the gradient depend on how the step was cut into micro-batches.
    """
    logprobs = out.logprobs
    weight = (1 - logprobs.exp()) ** config.focus
    nll = -logprobs.sum().detach()
    return Loss(
        {"token": -(weight * logprobs)[batch.loss_mask].sum()},
        {"nll": (nll, batch.loss_mask.sum())},  # sum and count: logged as a mean
    )


focal = Algorithm(FocalConfig, focal_loss, rows="completion")
ALGORITHMS["focal"] = focal  # in the package: a line "posttrain.algorithms.focal:focal"


def main(output_dir: str = "results") -> None:
    run = posttrain.train(
        "recipes/sft/demo.yaml",
        trainer={
            "type": "focal",
            "focus": 2.0,
            "run_name": "focal",
            "max_steps": 20,
            "output_dir": output_dir,
            "eval_steps": None,
        },
        data={"options": {"num_rows": 500}},
        reward=None,
        eval=None,
    )
    lines = [line for line in run.metrics if "nll" in line]
    print(f"nll: {lines[0]['nll']:.3f} -> {lines[-1]['nll']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
