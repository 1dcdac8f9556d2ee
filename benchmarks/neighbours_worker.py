"""One measurement of neighbours.py: the median time of a training step."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from common import answer

MODEL = {
    "scratch": {
        "architecture": "qwen2",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 1,
        "vocab_size": 1024,
        "max_length": 512,
        "initializer_range": 0.08,
    }
}
ROWS = {"name": "word_problems", "options": {"families": "seen", "num_rows": 2000}}
REWARD = """
def reward(completions, **columns):
    return [sum(map(ord, text)) % 97 / 97 for text in completions]
"""


def tree(method: str, folder: Path) -> dict[str, Any]:
    """Return the recipe of a method, as the demo and the recipes for a CPU have it."""
    trainer = {"type": method, "output_dir": str(folder), "micro_batch_tokens": 4096, "logger": []}
    found: dict[str, Any] = {"model": MODEL, "data": ROWS, "trainer": trainer}
    if method == "sft":
        trainer |= {"max_steps": 1000, "batch_size": 16, "learning_rate": 3e-3}
    elif method == "dpo":
        trainer |= {"max_steps": 1000, "batch_size": 64, "learning_rate": 3e-4}
        found["data"] = {"path": str(pairs(folder))}
    else:
        trainer |= {"max_steps": 1000, "batch_size": 64, "learning_rate": 3e-4}
        found["rollout"] = {"group_size": 8, "max_new_tokens": 112, "max_num_seqs": 512}
        reward = folder / "reward.py"
        reward.write_text(REWARD)
        found["reward"] = {"type": "custom", "path": str(reward)}
    return found


def pairs(folder: Path) -> Path:
    """Write pairs of a problem's solution and that of the next, and return the file."""
    from posttrain.data.config import DataConfig
    from posttrain.data.load import load_rows

    rows = load_rows(DataConfig.model_validate(ROWS))
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for row, other in itertools.pairwise(rows):
            pair = {"prompt": row["prompt"], "chosen": row["completion"]}
            file.write(json.dumps(pair | {"rejected": other["completion"]}) + "\n")
    return path


def work(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the median seconds of a step of this process."""
    import torch

    from posttrain.runs import train as runs
    from posttrain.runs.config import parse_config
    from posttrain.training.trainer import Trainer

    torch.set_num_threads(settings["threads"])
    if settings["side"] == "operations":
        runs.use_workers = lambda *networks: None
    seconds: list[float] = []
    losses: list[float] = []
    step = Trainer.train_step

    def timed(self: Trainer) -> dict[str, float]:
        if len(seconds) == settings["steps"]:
            raise KeyboardInterrupt
        started = time.perf_counter()
        metrics = step(self)
        seconds.append(time.perf_counter() - started)
        losses.append(metrics["loss"])
        return metrics

    Trainer.train_step = timed  # type: ignore[method-assign]
    recipe = parse_config(tree(settings["method"], Path(settings["folder"])), "benchmark")
    with contextlib.suppress(KeyboardInterrupt):
        runs.train(recipe)
    used = seconds[max(1, len(seconds) // 5) :]
    return {"median": statistics.median(used), "slowest": max(used), "first_loss": losses[0]}


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    answer(work)
