"""Gates: metrics of a run's evaluations that must not get worse from before training to its end."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.common import distributed
from posttrain.evaluation.config import GateConfig

ROUNDING = 1e-9  # in floats 0.8 - 0.7 is more than 0.1


def refuse_loss(gates: list[GateConfig], run_dir: Path, step: int | None = None) -> None:
    """Raise ValueError on all ranks if a gate fails on the evaluation at `step`, or on the last."""
    failure = None
    if gates and distributed.rank() == 0:
        failure = lost(gates, run_dir / "metrics.jsonl", step)
    if (problem := distributed.from_rank_0(failure or "")) != "":
        raise ValueError(problem)


def lost(gates: list[GateConfig], metrics_file: Path, step: int | None = None) -> str | None:
    """Return the first gate that fails, in words; None if all hold.

    The evaluation at `step`, or the last one, is compared with that at step 0. A metric that is
    missing from one of them fails its gate; the file has no metrics that were not finite.
    """
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    evaluations = [x for x in lines if any(name.startswith("eval_") for name in x)]
    first = evaluations[0]
    last = [x for x in evaluations if step in (None, x["step"])][-1]
    assert first["step"] == 0, "nothing was evaluated before the first step"
    for gate in gates:
        missing = [line for line in (first, last) if gate.metric not in line]
        if missing:
            known = ", ".join(name for name in missing[0] if name.startswith("eval_"))
            return f"eval.gate: no metric {gate.metric}; there are {known}"
        before, now = first[gate.metric], last[gate.metric]
        fell = gate.max_drop is not None and before - now > gate.max_drop + ROUNDING
        rose = gate.max_rise is not None and now - before > gate.max_rise + ROUNDING
        if fell or rose:
            bound = f"max_drop {gate.max_drop}" if fell else f"max_rise {gate.max_rise}"
            return (
                f"eval.gate: {gate.metric} was {before:.4g} before training and is {now:.4g} "
                f"after step {last['step']} ({bound}); the run is saved"
            )
    return None
