"""A function on several ranks, each a process forked from one with everything imported."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ranks import TIMEOUT, context


def on_ranks(
    number: int,
    folder: Path,
    function: Callable[..., Any],
    *arguments: Any,
    device: str = "cpu",
) -> None:
    """Call `function(*arguments)` on each rank; raise AssertionError with the first traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(number)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(number):
        own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(number)}
        target = (own, folder / f"{rank}.error", device, function, arguments)
        processes.append(context.Process(target=_rank, args=target))
        processes[-1].start()
    try:
        for process in processes:
            process.join(TIMEOUT)
    finally:
        for process in processes:
            process.kill()
    for rank, process in enumerate(processes):
        error = folder / f"{rank}.error"
        said = error.read_text() if error.exists() else ""
        assert process.exitcode == 0, f"rank {rank}: {process.exitcode}\n{said}"


def _rank(
    environment: dict[str, str],
    error: Path,
    device: str,
    function: Callable[..., Any],
    arguments: Any,
) -> None:
    from posttrain.common import distributed

    os.environ.clear()
    os.environ.update(environment)
    try:
        distributed.start(device, 60.0)
        function(*arguments)
        distributed.barrier()
    except BaseException:
        error.write_text(traceback.format_exc())
        distributed.leave(1)
    distributed.leave(0)
