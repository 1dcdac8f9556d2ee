"""Peak resident memory of each rank of a training run, measured.

    python memory_worker.py OUTPUT < SETTINGS

One process imports the libraries and forks the ranks, which are those of a run: gloo, with
torchrun's variables. Each reads its peak (VmHWM) after the models are ready and after its steps,
above what it held after a step of a tiny model in the same way. memory.py runs this script.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from common import MIB, answer


def resident(field: str) -> float:
    """Return VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(field)).split()[1]) / 1024


def reset_peak() -> None:
    """Make VmHWM the present VmRSS (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def rank_main(settings: dict[str, Any], rank: int, output: Path) -> None:
    """Train on one rank and write its memory to a file."""
    import torch

    from posttrain.common import distributed
    from posttrain.runs.config import parse_config
    from posttrain.runs.plan import plan
    from posttrain.runs.strategy import settle_strategy
    from posttrain.runs.train import assemble, open_run, prepare_models

    torch.set_num_threads(1)
    config = parse_config(settings["recipe"], "recipe")
    distributed.start("cpu", 120.0)
    if settings["ranks"] > 1:
        train_tiny(settings, output.parent / "warm")
    gc.collect()
    reset_peak()
    before = resident("VmRSS")
    planned, _ = settle_strategy(plan(config))
    run_dir = output.parent / "run"
    sampler = prepare_models(planned, run_dir)
    tracker = open_run(planned, run_dir)
    ready = resident("VmHWM") - before
    held = resident("VmRSS") - before
    trainer = assemble(planned, sampler, tracker)
    trainer.models.policy.train()
    reset_peak()
    times = []
    for _ in range(settings["steps"]):
        begun = time.perf_counter()
        trainer.train_step()
        times.append(time.perf_counter() - begun)
    peak = resident("VmHWM") - before
    tracker.close("finished")
    found = {"rank": rank, "imports": before, "loading": ready, "held": held, "steps": peak}
    found |= {"peak": max(ready, peak), "step_times": times}
    output.write_text(json.dumps(found))


def train_tiny(settings: dict[str, Any], run_dir: Path) -> None:
    """Train a tiny model, so that what the libraries load and build at first use is there."""
    from posttrain.runs.config import parse_config
    from posttrain.runs.plan import plan
    from posttrain.runs.train import assemble, open_run, prepare_models

    tree = json.loads(json.dumps(settings["recipe"]))
    tree["model"]["name"] = settings["tiny"]
    if settings["ranks"] == 1 or "RANK" not in os.environ:
        tree.pop("distributed", None)
    planned = plan(parse_config(tree, "recipe"))
    sampler = prepare_models(planned, run_dir)
    tracker = open_run(planned, run_dir)
    assemble(planned, sampler, tracker).train_step()
    tracker.close("finished")


def predict(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the predicted peak of a rank in MiB, and its bytes by part."""
    from posttrain.common.environment import tune_allocator
    from posttrain.runs.config import parse_config
    from posttrain.sizing.asked import ask
    from posttrain.sizing.forecast import count, load_code, network_of
    from posttrain.sizing.forked import forked
    from posttrain.sizing.layout import Layout

    tune_allocator()
    config = parse_config(settings["recipe"], "recipe")
    section = config.distributed
    asked = ask(config, "cpu")
    strategy = section.strategy if section.strategy != "auto" else "ddp"
    layout = Layout(
        settings["ranks"], 1, strategy, section.tensor_parallel, section.sequence_parallel
    )
    load_code(asked)
    batch, _ = asked.fullest(layout.shares)
    network = forked(partial(network_of, asked))
    counted = forked(partial(count, asked, network, layout, batch, "cpu"))
    return {"peak": counted.peak / 2**20, "parts": counted.parts, "phase": counted.phase}


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what every rank measured."""
    from posttrain.common.environment import tune_allocator

    if settings["tuned"]:
        tune_allocator()
    train_tiny(settings, Path(settings["folder"]) / "warm")
    ranks, folder = settings["ranks"], Path(settings["folder"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            if ranks > 1:
                os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}"}
                os.environ |= {"LOCAL_WORLD_SIZE": f"{ranks}", "MASTER_PORT": f"{port}"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1"}
            try:
                rank_main(settings, rank, folder / f"{rank}.json")
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        sys.exit(f"ranks ended with {codes}")
    return {"ranks": [json.loads((folder / f"{r}.json").read_text()) for r in range(ranks)]}


if __name__ == "__main__":
    assert MIB == 2**20
    answer(lambda settings: (predict if settings.get("predict") else measure)(settings))
