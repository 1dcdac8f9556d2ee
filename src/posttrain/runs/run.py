"""A finished or interrupted run, read from its directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.common.disk import size
from posttrain.common.display import html_table
from posttrain.common.files import expanded
from posttrain.model.folder import best_or_newest, checkpoints_in
from posttrain.runs.config import Config, load_config
from posttrain.runs.listing import read
from posttrain.tracking.plot import Plot, curves
from posttrain.tracking.report import read_lines


@dataclass(frozen=True)
class Run:
    """A run on disk, usable as a path. Raises ValueError if `folder` is not a run directory."""

    folder: Path
    """The run directory, given as a path or text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(expanded(os.fspath(self.folder))))
        if not (self.folder / "metrics.jsonl").is_file():
            raise ValueError(f"{self.folder} is not a run directory: it has no metrics.jsonl")

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    @cached_property
    def config(self) -> Config:
        """The resolved config, which can be run again."""
        return load_config(self.folder / "config.yaml")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one for each step and one for each evaluation."""
        return [line for _, line in read_lines(self.folder / "metrics.jsonl")]

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl, of all ranks, in the order of their steps.

        They are rollouts with their rewards and completions of evaluations; `kind` tells which.
        """
        files = sorted(self.folder.glob("samples*.jsonl"))
        lines = [line for file in files for _, line in read_lines(file)]
        return sorted(lines, key=lambda line: line["step"])

    def column(self, metric: str) -> dict[int, float]:
        """Return the values of a metric by step. Raises ValueError if no step has it."""
        (panel,) = curves({"": self.folder}, [metric]).panels
        return dict(panel.curves[""])

    def plot(self, *metrics: str) -> Plot:
        """Return curves of these metrics over the steps, which a notebook shows as a picture."""
        return curves({self.folder.name: self.folder}, metrics)

    @property
    def checkpoints(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        return checkpoints_in(self.folder)

    @property
    def best_checkpoint(self) -> Path:
        """The best checkpoint by `early_stopping.metric`, or the newest without that key.

        transformers, PEFT and vLLM can load it. Raises ValueError if there is no checkpoint yet.
        """
        return best_or_newest(self.folder)

    @property
    def report(self) -> Path:
        """The path of the page with curves, samples and settings."""
        return self.folder / "report.html"

    def _repr_html_(self) -> str:
        known = read(self.folder)
        of = "" if known.num_steps is None else f" of {known.num_steps:,}"
        rows = [
            ("run", str(self.folder)),
            ("state", f"{known.state}, step {known.step:,}{of}"),
            ("method, model", f"{known.method}, {known.model}"),
            (known.metric or "metrics", "none" if known.value is None else f"{known.value:.4g}"),
            ("checkpoints", ", ".join(path.name for path in self.checkpoints) or "none"),
            ("size", size(known.num_bytes)),
        ]
        return html_table(rows)

    def model(self) -> Any:
        """Return the model of the best checkpoint, in eval mode.

        It is a transformers model, or a PEFT model for an adapter; a reward model or classifier is
        a sequence classifier.
        """
        from posttrain.runs.loading import load_trained

        return load_trained(self.best_checkpoint)

    def tokenizer(self) -> Any:
        """Return the tokenizer of the best checkpoint."""
        from posttrain.model.load import load_tokenizer

        return load_tokenizer(str(self.best_checkpoint))
