"""The command line called in this process, and tiny recipes for it."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.cli.main import main

SCRATCH = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 300,
    "max_length": 512,
}
ROWS = [
    {"prompt": f"{a}+{b}", "completion": f"#### {a + b}", "answer": str(a + b)}
    for a in range(3)
    for b in range(3)
]
Capture = pytest.CaptureFixture[str]


def recipe(folder: Path, rows: Any = None, name: str = "run.yaml", **changes: Any) -> Path:
    """A tiny run whose every path lies in `folder`."""
    text = rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows or ROWS)
    (folder / "rows.jsonl").write_text(text)
    tree = {
        "model": {"scratch": SCRATCH},
        "data": {"path": str(folder / "rows.jsonl")},
        "trainer": {
            "type": "sft",
            "max_steps": 2,
            "batch_size": 4,
            "output_dir": str(folder / "out"),
        },
    }
    file = folder / name
    file.write_text(yaml.safe_dump(tree | changes))
    return file


def command(*arguments: Any) -> int:
    """The exit code of `posttrain arguments`, run in this process."""
    before = sys.argv
    sys.argv = ["posttrain", *map(str, arguments)]
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.argv = before
    return 0


def output_of(capsys: Capture, *arguments: Any) -> str:
    capsys.readouterr()
    assert command(*arguments) == 0
    return capsys.readouterr().out


def complaint(capsys: Capture, *arguments: Any) -> str:
    capsys.readouterr()
    assert command(*arguments) == 2
    return one_line(capsys.readouterr().err)


def one_line(stderr: str) -> str:
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in stderr
    return lines[0]


def state(folder: Path) -> dict[str, str]:
    """Every file with its hash."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
