"""The demo's GRPO in process and with two rollout servers, one of which is killed and replaced.

    python benchmarks/servers.py FOLDER [--sft STEPS] [--grpo STEPS] [--max-staleness N]

Runs the demo's SFT in FOLDER, then its GRPO twice from there: sampled in process, and by two
`posttrain serve` that receive all weights. After a third of the steps one of them gets SIGKILL; a
new one takes its place at two thirds. Both models are compared on the demo's splits. What is in
FOLDER already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from common import machine, today, versions, write_results

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = ROOT / "recipes" / "pipeline" / "demo.yaml"
GRPO = ROOT / "recipes" / "grpo" / "math_outcome_cpu.yaml"
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


class Server:
    """`posttrain serve` in a process of its own."""

    def __init__(self, model: Path, weights: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "posttrain", "serve", str(model), "--port", str(port)]
        command += ["--allow-weight-updates", str(weights), "--device", "cpu"]
        command += ["--dtype", "float32", "--max-num-seqs", "512"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ONE_THREAD
        )
        assert self.process.stdout is not None
        found = re.search(r"http://\S+(?=/v1)", self.process.stdout.readline())
        assert found is not None, "the server did not start"
        self.url = found[0]
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def kill(self) -> None:
        """End it at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def train(recipe: Path, *overrides: str) -> None:
    """Run `posttrain train`."""
    command = [sys.executable, "-m", "posttrain", "train", str(recipe), *overrides]
    subprocess.run(command, check=True, env=ONE_THREAD)


def logged(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics of the training steps of the run in a folder."""
    found = list(folder.glob("*/metrics.jsonl"))
    lines = found[0].read_text().splitlines() if found else []
    return [row for row in map(json.loads, lines) if "loss" in row]


def with_servers(folder: Path, model: Path, steps: int, staleness: int) -> list[str]:
    """Run GRPO by two servers, one killed and replaced; return what happened to it."""
    servers = [Server(model, folder), Server(model, folder)]
    events: list[str] = []
    ended = threading.Event()

    def wait_for(step: int) -> None:
        while len(logged(folder)) < step and not ended.is_set():
            time.sleep(0.2)

    def disturb() -> None:
        wait_for(steps // 3)
        servers[0].kill()
        events.append(f"killed after step {len(logged(folder))}")
        wait_for(2 * steps // 3)
        servers.append(Server(model, folder, int(servers[0].url.rpartition(":")[2])))
        events.append(f"replaced after step {len(logged(folder))}")

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        recipe = yaml.safe_load(GRPO.read_text())
        del recipe["rollout"]["max_num_seqs"]  # the servers'
        recipe["model"]["name"] = str(model)
        recipe["trainer"] |= {"output_dir": str(folder), "max_steps": steps}
        recipe["trainer"]["sampler_correction"] = "token"
        addresses = [server.url for server in servers]
        recipe["rollout"] |= {"engine": "server", "servers": addresses, "max_staleness": staleness}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        train(folder / "recipe.yaml")
    finally:
        ended.set()
        disturbing.join()
        for server in servers:
            server.kill()
    return events


def evaluated(run_dir: Path) -> dict[str, Any]:
    """Return the accuracy of a run's model on the demo's splits."""
    from posttrain.runs.pipeline import compare, load_pipeline, load_splits

    config = load_pipeline(str(PIPELINE)).evaluate
    assert config is not None
    return compare(run_dir, config, load_splits(config))


def main() -> None:
    """Run what the folder lacks, and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sft", type=int, default=1500)
    parser.add_argument("--grpo", type=int, default=300)
    parser.add_argument("--max-staleness", type=int, default=2)
    given = parser.parse_args()
    folder = given.folder.resolve()
    places = {name: folder / name for name in ("sft", "in process", "servers")}
    if not logged(places["sft"]):
        recipe, steps = ROOT / "recipes" / "sft" / "demo.yaml", f"trainer.max_steps={given.sft}"
        train(recipe, f"trainer.output_dir={places['sft']}", steps, "trainer.keep_checkpoints=1")
    (model,) = places["sft"].glob("demo-sft_*/checkpoint-*")
    if not logged(places["in process"]):
        output = f"trainer.output_dir={places['in process']}"
        train(GRPO, f"model.name={model}", output, f"trainer.max_steps={given.grpo}")
    events = []
    if not logged(places["servers"]):
        places["servers"].mkdir(parents=True, exist_ok=True)
        events = with_servers(places["servers"], model, given.grpo, given.max_staleness)
    runs = {name: next(place.glob("demo-*_*")) for name, place in places.items()}
    found = {name: evaluated(run) for name, run in runs.items()}
    last = logged(places["servers"])
    stale = [row["sampling/max_staleness"] for row in last if "sampling/max_staleness" in row]
    facts = {"date": today(), "machine": machine(1), "versions": versions("posttrain", "torch")}
    facts |= {"steps": given.grpo, "events": events, "largest_staleness": max(stale, default=None)}
    for name, result in found.items():
        print(name, json.dumps(result))
    write_results("servers", {**facts, "models": found})


if __name__ == "__main__":
    main()
