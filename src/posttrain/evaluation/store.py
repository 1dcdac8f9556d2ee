"""The results file, written task by task, and the files of unfinished tasks next to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.common.errors import SettingError
from posttrain.common.files import sha256, write_text
from posttrain.model.folder import resolve_model_path

RESULTS = "results.json"


def results_file(output: Path) -> Path:
    """Return the file itself, or results.json in a folder."""
    return output if output.suffix == ".json" else output / RESULTS


def samples_file(output: Path, task: str) -> Path:
    """Return the file of a task's completions, finished or not."""
    file = results_file(output)
    return file.with_name(f"{file.stem}.samples") / f"{task}.jsonl"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return 16 hex digits of the SHA-256 of settings as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def contents_hash(place: str | None) -> str | None:
    """Return a hash of a file's content or a model folder's files; for a run, its checkpoint's."""
    if place is None:
        return None
    path = Path(resolve_model_path(place))
    kinds = (".safetensors", ".json", ".jinja")
    files = [path] if path.is_file() else sorted(f for f in path.glob("*") if f.suffix in kinds)
    return settings_hash({file.name: sha256(file) for file in files})


def read_results(output: Path) -> dict[str, dict[str, Any]]:
    """Return results by task, none without a file; raise SettingError if it is another file."""
    file = results_file(output)
    if not file.is_file():
        return {}
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        problem = f"{file} is not valid JSON ({error}): give another"
        raise SettingError("output", problem) from None
    if not isinstance(results, dict) or not all(isinstance(r, dict) for r in results.values()):
        raise SettingError("output", f"{file} holds no results of posttrain eval: give another")
    return results


def is_finished(output: Path, task: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a task is finished.

    Raises SettingError if the task was finished or begun with other settings.
    """
    file, begun = results_file(output), begun_file(output, task)
    finished = task in (results := read_results(output))
    if finished:
        before = results[task]
    elif begun.is_file():
        file, before = begun, json.loads(begun.read_text())
    else:
        return False
    other = differing(before, settings)
    if other:
        raise SettingError(
            "output",
            f"{file} holds {task} with other settings ({'; '.join(other)}): give another, or "
            "delete it",
        )
    return finished


def begin(output: Path, task: str, settings: Mapping[str, Any]) -> Path:
    """Return the file for the task's completions, after writing its settings next to it."""
    file = samples_file(output, task)
    file.parent.mkdir(parents=True, exist_ok=True)
    mark = begun_file(output, task)
    if not mark.is_file():
        file.unlink(missing_ok=True)  # completions of a result that was deleted
        write_text(mark, json.dumps(settings, indent=1))
    return file


def finish(output: Path, task: str, result: Mapping[str, Any]) -> None:
    """Add a task's result to the results file; the task is no longer unfinished."""
    file = results_file(output)
    write_text(file, json.dumps(read_results(output) | {task: result}, indent=1))
    begun_file(output, task).unlink(missing_ok=True)


def begun_file(output: Path, task: str) -> Path:
    """Return the file with the settings of an unfinished task."""
    return samples_file(output, task).with_suffix(".begun.json")


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences in words, between values as JSON keeps them."""
    lines = []
    for name, value in json.loads(json.dumps(now)).items():
        old = before.get(name)
        if old != value:
            lines.append(f"{name} was {_short(old)}, is {_short(value)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
