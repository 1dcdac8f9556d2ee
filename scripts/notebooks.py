"""Run the notebooks in examples/notebooks/ and write their outputs into them.

    python scripts/notebooks.py                 # all
    python scripts/notebooks.py first_hour      # those named

Each runs in a folder of its own that is deleted afterwards. What changes from machine to machine
without telling a reader anything (times of execution, the version of Python) is left out, and a
hash of the code is added, by which a test finds outputs of other code. A notebook that fails stays
as it was. Needs the extra notebooks: pip install -e '.[notebooks]'.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
TIMEOUT = 900
"""Seconds that a cell may take."""


def executed(
    path: Path, folder: Path, constants: Mapping[str, object] | None = None, then: str = ""
) -> Any:
    """Return a notebook run in a folder; `constants` replace those of its parameters cell.

    `then` is the code of one more cell. Raises nbclient's CellExecutionError if a cell fails.
    """
    import nbclient
    import nbformat

    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = with_constants(cell.source, constants or {})
    if then:
        last: Any = nbformat.v4.new_code_cell(then)  # type: ignore[no-untyped-call]
        notebook.cells.append(last)
    nbclient.NotebookClient(
        notebook,
        timeout=TIMEOUT,
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
    ).execute()
    return notebook


def with_constants(source: str, constants: Mapping[str, object]) -> str:
    """Return lines of `NAME = value` with other values; raise ValueError for an unknown name."""
    lines = source.splitlines()
    names = [line.partition(" = ")[0] for line in lines]
    if unknown := set(constants) - set(names):
        raise ValueError(f"no constant {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    changed = {name: f"{name} = {value!r}" for name, value in constants.items()}
    return "\n".join(changed.get(name, line) for name, line in zip(names, lines))


def clean(notebook: Any) -> Any:
    """Remove from a notebook, in place, what tells a reader nothing, and return it."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "code_hash": code_hash(notebook),
    }
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if "metadata" in output:
                output.metadata = {}
    return notebook


def code_hash(notebook: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a notebook's code cells."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def main(names: list[str]) -> None:
    """Run and rewrite the notebooks of these names, or all."""
    import nbformat

    known = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no notebook {', '.join(unknown)}; there are {', '.join(known)}")
    for name in names or known:
        with tempfile.TemporaryDirectory() as folder:
            notebook = clean(executed(known[name], Path(folder)))
        temporary = known[name].with_suffix(".tmp")
        text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(known[name])
        print(known[name].name)


if __name__ == "__main__":
    main(sys.argv[1:])
