"""The results of evaluations below a folder, and the paired test between two of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain.board.catalogue import Signature, sign
from posttrain.evaluation.compare import SAME_SETTINGS, compare_files
from posttrain.evaluation.store import RESULTS
from posttrain.runs.listing import DAMAGE, is_number

STAGES = "evaluation.json"
"""The file of a pipeline's stage: its model on the pipeline's held-out problems."""
SKIPPED = ("checkpoint-", ".")
LARGEST = 256 << 20  # bytes
OF_THE_RESULT = ("accuracy", "ci95", "num_problems", "outcomes", "stages", "settings_hash")

Json = dict[str, Any]


@dataclass
class Results:
    """The files of results below `root`, each read again only when it changes."""

    root: Path
    read: dict[Path, tuple[Signature, dict[str, Json]]] = field(default_factory=dict)

    def table(self, runs: dict[str, Path]) -> Json:
        """Return every result with its tasks, and the run in whose folder it is, if any."""
        folders = {folder: name for name, folder in runs.items()}
        found = []
        for file in result_files(self.root):
            tasks = self._tasks(file)
            if not tasks:
                continue
            name = file.relative_to(self.root)
            inside = [folders[place] for place in file.parents if place in folders]
            found.append(
                {
                    "id": name.as_posix(),
                    "name": shown(name),
                    "run": inside[0] if inside else None,
                    "tasks": {task: described(result) for task, result in tasks.items()},
                }
            )
        return {"results": found}

    def compare(self, a: str, b: str) -> Json:
        """Return the paired comparison of two results, task by task.

        Raise ValueError if they have no problems in common, KeyError for an unknown name.
        """
        files = {file.relative_to(self.root).as_posix(): file for file in result_files(self.root)}
        compared = compare_files(files[a], files[b])
        rows = [asdict(comparison) for comparison in compared.values()]
        return {"rows": rows, "left_out": compared.left_out}

    def _tasks(self, file: Path) -> dict[str, Json]:
        signature = sign(file)
        known = self.read.get(file)
        if known is None or known[0] != signature:
            self.read[file] = known = ((signature,), tasks_in(file))
        return known[1]


def result_files(root: Path) -> list[Path]:
    """Return the files that `posttrain eval --output` and pipelines have written."""
    found = []
    for place, folders, files in os.walk(root):
        samples = {name.removesuffix(".samples") for name in folders if name.endswith(".samples")}
        for name in files:
            if name in (RESULTS, STAGES) or (name.endswith(".json") and name[:-5] in samples):
                found.append(Path(place, name))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(SKIPPED) and not name.endswith(".samples")
        ]
    return sorted(found)


def tasks_in(file: Path) -> dict[str, Json]:
    """Return the results in a file by task; none if it is damaged or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if size_of(file) <= LARGEST else None
    except DAMAGE:
        return {}
    if not isinstance(content, dict):
        return {}
    if file.name == STAGES:
        stages = content.get("stages")
        stages = stages if isinstance(stages, list) else []
        content = {str(s.get("name")): s for s in stages if isinstance(s, dict)}
    return {task: r for task, r in content.items() if isinstance(r, dict) and is_result(r)}


def size_of(file: Path) -> int:
    """Return a file's bytes."""
    return file.stat().st_size


def is_result(result: Json) -> bool:
    """Return whether a part of a file is a task's result: it counts the problems or rows."""
    return "num_problems" in result or "num_rows" in result


def described(result: Json) -> Json:
    """Return what the page shows of a task's result."""
    count = result.get("num_problems", result.get("num_rows"))
    rest = {name: value for name, value in result.items() if name not in OF_THE_RESULT}
    figures = {
        name: value
        for name, value in rest.items()
        if is_number(value) and name not in SAME_SETTINGS
    }
    settings = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in rest.items()
        if name not in figures and not name.endswith("_ci95")
    }
    return {
        "accuracy": result.get("accuracy"),
        "ci95": result.get("ci95"),
        "num_problems": count,
        "paired": isinstance(result.get("outcomes"), dict),
        "figures": figures,
        "settings": settings,
    }


def shown(name: Path) -> str:
    """Return a result's name without what all have in common."""
    if name.name not in (RESULTS, STAGES):
        return name.with_suffix("").as_posix()
    return name.parent.as_posix() if name.parent != Path() else name.name
