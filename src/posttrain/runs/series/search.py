"""A search for good values with optuna, whose trials are runs of a series.

The study is a SQLite file in the series' folder, which only this process writes. Its sampler is
seeded anew for each trial from the trial's number, so that a search that was killed and called
again proposes what an uninterrupted one would have proposed.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.model.folder import checkpoints_in
from posttrain.runs.resume import differences, free_keys
from posttrain.runs.series.grid import Axis, member_at
from posttrain.runs.series.jobs import Command, Job, Runner, run_all
from posttrain.runs.series.members import Member, series_name
from posttrain.runs.series.results import (
    TRIAL,
    Mode,
    Row,
    check_metric,
    evaluation_of,
    metric_value,
)
from posttrain.runs.series.series import Ranking, checking, conclude
from posttrain.runs.series.state import (
    Record,
    changed_files,
    files_of,
    read_state,
    resolved,
    training,
    write_series,
)

STUDY = "optuna.db"
RANDOM_TRIALS = 10
"""Trials before the sampler learns from earlier ones; optuna's default."""
UNPRUNED_TRIALS = 5
"""Finished trials before one is compared with their median; optuna's default."""


@dataclass(frozen=True)
class Search:
    """What is searched, and by which metric."""

    tree: Mapping[str, Any]
    """The recipe with the overrides that hold for all trials."""
    recipe: str
    axes: Sequence[Axis]
    fixed: Sequence[str]
    metric: str
    mode: Mode
    trials: int

    @property
    def name(self) -> str:
        """The name of the search's folder."""
        return f"{series_name(self.tree, self.recipe)}-search"

    def member(self, number: int, values: Mapping[str, Any]) -> Member:
        """Return the run of a trial."""
        written = [f"{axis.key}={text_of(axis, values[axis.key])}" for axis in self.axes]
        overrides = [*self.fixed, *written]
        label = f"{TRIAL}{number}"
        return member_at(self.tree, self.recipe, label, self.name, values, overrides)


def text_of(axis: Axis, value: Any) -> str:
    """Return a value as an override spells it."""
    spelled = (v.text for v in axis.values if v.value is value or v.value == value)
    return next(spelled, None) or repr(value)


def check_space(search: Search) -> list[Member]:
    """Return runs at the bounds of the space.

    Raises ValueError for a value that is not valid for its key, and for a metric that no run can
    write.
    """
    first = {axis.key: axis.samples[0] for axis in search.axes}
    members = [
        search.member(0, {**first, axis.key: value})
        for axis in search.axes
        for value in axis.samples
    ]
    check_metric(search.metric, members)
    return members


