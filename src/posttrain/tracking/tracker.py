"""Where a run's metrics and samples go; metrics.jsonl is the source of truth for all views."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from posttrain.common.console import CONSOLE
from posttrain.common.disk import RunDisk, write_failure
from posttrain.common.files import replacing
from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.diagnosis import Diagnosis
from posttrain.tracking.follower import Follower, start_all
from posttrain.tracking.memory import in_words, memory_used
from posttrain.tracking.progress import progress_bar
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
        checkpoint_bytes: int = 0,
    ) -> None:
        self.run_dir, self.rank = run_dir, rank
        self.logging_steps, self.num_steps = logging_steps, num_steps
        self.disk = RunDisk(run_dir, checkpoint_bytes)
        samples = "samples.jsonl" if rank == 0 else f"samples-rank{rank}.jsonl"
        self.samples = self._open(samples, first_step)
        self.metrics: TextIO | None = None
        self.followers: list[Follower] = []
        if rank != 0:
            return
        self.metrics = self._open("metrics.jsonl", first_step)
        self.followers, problems = start_all(run_dir, logger, tracking)
        for problem in problems:
            self.say(f"warning: {problem}")
        self.progress = progress_bar(description, num_steps, first_step)
        self.tokens_before: float | None = None
        self.diagnosis = Diagnosis()
        with (run_dir / "metrics.jsonl").open(encoding="utf-8") as lines:
            self.diagnosis.replay(map(json.loads, lines))

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Record a training step, with its throughput and memory, and report new diagnoses."""
        if self.rank != 0:
            return
        tokens = metrics.get("num_tokens", math.nan)
        if self.tokens_before is not None:
            metrics["tokens_per_second"] = (tokens - self.tokens_before) / metrics["step_time"]
        self.tokens_before = tokens
        metrics |= memory_used()
        self._write(step, metrics)
        self.progress.update(step)
        if step % self.logging_steps == 0 or step in (1, self.num_steps):
            shown = "  ".join(f"{n.split('/')[-1]} {metrics[n]:.4g}" for n in SHOWN if n in metrics)
            self.say(f"step {step:>5}/{self.num_steps}  {shown}  {in_words(metrics)}")
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
        self._append(self.samples, json.dumps(record, default=str) + "\n")

    def say(self, text: str) -> None:
        """Print a line on the console of rank 0."""
        if self.rank == 0:
            CONSOLE.print(text, markup=False)

    def close(self, state: str = "finished") -> None:
        """Close all files, take the progress bar off the console, and wait for the trackers.

        `state` is that of run.json: finished, failed or interrupted."""
        if self.metrics is not None:
            self.progress.stop()
        for file in filter(None, (self.metrics, self.samples)):
            try:
                file.close()
            except OSError as error:  # raised here, it would hide what ended the run
                if state == "finished":
                    reason = f"{file.name} lacks its last lines: {write_failure(error)}"
                    CONSOLE.print(f"warning: {reason}", markup=False)
        for follower in self.followers:
            follower.tell(state)
        for follower in self.followers:
            if problem := follower.finish(self.say):
                self.say(f"warning: {problem}")

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        assert self.metrics is not None
        # JSON has no nan and no infinity
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._append(self.metrics, json.dumps(line) + "\n", flush=True)
        self._append(self.samples, "", flush=True)
        if problem := self.disk.warning():
            self.say(f"warning, step {step}: {problem}")
        for follower in list(self.followers):
            if problem := follower.problem():
                self.say(f"warning, step {step}: {problem}")
                self.followers.remove(follower)

    def _open(self, name: str, first_step: int) -> TextIO:
        file = self.run_dir / name
        try:
            return _reopen(file, first_step)
        except OSError as error:
            raise ValueError(self.disk.failure(str(file), error)) from error

    def _append(self, file: TextIO, text: str, flush: bool = False) -> None:
        """Write to a file of the run; raise ValueError in one line if the disk does not take it."""
        try:
            file.write(text)
            if flush:
                file.flush()
        except OSError as error:
            raise ValueError(self.disk.failure(file.name, error)) from error


def _reopen(path: Path, last_step: int) -> TextIO:
    """Open a file of lines to append to, without those of steps that will run again."""
    if path.exists():
        with (
            replacing(path) as temporary,
            path.open(encoding="utf-8") as lines,
            temporary.open("w", encoding="utf-8") as kept,
        ):
            for i, line in enumerate(lines, 1):
                # a last line without a newline is incomplete: the run was killed while writing it
                if line.endswith("\n") and _step(path, i, line) <= last_step:
                    kept.write(line)
    return path.open("a", encoding="utf-8")


def _step(path: Path, number: int, line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{path}, line {number}: not a line of a run ({line.strip()[:40]}): remove it"
        ) from None
