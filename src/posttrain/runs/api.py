"""The functions of `import posttrain`: the commands, from Python."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from posttrain.common import distributed
from posttrain.common.console import CONSOLE
from posttrain.common.files import expanded
from posttrain.common.secrets import load_env_files
from posttrain.common.suggest import did_you_mean
from posttrain.config.recipe import read_yaml, set_key
from posttrain.evaluation.compare import Comparisons, compare_results
from posttrain.evaluation.console import Results
from posttrain.evaluation.store import read_results, results_file
from posttrain.evaluation.tasks import Settings
from posttrain.rollout.check import check_at_least
from posttrain.runs.config import Config, parse_config
from posttrain.runs.describe import describe
from posttrain.runs.evaluate import evaluate as evaluate_on_ranks
from posttrain.runs.memory import estimate
from posttrain.runs.plan import plan
from posttrain.runs.preview import show
from posttrain.runs.resume import resuming
from posttrain.runs.run import Run
from posttrain.runs.train import train as run_training
from posttrain.tracking.plot import Plot, curves
from posttrain.tracking.report import run_names
from posttrain.tracking.report import write_report as write_page

Source = str | os.PathLike[str] | Mapping[str, Any]
"""A recipe file, or a nested dict with its keys."""
Runs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, os.PathLike[str]]
"""A run or its folder, several of them, or a dict from names of your own to them."""


def load_config(source: Source, /, **overrides: Any) -> Config:
    """Return the config of a recipe file or a nested dict.

    An override sets keys of a section, `trainer={"max_steps": 10}`, or one dotted key,
    `**{"trainer.max_steps": 10}`. Raises ValueError with one line that says what to fix.
    """
    if isinstance(source, Mapping):
        tree, name = _copy(source, ""), "config"
    else:
        tree, name = read_yaml(os.fspath(source)), os.fspath(source)
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            tree[key] = _merged(tree[key], value, key)
        else:
            set_key(tree, key, _copy(value, key), key)
    return parse_config(tree, name)


def train(
    config: Config | Source,
    /,
    run_dir: str | Path | None = None,
    resume: bool = False,
    **overrides: Any,
) -> Run:
    """Train and return the finished run.

    `config` is a Config, a recipe file or a nested dict; overrides are as in `load_config`. With
    `resume`, the newest run of this config continues; without one, a new run starts. Under
    torchrun every rank calls it. Variables of a .env file beside the recipe or in the working
    directory are set first. Raises ValueError with one line for whatever is wrong with the
    config, the files or the data.
    """
    config = _as_config(config, overrides)
    if resume:
        config = resuming(config)
    if run_dir is not None and (resume or config.trainer.resume_from_checkpoint is not None):
        raise ValueError("a resumed run stays in its folder: leave run_dir out")
    return Run(
        run_training(config, None if run_dir is None else Path(expanded(os.fspath(run_dir))))
    )


def dry_run(config: Config | Source, /, **overrides: Any) -> None:
    """Check everything that `train` would, and print the sizes, the rows and the memory.

    Nothing is trained or written. Arguments and errors are those of `train`.
    """
    planned = plan(_as_config(config, overrides))
    CONSOLE.print(describe(planned), markup=False)
    CONSOLE.print(str(estimate(planned)), markup=False)


def preview(config: Config | Source, /, num_rows: int = 3, **overrides: Any) -> None:
    """Print the first rows as the model sees them, the trained tokens marked, and their lengths.

    Arguments and errors are those of `train`.
    """
    check_at_least(1, num_rows=num_rows)
    show(_as_config(config, overrides), num_rows)


def evaluate(
    model: str | os.PathLike[str],
    tasks: str | Sequence[str] | Mapping[str, str | os.PathLike[str]],
    /,
    output: str | Path | None = None,
    samples: str | Path | None = None,
    rank_timeout: float = distributed.TIMEOUT,
    **settings: Any,
) -> Results:
    """Return the results of a model by task, as `posttrain eval` writes them.

    `model` is a hub name, a folder or a Run; `tasks` are names, NAME=PATH or a dict from names to
    paths; `settings` are the fields of `evaluation.tasks.Settings`: max_samples, temperature,
    num_samples, shots, ... Under torchrun every rank calls it, and waits `rank_timeout` seconds for
    the others; with `output`, which only rank 0 reads and writes, the other ranks get {}.
    """
    known = [field.name for field in fields(Settings)]
    for name in settings:
        if name not in known:
            raise ValueError(f"no setting {name!r}; {did_you_mean(name, known)}")
    if isinstance(tasks, Mapping):
        tasks = [f"{name}={os.fspath(path)}" for name, path in tasks.items()]
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise ValueError("no task to evaluate on: name at least one, such as gsm8k")
    for name in ("best_of", "toxic_words"):
        if settings.get(name) is not None:
            settings[name] = expanded(os.fspath(settings[name]))
    results = evaluate_on_ranks(
        os.fspath(model),
        names,
        Settings(**settings),
        None if output is None else Path(expanded(os.fspath(output))),
        None if samples is None else Path(expanded(os.fspath(samples))),
        rank_timeout,
    )
    return Results({} if distributed.rank() != 0 and output is not None else results)


def compare(
    a: Mapping[str, dict[str, Any]] | str | os.PathLike[str],
    b: Mapping[str, dict[str, Any]] | str | os.PathLike[str],
    /,
) -> Comparisons:
    """Return the comparisons of two models on the same problems by task, with a paired test.

    `a` and `b` are what `evaluate` returned, files of results, or folders that hold one. Raises
    ValueError if they have no problem in common.
    """
    (first, first_name), (second, second_name) = _results(a, "A"), _results(b, "B")
    return compare_results(first, second, first_name, second_name)


def plot(runs: Runs, /, *metrics: str) -> Plot:
    """Return curves of metrics over the steps, one panel for each metric, a colour for each run.

    A notebook shows them as a picture. `runs` is a run, several, or a dict from names to runs.
    Raises ValueError if no run has a metric.
    """
    return curves(_by_name(runs), metrics)


def write_report(runs: Runs, /, output: str | Path | None = None) -> Path:
    """Write a self-contained HTML page about a run, or about several, and return its path.

    One run's page is its report.html by default; several need an `output`.
    """
    file = None if output is None else Path(expanded(os.fspath(output)))
    by_name = _by_name(runs)
    return write_page(list(by_name.values()), file, names=list(by_name))


def _as_config(config: Config | Source, overrides: dict[str, Any]) -> Config:
    """Return the config with its overrides, after setting the variables of .env files."""
    if isinstance(config, Config | Mapping):
        load_env_files(Path())
    else:
        load_env_files(Path(expanded(os.fspath(config))).parent, Path())
    if not isinstance(config, Config):
        return load_config(config, **overrides)
    if overrides:
        raise ValueError(
            "overrides apply to a recipe or a dict: use config.model_copy for a Config"
        )
    return config


def _results(source: Any, name: str) -> tuple[Mapping[str, dict[str, Any]], str]:
    """Return results by task, and their name for messages."""
    if isinstance(source, Mapping):
        return source, name
    file = results_file(Path(expanded(os.fspath(source))))
    results = read_results(file)
    if not results:
        raise ValueError(f"{file} has no results of posttrain.evaluate: pass output=... to it")
    return results, str(file)


def _by_name(runs: Runs) -> dict[str, Path]:
    """Return the folders of runs by name: the one given, or what tells the folders apart."""
    if isinstance(runs, Mapping):
        return {str(name): Run(Path(run)).folder for name, run in runs.items()}
    given = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    folders = [Run(Path(run)).folder for run in given]
    return dict(zip(run_names(folders), folders)) if folders else {}


def _merged(tree: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the tree with the changes merged in, section by section; `where` names it."""
    merged = dict(tree)
    for key, value in changes.items():
        name = f"{where}.{key}"
        is_section = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value, name) if is_section else _copy(value, name)
    return merged


def _copy(value: Any, where: str) -> Any:
    """Return a deep copy with plain dicts and lists, paths as text, and numbers as Python's.

    Raises ValueError for code and for a model, which a run could not save with its config; `where`
    is the key's name.
    """
    if isinstance(value, Mapping):
        return {k: _copy(inner, f"{where}.{k}" if where else str(k)) for k, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(inner, f"{where}.{i}") for i, inner in enumerate(value)]
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if inspect.isroutine(value):
        raise ValueError(
            f"{where}: a function is not saved with a run's config: write it into a Python file "
            "and name that (in a notebook, %%writefile reward.py in the first line of its cell)"
        )
    if callable(value) and not isinstance(value, os.PathLike):
        raise ValueError(f"{where}: expected text, numbers or sections, got {type(value).__name__}")
    return os.fspath(value) if isinstance(value, os.PathLike) else value