def run_search(search: Search, command: Command, num_jobs: int = 1) -> list[Row]:
    """Train trials until there are `search.trials`, and return a row for each.

    A trial whose evaluations are worse than the median of the earlier ones is ended early.
    """
    members = check_space(search)
    folder = Path(members[0].config.trainer.output_dir)
    with training(folder) as locks:
        begin(folder, search, members[0])
        drop_checkpoints(folder)
        study = Study(folder, search, num_jobs)
        report = checking(folder, search.metric, num_jobs > 1)

        def done(member: Member, record: Record) -> None:
            report(member, record)
            study.tell(member, record)

        runner = Runner(folder, command, locks, num_jobs, study.watch, done)
        try:
            run_all(runner, study.upcoming())
        finally:
            logs = [axis.key for axis in search.axes if axis.kind == "log"]
            ranking = Ranking(search.metric, search.mode)
            rows = conclude(folder, study.members(), ranking, logs)
    return rows


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of pruned runs, which are never resumed; all else of them stays."""
    for record in read_state(folder)[1].values():
        if record.state == "pruned":
            for checkpoint in checkpoints_in(folder / record.run):
                shutil.rmtree(checkpoint)


def begin(folder: Path, search: Search, sample: Member) -> None:
    """Note what is searched; raise ValueError if the folder holds another search."""
    config = resolved(sample)
    now: dict[str, Any] = {
        "space": [axis.words for axis in search.axes],
        "metric": search.metric,
        "mode": search.mode,
        "config": config,
        "files": files_of(config),
    }
    before = read_state(folder)[0]
    if before:
        varied = {axis.key for axis in search.axes} | free_keys()
        lines = [
            f"{name} was {before.get(name)}, now {now[name]}"
            for name in ("space", "metric", "mode")
            if before.get(name) != now[name]
        ]
        lines += differences(before.get("config", {}), config, varied)
        lines += changed_files(before.get("files", {}), now["files"])
        if lines:
            raise ValueError(
                f"{folder} holds another search ({'; '.join(lines[:3])}): repeat that one, or "
                "choose another trainer.output_dir or trainer.run_name"
            )
    write_series(folder, now)


class Study:
    """The optuna study of a search, and the trials that this process runs."""

    def __init__(self, folder: Path, search: Search, num_jobs: int) -> None:
        try:
            import optuna
        except ImportError:
            raise ValueError("the search needs optuna: pip install 'posttrain[sweep]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.folder, self.search, self.num_jobs = optuna, folder, search, num_jobs
        self.study = optuna.create_study(
            study_name=search.name,
            storage=database(folder / STUDY),
            direction="minimize" if search.mode == "min" else "maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS),
            load_if_exists=True,
        )
        self.trials: dict[str, Any] = {}
        self.read: dict[str, Lines] = {}
        self.failed = 0

    def upcoming(self) -> Iterator[Member]:
        """Yield the trials that a killed call left, then new ones; those that failed count once."""
        states = self.optuna.trial.TrialState
        for left in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            yield self._member(self.optuna.trial.Trial(self.study, left._trial_id))
        counted = (states.COMPLETE, states.PRUNED, states.RUNNING)
        while True:
            trials = self.study.get_trials(deepcopy=False, states=counted)
            if len(trials) + self.failed >= self.search.trials:
                return
            self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
            yield self._member(self.study.ask())

    def _sampler(self, number: int) -> Any:
        seed = self.search.tree.get("trainer", {}).get("seed", 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            return self.optuna.samplers.TPESampler(
                n_startup_trials=RANDOM_TRIALS,
                seed=(int(seed) * 100_003 + number) % 2**32,
                constant_liar=self.num_jobs > 1,  # trials in progress count as bad ones
            )

    def _member(self, trial: Any) -> Member:
        self.study.sampler = self._sampler(trial.number)  # a killed call may not have chosen all
        values = {axis.key: suggest(trial, axis) for axis in self.search.axes}
        member = self.search.member(trial.number, values)
        self.trials[member.label] = trial
        self.read[member.label] = Lines()
        return member

    def watch(self, job: Job) -> None:
        """Report new evaluations of a run, and end it if the pruner says so."""
        trial, lines = self.trials[job.member.label], self.read[job.member.label]
        for line in lines.new(job.metrics):
            value = line.get(self.search.metric)
            known = self.study._storage.get_trial(trial._trial_id).intermediate_values
            if not isinstance(value, int | float) or line["step"] in known:
                continue
            trial.report(float(value), line["step"])
            if not job.stopped and trial.should_prune():
                job.stop()

    def tell(self, member: Member, record: Record) -> None:
        """Note in the study how a trial ended; one that was interrupted stays open."""
        trial, states = self.trials[member.label], self.optuna.trial.TrialState
        if record.state == "pruned":
            self.study.tell(trial, state=states.PRUNED)
            drop_checkpoints(self.folder)
        elif record.state == "finished":
            metrics = evaluation_of(self.folder / record.run)[2]
            value = metric_value(self.search.metric, metrics, member.label)
            if math.isnan(value):
                self.study.tell(trial, state=states.FAIL)
            else:
                self.study.tell(trial, value)
        elif record.state == "failed":
            self.failed += 1
            self.study.tell(trial, state=states.FAIL)

    def members(self) -> list[Member]:
        """Return the runs of all trials, of earlier calls too."""
        rows = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.params.keys() >= {axis.key for axis in self.search.axes}:
                values = {a.key: chosen(a, trial.params[a.key]) for a in self.search.axes}
                rows.append(self.search.member(trial.number, values))
        return rows


def database(file: Path) -> str:
    """Return the address of a SQLite file, whatever its path contains."""
    path = str(file.resolve()).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}".replace("{", "{{").replace("}", "}}")


def suggest(trial: Any, axis: Axis) -> Any:
    """Return the value that a trial has, or now gets, on an axis."""
    if axis.kind == "int":
        return trial.suggest_int(axis.key, int(axis.low), int(axis.high))
    if axis.kind == "choice":
        return chosen(axis, trial.suggest_categorical(axis.key, [v.text for v in axis.values]))
    return trial.suggest_float(axis.key, axis.low, axis.high, log=axis.kind == "log")


def chosen(axis: Axis, parameter: Any) -> Any:
    """Return the value that a parameter of a trial stands for."""
    if axis.kind != "choice":
        return parameter
    return next(value.value for value in axis.values if value.text == parameter)


@dataclass
class Lines:
    """How far a growing file has been read; a resumed run replaces the file."""

    file: int = 0
    offset: int = 0
    kept: bytes = field(default=b"")

    def new(self, path: Path) -> list[dict[str, Any]]:
        """Return the objects in the lines that were completed since the last call."""
        try:
            with path.open("rb") as handle:
                status = path.stat()
                if status.st_ino != self.file or status.st_size < self.offset:
                    self.file, self.offset, self.kept = status.st_ino, 0, b""
                handle.seek(self.offset)
                content = handle.read()
        except OSError:
            return []
        self.offset += len(content)
        *whole, self.kept = (self.kept + content).split(b"\n")
        try:
            return [json.loads(line) for line in whole if line.strip()]
        except ValueError:  # another file with the number of the old one: read it from the start
            self.offset, self.kept = 0, b""
            return []
