"""Trackio: a database in the run's folder, or a server of one's own or on a Space.

The database's rows of this run are written again from the start. A server takes every row under a
name of its own, and ignores one that it has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.views.view import Facts, Line, State, Tracker

AT_ONCE = 500  # rows

Rows = list[dict[str, Any]]


class TrackioView:
    """A run of a project, with the function that its rows go to."""

    def __init__(self, facts: Facts, project: str, log: Callable[[Rows], None]) -> None:
        self.project, self.name, self.id, self.log = project, facts.name, facts.id, log
        settings = facts.settings
        self.config = facts.config | {"_Group": settings.group, "_Created": now()}
        self.config |= {"tags": settings.tags} if settings.tags else {}
        self.config |= {"commit": facts.commit} if facts.commit else {}

    def add(self, lines: Sequence[Line]) -> None:
        """Log the lines, each as a row."""
        for i in range(0, len(lines), AT_ONCE):
            rows = [self._row(line) for line in lines[i : i + AT_ONCE]]
            rows[0]["config"] = self.config
            self.log(rows)

    def close(self, state: State) -> None:
        """Return: every row has been written, and trackio keeps no state of a run."""

    def _row(self, line: Line) -> dict[str, Any]:
        return {
            "project": self.project,
            "run": self.name,
            "run_id": self.id,
            "metrics": line.metrics,
            "step": line.step,
            "timestamp": datetime.fromtimestamp(line.time, UTC).isoformat(),
            "config": None,
            "log_id": f"{self.id}-{line.number}",
        }


def open_view(facts: Facts) -> TrackioView:
    """Return the view, of a server if there is one."""
    project = facts.settings.project or os.environ.get("TRACKIO_PROJECT") or "posttrain"
    address = server(facts.settings)
    if address is None:
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.validate_project_name(project)
        SQLiteStorage.delete_run(project, facts.name, run_id=facts.id)
        return TrackioView(facts, project, log_locally)
    from huggingface_hub import get_token
    from trackio.remote_client import RemoteClient

    token = None if address.startswith(("http://", "https://")) else get_token()
    if token is not None:
        from trackio.deploy import create_space_if_not_exists

        create_space_if_not_exists(address)
    client = RemoteClient(
        address, hf_token=token, write_token=os.environ.get("TRACKIO_WRITE_TOKEN")
    )

    def send(rows: Rows) -> None:
        client.predict(api_name="/bulk_log", logs=rows, hf_token=token)

    return TrackioView(facts, project, send)


def log_locally(rows: Rows) -> None:
    """Write rows of one run into the database."""
    from trackio.sqlite_storage import SQLiteStorage

    SQLiteStorage.bulk_log(
        project=rows[0]["project"],
        run=rows[0]["run"],
        metrics_list=[row["metrics"] for row in rows],
        steps=[row["step"] for row in rows],
        timestamps=[row["timestamp"] for row in rows],
        config=rows[0]["config"],
        log_ids=[row["log_id"] for row in rows],
        run_id=rows[0]["run_id"],
    )


def now() -> str:
    """Return the date and time in ISO 8601."""
    return datetime.now(UTC).isoformat()


def server(settings: TrackingConfig) -> str | None:
    """Return the address of a server or the name of a Space; None for the local database."""
    if settings.mode == "offline":
        return None
    names = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def check(settings: TrackingConfig) -> None:
    """Raise ValueError if there should be a server, and none is named or its token is missing."""
    address = server(settings)
    if settings.mode == "online" and address is None:
        raise ValueError(
            "tracking.mode: online needs an environment variable for trackio: TRACKIO_SERVER_URL "
            "with TRACKIO_WRITE_TOKEN, or TRACKIO_SPACE_ID with HF_TOKEN"
        )
    if address is None:
        return
    if address.startswith(("http://", "https://")):
        if not os.environ.get("TRACKIO_WRITE_TOKEN") and "write_token=" not in address:
            raise ValueError(
                "trainer.logger: trackio needs the environment variable TRACKIO_WRITE_TOKEN for "
                "the server that TRACKIO_SERVER_URL names"
            )
        return
    from huggingface_hub import get_token

    if get_token() is None:
        raise ValueError(
            "trainer.logger: trackio needs the environment variable HF_TOKEN or a login with "
            "`hf auth login` for the Space that TRACKIO_SPACE_ID names"
        )


def environment(run_dir: Path) -> dict[str, str]:
    """Return variables that put the database into the run's folder."""
    return {"TRACKIO_DIR": str((run_dir / "trackio").resolve())}


def secrets(settings: TrackingConfig) -> tuple[str, ...]:
    """Return how the secret variables begin: none without a server, the Hub's only for a Space."""
    address = server(settings)
    if address is None:
        return ()
    return ("TRACKIO_",) if address.startswith(("http://", "https://")) else VARIABLES


VARIABLES = ("TRACKIO_", "HF_", "HUGGING")
TRACKIO = Tracker(("trackio",), open_view, check, VARIABLES, secrets, environment)
