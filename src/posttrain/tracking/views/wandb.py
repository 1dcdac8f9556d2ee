"""Weights & Biases: row k of a run's history is line k of metrics.jsonl.

Offline, the folder of the run is written again from the start: W&B cannot continue one. Online, the
server says how many rows it has, and gets those that it lacks.
"""

from __future__ import annotations

import netrc
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.views.view import Facts, Line, State, Tracker

RESERVE = 20.0
"""Seconds between giving up on sending and the end of the process."""
LONGEST_NAME = 128
SERVER = "https://api.wandb.ai"


class WandbView:
    """A run of W&B, and the number of rows that its server had when it was opened."""

    def __init__(self, run: Any, known: int) -> None:
        self.run, self.known = run, known

    def add(self, lines: Sequence[Line]) -> None:
        """Log the lines after the known ones, each as a row, with the step as a value."""
        for line in lines:
            if line.number >= self.known:
                self.run.log({**line.metrics, "step": line.step, "_timestamp": line.time})

    def close(self, state: State) -> None:
        """Finish the run. Raises TimeoutError if not everything could be sent in time."""
        self.run.finish(exit_code=0 if state == "finished" else 1)


def open_view(facts: Facts) -> WandbView:
    """Return the view, of a new run offline and of the run with this id online."""
    import wandb

    settings, offline = facts.settings, mode(facts.settings) == "offline"
    if offline:
        shutil.rmtree(facts.run_dir / "wandb", ignore_errors=True)
    run = wandb.init(
        project=settings.project or os.environ.get("WANDB_PROJECT") or "posttrain",
        entity=settings.entity,
        group=settings.group,
        tags=settings.tags,
        name=facts.name[:LONGEST_NAME],
        job_type=facts.method or None,
        id=facts.id,
        config=facts.config | ({"commit": facts.commit} if facts.commit else {}),
        dir=str(facts.run_dir),
        mode="offline" if offline else "online",
        resume=None if offline else "allow",
        allow_val_change=True,
        settings=wandb.Settings(
            silent=True,
            console="off",
            finish_timeout=max(0.0, facts.end_within - RESERVE),
            finish_timeout_raises=True,
            # the run's config and numbers, and nothing about the machine
            save_code=False,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return WandbView(run, run.starting_step)


def mode(settings: TrackingConfig) -> str:
    """Return online or offline."""
    return settings.mode or (
        "offline" if os.environ.get("WANDB_MODE") in ("offline", "dryrun") else "online"
    )


def check(settings: TrackingConfig) -> None:
    """Raise ValueError if there is no key for an online run."""
    if mode(settings) == "online" and not has_key():
        raise ValueError(
            "trainer.logger: wandb needs the environment variable WANDB_API_KEY or a login with "
            "`wandb login`; tracking.mode: offline needs neither"
        )


def has_key() -> bool:
    """Whether the environment or the netrc file holds a key for W&B's server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or SERVER).hostname or ""
    home = Path.home()
    named = os.environ.get("NETRC")
    for file in [Path(named)] if named else [home / ".netrc", home / "_netrc"]:
        try:
            if netrc.netrc(file).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def environment(run_dir: Path) -> dict[str, str]:
    """Return variables that keep W&B from reporting errors to its own server and from printing."""
    return {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


def secrets(settings: TrackingConfig) -> tuple[str, ...]:
    """Return how the secret variables begin: none offline."""
    return () if mode(settings) == "offline" else ("WANDB_",)


WANDB = Tracker(("wandb",), open_view, check, ("WANDB_",), secrets, environment)
