"""A run without a model: python toy_run.py FOLDER TRACKERS STEPS SECONDS_PER_STEP [TRACKING_JSON]

It resumes from its last "checkpoint". The numbers of a step are always the same, save for one.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.tracker import Tracker

NAMES = ("loss", "pass@1", "pass_at_1", "rewards/format (mean)", "eval_f1/a//b", "ü 0.5", "größe:%")


def metrics_of(step: int) -> dict[str, float]:
    values = {name: math.sin(step * (i + 1)) for i, name in enumerate(NAMES)}
    return {**values, "num_tokens": 10.0 * step, "step_time": 0.5, "not_finite": math.nan}


def run(folder: Path, names: list[str], steps: int, seconds: float, tracking: str) -> None:
    saved = folder / "saved"
    first = int(saved.read_text()) if saved.exists() else 0
    if first == 0:
        (folder / "config.yaml").write_text(
            "trainer: {type: toy}\nreward: {url: 'http://a:pw@h'}\n"
        )
    settings = TrackingConfig.model_validate_json(tracking)
    tracker = Tracker(folder, steps, 10**9, names, first_step=first, tracking=settings)
    pids = [follower.process.pid for follower in tracker.followers]
    (folder / "pids.json").write_text(json.dumps(pids))
    for step in range(first + 1, steps + 1):
        time.sleep(seconds)
        tracker.train(step, metrics_of(step) | {"time/train": time.perf_counter()})
        if step % 3 == 0:
            tracker.evaluation(step, {"eval_loss": 1.0 / step, "eval_pass@1": step / steps})
        if step % 2 == 0:
            (folder / "saving").write_text(str(step))
            (folder / "saving").replace(saved)
    tracker.close()


if __name__ == "__main__":
    folder, names, steps, seconds, *rest = sys.argv[1:]
    tracking = rest[0] if rest else '{"mode": "offline"}'
    run(Path(folder), names.split(","), int(steps), float(seconds), tracking)
