"""The rows of a file that a model is asked with: read, named by their line, and checked.

Nothing here needs a tokenizer or a model, which take longer than everything else that can fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.common.errors import SettingError
from posttrain.common.files import expanded
from posttrain.data.contents import suffix_of
from posttrain.data.files import placed_rows, read_path
from posttrain.data.forms import standard_form
from posttrain.data.messages import messages_of
from posttrain.data.rows import Row, numbered, rename_columns
from posttrain.data.templates import fill, template_text
from posttrain.data.verl import from_verl
from posttrain.model.folder import is_adapter, resolve_model_path
from posttrain.runs.inference import InferenceConfig

FIX = "name it with columns, for example prompt=question"


def read_rows(source: str, config: InferenceConfig) -> tuple[list[str], list[Row]]:
    """Return the place and the row of each row of a file, folder or glob, in posttrain's columns.

    Raises ValueError that names a malformed row by file and line."""
    if config.prompt_template is not None:
        try:
            template_text(config.prompt_template)
        except SettingError as error:
            raise error.renamed("prompt_template") from None
    location = Path(expanded(source))
    if location.is_file():
        if suffix_of(location) == ".txt":
            raise ValueError(
                f"{source} is one text: write each prompt into a line of a .jsonl file, as "
                '{"prompt": "..."}'
            )
        placed = placed_rows(location, config.split)
    else:
        placed = numbered(read_path(source, config.split), source)
    places, rows = [], []
    for place, row in placed:
        places.append(place)
        rows.append(_read(place, row, config))
    if not rows:
        raise ValueError(f"{source}: no rows")
    return places, rows


def _read(place: str, row: Row, config: InferenceConfig) -> Row:
    if config.columns:
        row = rename_columns(row, config.columns, place)
    if "reward_model" in row:
        row = from_verl(row)
    try:
        row = standard_form(row)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if config.prompt_template is None:
        return row
    if "messages" in row:
        raise ValueError(
            f"{place}: the row has messages, which no prompt_template fills: leave one of them out"
        )
    return fill(config.prompt_template, row, place, FIX)


def check_rows(places: Sequence[str], rows: Sequence[Row], written: Sequence[str]) -> None:
    """Raise ValueError naming a row without a readable prompt, or with a column that is `written`.

    A column is never replaced: it may be what completions are compared with."""
    for place, row in zip(places, rows, strict=True):
        columns = [name for name in ("prompt", "messages") if name in row]
        if not columns:
            raise ValueError(
                f"{place}: expected the column prompt or messages, got "
                f"{', '.join(map(str, row)) or 'none'} ({FIX})"
            )
        if len(columns) == 1:  # of both, the chat template decides which one is read
            try:
                if not messages_of(row, columns[0]):
                    raise ValueError(f"{columns[0]} is empty")
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
        for name in written:
            if name in row:
                raise ValueError(
                    f"{place}: the row has a column {name}, which the completions are written "
                    f"with: rename it, for example with columns reference={name}"
                )


def adapters_of(places: Sequence[str], rows: Sequence[Row]) -> list[str | None]:
    """Return the folder that the column adapter of each row names, a run's being its checkpoint.

    None, or an empty text as CSV writes it, is no adapter. Raises ValueError naming a row whose
    column names none."""
    known: dict[str, str] = {}
    folders: list[str | None] = []
    for place, row in zip(places, rows, strict=True):
        name = row.get("adapter")
        if name is None or name == "":
            folders.append(None)
            continue
        if not isinstance(name, str):
            raise ValueError(f"{place}: adapter must be the text of a path, got {name!r}")
        if name not in known:
            try:
                known[name] = resolve_model_path(name)
            except ValueError as error:
                raise ValueError(f"{place}: adapter: {error}") from None
            if not is_adapter(known[name]):
                raise ValueError(
                    f"{place}: the column adapter names {name[:200]}, which holds no adapter: "
                    "correct the path, or rename the column if it means something else"
                )
        folders.append(known[name])
    return folders
