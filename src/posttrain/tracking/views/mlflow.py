"""MLflow: a database in the run's folder, or a server.

The database is written again from the start. A server's run is found by a tag and gets the points
that it lacks; its parameters, which MLflow never lets change, are logged once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.report import flatten
from posttrain.tracking.views.view import Facts, Line, State, Tracker

METRICS_AT_ONCE, PARAMETERS_AT_ONCE = 1000, 100
LONGEST_NAME, LONGEST_VALUE = 250, 6000
TAG = "posttrain.id"

REFUSED = r"[^\w\-. /]|^[/.]|/$|/(?=/)|(?<=/)\.(?=\.?(?:/|$))"
"""What MLflow refuses in a name: other characters, and parts that are not those of a plain path."""
ESCAPED = re.compile(rf"(?P<refused>{REFUSED})|_(?=(?:at|x[0-9a-f]+)(?:_|{REFUSED}))")
"""What is written differently: also a `_` that would read as the start of an escape."""


class MlflowView:
    """A run of MLflow, and the steps of each metric that it had when it was opened."""

    def __init__(self, client: Any, run_id: str, known: dict[str, set[int]]) -> None:
        self.client, self.run_id, self.known = client, run_id, known
        self.last_time: float | None = None

    def add(self, lines: Sequence[Line]) -> None:
        """Log the points that are not known."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, round(line.time * 1000), line.step)
            for line in lines
            for key, value in ((safe_name(name), value) for name, value in line.metrics.items())
            if line.step not in self.known.get(key, ())
        ]
        for i in range(0, len(metrics), METRICS_AT_ONCE):
            self.client.log_batch(self.run_id, metrics=metrics[i : i + METRICS_AT_ONCE])
        self.last_time = lines[-1].time if lines else self.last_time

    def close(self, state: State) -> None:
        """Record how and when the run ended."""
        end = None if self.last_time is None else round(self.last_time * 1000)
        self.client.set_terminated(self.run_id, state.upper(), end)


def open_view(facts: Facts) -> MlflowView:
    """Return the view, of a new database or of the server's run with this id."""
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient
    from mlflow.entities import Param

    address, artifacts = server(facts.settings), None
    if address is None:
        for file in facts.run_dir.glob("mlflow.db*"):
            file.unlink()
        do_not_wait_for_disk()
        os.chdir(facts.run_dir)  # a path with ? or # in it is no address
        address, artifacts = "sqlite:///mlflow.db", (facts.run_dir / "mlflow").as_uri()
    client = MlflowClient(address, address)
    run = find_or_create(client, facts, artifacts)
    known = {
        key: {point.step for point in client.get_metric_history(run.info.run_id, key)}
        for key in run.data.metrics
    }
    parameters = {safe_name(k): short(v) for k, v in flatten(facts.config).items()}
    new = [Param(k, v) for k, v in parameters.items() if k not in run.data.params]
    for i in range(0, len(new), PARAMETERS_AT_ONCE):
        client.log_batch(run.info.run_id, params=new[i : i + PARAMETERS_AT_ONCE])
    return MlflowView(client, run.info.run_id, known)


def do_not_wait_for_disk() -> None:
    """Make every database of this process leave it to the system when its file is on disk.

    A killed process loses nothing by that. What a power cut may damage can be written again, and
    the tables alone are made in some 60 transactions.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "connect", lambda c, record: c.execute("PRAGMA synchronous = OFF"))


def find_or_create(client: Any, facts: Facts, artifacts: str | None) -> Any:
    """Return the run that has this id as a tag, set to running; a new one if there is none."""
    from mlflow.exceptions import MlflowException

    project = facts.settings.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "posttrain"
    experiment = client.get_experiment_by_name(project)
    if experiment is None:
        try:
            experiment_id = client.create_experiment(project, artifacts)
        except MlflowException:  # another run has made it in the meantime
            experiment_id = client.get_experiment_by_name(project).experiment_id
    else:
        experiment_id = experiment.experiment_id
    found = client.search_runs([experiment_id], f"tags.`{TAG}` = '{facts.id}'")
    if found:
        client.update_run(found[0].info.run_id, "RUNNING")
        return client.get_run(found[0].info.run_id)
    tags = {TAG: facts.id, "mlflow.source.name": "posttrain", **dict.fromkeys(named(facts), "true")}
    if facts.settings.group:
        tags["group"] = facts.settings.group
    if facts.method:
        tags["method"] = facts.method
    if facts.commit:
        tags["mlflow.source.git.commit"] = facts.commit
    return client.create_run(experiment_id, tags=tags, run_name=facts.name)


def named(facts: Facts) -> list[str]:
    """Return the run's tags as names of MLflow's tags."""
    return [safe_name(tag) for tag in facts.settings.tags]


def safe_name(name: str) -> str:
    """Return a name that MLflow takes; pass@1 becomes pass_at_1. Different names stay different."""
    name = ESCAPED.sub(_escape, name)
    if not name or len(name) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return f"{name[:200].rstrip('/.')}_h{digest}"
    return name


def _escape(match: re.Match[str]) -> str:
    return "_at_" if match[0] == "@" else f"_x{ord(match[0]):x}_"


def short(value: str) -> str:
    """Return a parameter's value, its end cut off if it is longer than MLflow takes."""
    return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 2]} …"


def server(settings: TrackingConfig) -> str | None:
    """Return the address of the server; None for the database in the run's folder."""
    return None if settings.mode == "offline" else os.environ.get("MLFLOW_TRACKING_URI") or None


def check(settings: TrackingConfig) -> None:
    """Raise ValueError if there should be a server and none is named."""
    if settings.mode == "online" and server(settings) is None:
        raise ValueError(
            "tracking.mode: online needs the environment variable MLFLOW_TRACKING_URI for mlflow, "
            "for example http://host:5000"
        )


def environment(run_dir: Path) -> dict[str, str]:
    """Return variables against reports of use, printed addresses and minutes of silent retries."""
    return {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def secrets(settings: TrackingConfig) -> tuple[str, ...]:
    """Return how the secret variables begin: none without a server."""
    return () if server(settings) is None else VARIABLES


VARIABLES = ("MLFLOW_", "DATABRICKS_", "AWS_", "AZURE_", "GOOGLE_")
PACKAGES = ("mlflow-skinny", "sqlalchemy", "alembic")
MLFLOW = Tracker(PACKAGES, open_view, check, VARIABLES, secrets, environment)
