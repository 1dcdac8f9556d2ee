"""Filling a tracker with a run that has ended, from its metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from posttrain.common.lock import is_written
from posttrain.config.base import StrictConfig
from posttrain.config.errors import parse
from posttrain.config.recipe import with_overrides
from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.follower import start
from posttrain.tracking.report import read_config, read_json, read_lines
from posttrain.tracking.views import check_trackers, tracker_named


class Sections(StrictConfig):
    """What may be changed of a run that has ended."""

    tracking: TrackingConfig = TrackingConfig()
    """How it appears in the tracker."""


def track(run_dir: Path, name: str, overrides: list[str]) -> int:
    """Show a run in a tracker, with what that lacks, and return the number of its steps.

    `overrides` are of the form tracking.key=value. Raises ValueError with one line for whatever is
    wrong, also with the tracker.
    """
    tracker_named(name)
    if not (run_dir / "metrics.jsonl").is_file():
        raise ValueError(f"{run_dir} is not a run directory: it has no metrics.jsonl")
    run_dir = run_dir.resolve()
    if is_written(run_dir):
        raise ValueError(f"{run_dir} is still being written: wait for its end")
    steps = len({line["step"] for _, line in read_lines(run_dir / "metrics.jsonl")})
    tree = {"tracking": read_config(run_dir / "config.yaml").get("tracking") or {}}
    settings = parse(Sections, with_overrides(tree, overrides), "tracking").tracking
    check_trackers([name], settings)
    follower = start(run_dir, name, settings, end_within=0)
    try:
        state = read_json(run_dir / "run.json", dict).get("state", "finished")
        follower.tell(str(state))
        problem = follower.finish()
    finally:
        follower.stop()
    if problem:
        raise ValueError(problem)
    return steps
