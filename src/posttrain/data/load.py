"""The rows of a data section: from a named data set, files, or the hub."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import ValidationError, validate_call

from posttrain.common.errors import SettingError
from posttrain.common.registry import load as load_entry
from posttrain.common.suggest import did_you_mean
from posttrain.data.config import DataConfig
from posttrain.data.files import read_path
from posttrain.data.forms import standard_forms
from posttrain.data.origin import downloaded
from posttrain.data.rows import Row, numbered, rename_columns
from posttrain.data.sets import DATASETS
from posttrain.data.templates import fill
from posttrain.data.verl import from_verl


def load_rows(config: DataConfig) -> list[Row]:
    """Return the rows of a data section, with columns, max_samples and prompt_template applied."""
    if config.name is not None:
        rows = _named(config)
    else:
        rows = [from_verl(row) for row in read_path(config.path or "", config.split)]
    source = config.name or config.source
    if not rows:
        of_path = "" if None in (config.name, config.path) else f" of {config.source}"
        raise ValueError(f"{source}: no rows in the split {config.split}{of_path}")
    if config.columns:
        rows = [rename_columns(row, config.columns, str(source)) for row in rows]
    rows = standard_forms(rows[: config.max_samples], str(source))
    if config.prompt_template is None:
        return rows
    return [fill(config.prompt_template, row, where) for where, row in numbered(rows, source)]


def _named(config: DataConfig) -> list[Row]:
    if config.name not in DATASETS:
        hint = did_you_mean(config.name, DATASETS)
        raise SettingError("data.name", f"no data set {config.name!r}; {hint}")
    load: Any = load_entry(DATASETS[config.name])
    options = dict(config.options)
    if config.path is not None:
        options["path"] = config.path
    accepted = [p for p in inspect.signature(load).parameters if p != "split"]
    if "path" in accepted and "path" not in options and (folder := downloaded(config.name)):
        options["path"] = str(folder)
    for option in options:
        if option not in accepted:
            raise SettingError(
                "data.options",
                f"{config.name} has no option {option!r}; known: {', '.join(accepted)}",
            )
    try:
        rows: list[Row] = validate_call(load)(config.split, **options)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingError(
            f"data.options.{first['loc'][0]}", f"{first['msg'].lower()} (got {first['input']!r})"
        ) from None
    return rows
