"""The command line on several ranks, without torchrun's start: 15 of the 20 seconds of a tiny run.

The ranks are forked from one process that has imported what they need, with the variables that
torchrun sets.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

PRELOAD = (
    "posttrain.cli.main",
    "posttrain.runs.train",
    "peft",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
)
TIMEOUT = 240  # seconds

context: Any = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(list(PRELOAD))


def command(ranks: int, folder: Path, arguments: list[str], machines: int = 1) -> str:
    """Return what rank 0 of `posttrain ARGUMENTS` writes to stdout.

    With `machines`, the ranks believe that they are on that many.

    Raise AssertionError with the first failed rank's stderr; the other ranks are killed then.
    """
    processes = start(ranks, folder, arguments, machines)
    failed = _first_failure(processes)
    for process in processes:
        process.kill()
        process.join()
    if failed is not None:
        stderr = (folder / f"{failed}.stderr").read_text()
        raise AssertionError(f"rank {failed}: {processes[failed].exitcode}\n{stderr[-3000:]}")
    return (folder / "0.stdout").read_text()


def exit_codes(
    ranks: int, folder: Path, arguments: list[str], meanwhile: Callable[[list[Any]], None]
) -> list[int]:
    """Return the exit codes of all ranks, after `meanwhile` did something to their processes."""
    processes = start(ranks, folder, arguments)
    try:
        meanwhile(processes)
        for process in processes:
            process.join(TIMEOUT)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def start(ranks: int, folder: Path, arguments: list[str], machines: int = 1) -> list[Any]:
    """Return the processes of `posttrain ARGUMENTS`, which write to RANK.stdout and RANK.stderr."""
    shared = os.environ | {"OMP_NUM_THREADS": "1"}
    if ranks > 1:
        here = ranks // machines
        shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(here)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank % here)} if ranks > 1 else {}
        process = context.Process(target=_rank, args=(arguments, shared | own, folder / f"{rank}"))
        process.start()
        processes.append(process)
    return processes


def _first_failure(processes: list[Any]) -> int | None:
    """Return the first rank that failed or did not end in time, None if all succeeded."""
    end, running = time.monotonic() + TIMEOUT, dict(enumerate(processes))
    while running:
        ready = wait([p.sentinel for p in running.values()], max(0.0, end - time.monotonic()))
        if not ready:
            return next(iter(running))
        for rank, process in list(running.items()):
            if process.sentinel in ready:
                process.join()
                if process.exitcode != 0:
                    return rank
                del running[rank]
    return None


def _rank(arguments: list[str], environment: dict[str, str], output: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["posttrain", *arguments]
    runpy.run_module("posttrain", run_name="__main__", alter_sys=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
