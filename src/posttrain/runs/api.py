"""The functions of `import posttrain`: the commands, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from posttrain.common import distributed
from posttrain.common.files import expanded
from posttrain.common.secrets import load_env_files
from posttrain.common.suggest import did_you_mean
from posttrain.config.recipe import read_yaml, set_key
from posttrain.evaluation.evaluate import evaluate_tasks
from posttrain.evaluation.tasks import Settings
from posttrain.runs.config import Config, parse_config
from posttrain.runs.run import Run
from posttrain.runs.train import train as run_training

Source = str | os.PathLike[str] | Mapping[str, Any]
"""A recipe file, or a nested dict with its keys."""


def load_config(source: Source, /, **overrides: Any) -> Config:
    """Return the config of a recipe file or a nested dict.

    An override sets keys of a section, `trainer={"max_steps": 10}`, or one dotted key,
    `**{"trainer.max_steps": 10}`. Raises ValueError with one line that says what to fix.
    """
    if isinstance(source, Mapping):
        tree, name = _copy(source), "config"
    else:
        tree, name = read_yaml(os.fspath(source)), os.fspath(source)
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            tree[key] = _merged(tree[key], value)
        else:
            set_key(tree, key, _copy(value), key)
    return parse_config(tree, name)


def train(config: Config | Source, /, run_dir: str | Path | None = None, **overrides: Any) -> Run:
    """Train and return the finished run.

    `config` is a Config, a recipe file or a nested dict; overrides are as in `load_config`. Under
    torchrun every rank calls it. Variables of a .env file beside the recipe or in the working
    directory are set first. Raises ValueError with one line for whatever is wrong with the
    config, the files or the data.
    """
    beside = [] if isinstance(config, Config | Mapping) else [Path(os.fspath(config)).parent]
    load_env_files(*beside, Path())
    if not isinstance(config, Config):
        config = load_config(config, **overrides)
    elif overrides:
        raise ValueError(
            "overrides apply to a recipe or a dict: use config.model_copy for a Config"
        )
    return Run(
        run_training(config, None if run_dir is None else Path(expanded(os.fspath(run_dir))))
    )


def evaluate(
    model: str | os.PathLike[str],
    tasks: str | Sequence[str] | Mapping[str, str | os.PathLike[str]],
    /,
    output: str | Path | None = None,
    samples: str | Path | None = None,
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Return the results of a model by task, as `posttrain eval` writes them.

    `model` is a hub name, a folder or a Run; `tasks` are names, NAME=PATH or a dict from names to
    paths; `settings` are the fields of `evaluation.tasks.Settings`: max_samples, temperature,
    num_samples, shots, ... Under torchrun every rank calls it; with `output`, which only rank 0
    reads and writes, the other ranks get {}.
    """
    known = [field.name for field in fields(Settings)]
    for name in settings:
        if name not in known:
            raise ValueError(f"no setting {name!r}; {did_you_mean(name, known)}")
    if isinstance(tasks, Mapping):
        tasks = [f"{name}={os.fspath(path)}" for name, path in tasks.items()]
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    for name in ("best_of", "toxic_words"):
        if settings.get(name) is not None:
            settings[name] = expanded(os.fspath(settings[name]))
    results = evaluate_tasks(
        os.fspath(model),
        names,
        Settings(**settings),
        None if output is None else Path(expanded(os.fspath(output))),
        None if samples is None else Path(expanded(os.fspath(samples))),
    )
    return {} if distributed.rank() != 0 and output is not None else results


def _merged(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree with the changes merged in, section by section."""
    merged = dict(tree)
    for key, value in changes.items():
        is_section = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if is_section else _copy(value)
    return merged


def _copy(value: Any) -> Any:
    """Return a deep copy with plain dicts and lists, and paths as text."""
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
