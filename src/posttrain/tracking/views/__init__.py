"""The registry of trackers: views of metrics.jsonl, each in a file of its own."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from posttrain.common.registry import look_up
from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.views.view import Tracker

TRACKERS: dict[str, str | Tracker] = {
    "tensorboard": "posttrain.tracking.views.tensorboard:TENSORBOARD",
    "wandb": "posttrain.tracking.views.wandb:WANDB",
    "mlflow": "posttrain.tracking.views.mlflow:MLFLOW",
    "trackio": "posttrain.tracking.views.trackio:TRACKIO",
}


def tracker_named(name: str) -> Tracker:
    """Return a tracker. Raises ValueError for an unknown name."""
    tracker: Tracker = look_up(TRACKERS, name, f"no tracker {name!r}")
    return tracker


def check_trackers(names: Iterable[str], settings: TrackingConfig | None) -> None:
    """Raise ValueError if a tracker's extra is not installed, or its key or server is missing."""
    for name in names:
        tracker = tracker_named(name)
        for package in tracker.packages:
            try:
                version(package)
            except PackageNotFoundError:
                raise ValueError(
                    f"trainer.logger: {name} needs the package {package}: "
                    f"pip install 'posttrain[{name}]'"
                ) from None
        tracker.check(settings or TrackingConfig())
