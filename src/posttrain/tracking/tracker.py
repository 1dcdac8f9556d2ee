"""Where a run's metrics and samples go; metrics.jsonl is the source of truth for all views."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from posttrain.common.console import CONSOLE
from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.diagnosis import Diagnosis
from posttrain.tracking.follower import Follower, start_all
from posttrain.tracking.report import OF_LABELS

# Metrics on a line of the console, in this order, if the step has them.
SHOWN = (
    "loss",
    "reward",
    "frac_reward_zero_std",
    "completions/mean_length",
    "entropy",
    "kl",
    "rewards/accuracies",
    "rewards/margins",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
)


class Tracker:
    """Console, metrics.jsonl and samples.jsonl of one run, and the trackers that follow it.

    A rank other than 0 writes its samples, to a file of its own, and nothing else."""

    def __init__(
        self,
        run_dir: Path,
        num_steps: int,
        logging_steps: int,
        logger: Sequence[str],
        rank: int = 0,
        first_step: int = 0,
        description: str = "",
        tracking: TrackingConfig | None = None,
    ) -> None:
        self.run_dir, self.rank = run_dir, rank
        self.logging_steps, self.num_steps = logging_steps, num_steps
        samples = "samples.jsonl" if rank == 0 else f"samples-rank{rank}.jsonl"
        self.samples = _reopen(run_dir / samples, first_step)
        self.metrics: TextIO | None = None
        self.followers: list[Follower] = []
        if rank != 0:
            return
        self.metrics = _reopen(run_dir / "metrics.jsonl", first_step)
        self.followers, problems = start_all(run_dir, logger, tracking)
        for problem in problems:
            self.say(f"warning: {problem}")
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=CONSOLE,
            transient=True,
        )
        self.bar = self.progress.add_task(description, total=num_steps, completed=first_step)
        self.progress.start()
        self.tokens_before: float | None = None
        self.diagnosis = Diagnosis()
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        self.diagnosis.replay([json.loads(line) for line in lines])

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Record a training step, with its throughput, and report new diagnoses."""
        if self.rank != 0:
            return
        tokens = metrics.get("num_tokens", math.nan)
        if self.tokens_before is not None:
            metrics["tokens_per_second"] = (tokens - self.tokens_before) / metrics["step_time"]
        self.tokens_before = tokens
        self._write(step, metrics)
        self.progress.update(self.bar, completed=step)
        if step % self.logging_steps == 0 or step in (1, self.num_steps):
            shown = "  ".join(f"{n.split('/')[-1]} {metrics[n]:.4g}" for n in SHOWN if n in metrics)
            self.say(f"step {step:>5}/{self.num_steps}  {shown}")
        for text in self.diagnosis.step(metrics):
            self.say(f"note, step {step}: {text}")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of an evaluation, and report new diagnoses."""
        if self.rank != 0:
            return
        self._write(step, metrics)
        short = {name: value for name, value in metrics.items() if not OF_LABELS.match(name)}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in short.items())
        self.say(f"step {step:>5}/{self.num_steps}  {shown}")
        for text in self.diagnosis.evaluation(metrics):
            self.say(f"note, step {step}: {text}")

    def sample(self, record: dict[str, Any]) -> None:
        """Append a record to this rank's file of samples."""
        self.samples.write(json.dumps(record, default=str) + "\n")

    def say(self, text: str) -> None:
        """Print a line on the console of rank 0."""
        if self.rank == 0:
            CONSOLE.print(text, markup=False)

    def close(self, state: str = "finished") -> None:
        """Close all files, take the progress bar off the console, and wait for the trackers.

        `state` is that of run.json: finished, failed or interrupted."""
        self.samples.close()
        if self.metrics is not None:
            self.progress.stop()
            self.metrics.close()
        for follower in self.followers:
            follower.tell(state)
        for follower in self.followers:
            if problem := follower.finish(self.say):
                self.say(f"warning: {problem}")

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        assert self.metrics is not None
        # JSON has no nan and no infinity
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.metrics.write(
            json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n"
        )
        self.metrics.flush()
        self.samples.flush()
        for follower in list(self.followers):
            if problem := follower.problem():
                self.say(f"warning, step {step}: {problem}")
                self.followers.remove(follower)


def _reopen(path: Path, last_step: int) -> TextIO:
    """Open a file of lines to append to, without those of steps that will run again."""
    if path.exists():
        # a last line without a newline is incomplete: the run was killed while writing it
        lines = [x for x in path.read_text().splitlines(keepends=True) if x.endswith("\n")]
        kept = [line for i, line in enumerate(lines, 1) if _step(path, i, line) <= last_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
    return path.open("a")


def _step(path: Path, number: int, line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{path}, line {number}: not a line of a run ({line.strip()[:40]}): remove it"
        ) from None
