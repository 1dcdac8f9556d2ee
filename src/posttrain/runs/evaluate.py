"""`posttrain eval` on one rank or several, which are compared before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.common import distributed
from posttrain.common.console import CONSOLE
from posttrain.common.errors import SettingError
from posttrain.evaluation.evaluate import evaluate_tasks
from posttrain.evaluation.tasks import Settings
from posttrain.runs.launch import LONGEST_TIMEOUT
from posttrain.runs.lost import naming_lost_ranks
from posttrain.runs.preflight import check_alike, compare


@naming_lost_ranks()
def evaluate(
    model: str,
    tasks: list[str],
    settings: Settings,
    output: Path | None = None,
    samples: Path | None = None,
    rank_timeout: float = distributed.TIMEOUT,
) -> dict[str, dict[str, Any]]:
    """Return what `evaluate_tasks` does.

    Raise ValueError, on every rank, if the ranks have other code, versions or settings, or have
    read other weights or rows, and LostRank if one does not answer within `rank_timeout` seconds.
    """
    if not 1 <= rank_timeout <= LONGEST_TIMEOUT:
        raise SettingError("rank_timeout", f"expected 1 to 1,000,000 seconds, got {rank_timeout:g}")
    distributed.start(settings.device, rank_timeout)
    asked = {"model": model, "tasks": tasks, **asdict(settings)}
    ranks = compare({"settings": asked})
    if ranks and distributed.rank() == 0:
        CONSOLE.print(ranks, markup=False)
    return evaluate_tasks(model, tasks, settings, output, samples, check_alike)
