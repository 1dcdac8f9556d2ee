"""A series from start to end: each run in its process, then one table and one report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.common.console import CONSOLE
from posttrain.runs.series.jobs import Command, Runner, run_all
from posttrain.runs.series.members import Member
from posttrain.runs.series.results import (
    Mode,
    Row,
    best_of,
    check_metric,
    evaluation_of,
    metric_value,
    mode_of,
    rows_of,
    table,
    write_results,
    write_series_report,
)
from posttrain.runs.series.state import Record, refuse_changed, training


@dataclass(frozen=True)
class Ranking:
    """The metric by which runs are compared."""

    metric: str | None = None
    mode: Mode | None = None

    @property
    def direction(self) -> Mode | None:
        """Which values are better; by the metric's name if it is not given."""
        return self.mode or (None if self.metric is None else mode_of(self.metric))


def folder_of(members: Sequence[Member]) -> Path:
    """Return the folder of a series."""
    return Path(members[0].config.trainer.output_dir)


def train_series(
    members: Sequence[Member],
    command: Command,
    ranking: Ranking = Ranking(),
    num_jobs: int = 1,
    retrain: bool = False,
) -> list[Row]:
    """Train all members that have not finished, and return a row for each.

    A failed run does not end the others. Raises ValueError before anything is trained if another
    call trains the series, if no run can write the metric, or if runs of it were trained with
    another config and `retrain` is not set.
    """
    check_metric(ranking.metric, members)
    folder = folder_of(members)
    with training(folder) as locks:
        if not retrain:
            refuse_changed(folder, list(members))
        done = checking(folder, ranking.metric, num_jobs > 1)
        runner = Runner(folder, command, locks, num_jobs, done=done)
        try:
            run_all(runner, iter(members))
        finally:
            rows = conclude(folder, members, ranking)
    return rows


def checking(folder: Path, metric: str | None, beside: bool) -> Callable[[Member, Record], None]:
    """Return what reports on a run that has ended, and refuses a metric that it did not write.

    A run that had others `beside` it has shown nothing on the console itself.
    """

    def done(member: Member, record: Record) -> None:
        if beside:
            words = f": {record.error}" if record.error else f" in {record.seconds:.0f} s"
            CONSOLE.print(f"{member.label}: {record.state}{words}", markup=False)
        if metric is not None and record.state == "finished":
            metric_value(metric, evaluation_of(folder / record.run)[2], member.label)

    return done


def conclude(
    folder: Path, members: Sequence[Member], ranking: Ranking, logs: Sequence[str] = ()
) -> list[Row]:
    """Print the table of a series, write its results and its report, and return the rows."""
    rows = rows_of(folder, members, ranking.metric)
    best = best_of(rows, ranking.direction) if ranking.direction else None
    if any(row.state != "waiting" for row in rows):
        CONSOLE.print(table(rows, ranking.metric))
    for row in rows:
        if row.error is not None:
            CONSOLE.print(f"{row.label} failed: {row.error}", markup=False)
    results = write_results(folder, rows, ranking.metric, ranking.direction, best)
    report = write_series_report(folder, rows, ranking.metric, ranking.direction, logs)
    if report is not None:
        CONSOLE.print(f"report: {report}", markup=False)
    CONSOLE.print(f"results: {results}", markup=False)
    return rows
