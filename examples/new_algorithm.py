"""A custom loss, registered from a script.

    python examples/new_algorithm.py

Focal SFT: tokens that the model already predicts count less (Lin et al. 2017, arXiv 1708.02002,
eq. 4, where p_t is the token's probability):

    l_t = - (1 - p_t)^focus log p_t

In the package, the code down to `focal` would be the file `algorithms/focal.py`, with a line in
`algorithms/__init__.py`. The invariant, resume and rank tests would then cover it.
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
    """Exponent of 1 - p_t in a token's weight; 0 is SFT."""


def focal_loss(out: Output, batch: Batch, config: FocalConfig) -> Loss:
    """Return sums: the trainer divides once, by the number of trained tokens of the whole step.

    out.logprobs [T] and batch.loss_mask [T]; log-probs are 0 at untrained positions. Never take a
    mean here: the gradient would depend on how the step is cut into micro-batches.
    """
    logprobs = out.logprobs
    weight = (1 - logprobs.exp()) ** config.focus
    nll = -logprobs.sum().detach()
    return Loss(
        {"token": -(weight * logprobs)[batch.loss_mask].sum()},
        {"nll": (nll, batch.loss_mask.sum())},  # a sum and a count are logged as a mean
    )


focal = Algorithm(FocalConfig, focal_loss, rows="completion")
ALGORITHMS["focal"] = focal  # in the package: a line "posttrain.algorithms.focal:focal"


def main(output_dir: str = "results") -> None:
    """Train for 20 steps and print how the negative log-likelihood changes."""
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
