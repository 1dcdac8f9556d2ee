"""`posttrain serve` on one rank, or on those that split the model."""

from __future__ import annotations

from dataclasses import asdict

from posttrain.common import distributed
from posttrain.common.console import CONSOLE
from posttrain.common.errors import SettingError
from posttrain.runs.launch import LONGEST_TIMEOUT
from posttrain.runs.lost import naming_lost_ranks
from posttrain.runs.preflight import compare
from posttrain.serving.serve import ServeSettings
from posttrain.serving.serve import serve as run


@naming_lost_ranks()
def serve(model: str, settings: ServeSettings, rank_timeout: float = distributed.TIMEOUT) -> None:
    """Serve a model until the process is stopped; rank 0 answers requests.

    Raise ValueError or SettingError for what cannot be served, or, on every rank, if the ranks have
    other code, versions or settings, and LostRank if one does not answer within `rank_timeout`
    seconds.
    """
    if not 1 <= rank_timeout <= LONGEST_TIMEOUT:
        raise SettingError("rank_timeout", f"expected 1 to 1,000,000 seconds, got {rank_timeout:g}")
    distributed.start(settings.device, rank_timeout)
    needed, ranks = settings.tensor_parallel, distributed.num_ranks()
    if needed != ranks:
        raise SettingError(
            "tensor_parallel",
            f"{needed} rank(s) split the model, but {ranks} were started: start as many with "
            "posttrain launch",
        )
    asked = asdict(settings) | {"model": model, "adapters": dict(settings.adapters)}
    if (said := compare({"settings": asked})) and distributed.rank() == 0:
        CONSOLE.print(said, markup=False)
    run(model, settings)
