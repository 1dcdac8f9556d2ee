"""Every error about an export or a GGUF file says what to do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import posttrain

ROOT = Path(posttrain.__file__).parent
FILES = [*sorted((ROOT / "export").glob("*.py")), *sorted((ROOT / "model/gguf").glob("*.py"))]
VERBS = (
    "ask check copy evaluate export free give install join leave make mend merge name put remove "
    "save set take train use write"
)
REMEDY = re.compile(rf"(?:[:;,] |: or |\band )(?:{VERBS.replace(' ', '|')})\b")
EXPECTED = re.compile(
    r"expected |no such file|needs? (?:pip install|a token)|not_found|INSTEAD|FOLDER|is read$"
    r"|are read$|one is merged by|must be|str\(error\)|the hub did not take|is empty|already"
    r"|begin with GGUF|is a file, not|cannot be written to|cannot be made|no weight may be"
    r"|need a density|is \{problem\}$|holds \{reason\}$"
)
"""Messages whose remedy follows from what is expected, or is part of another message."""


def messages() -> list[tuple[str, str]]:
    """Return the place and the text of each ValueError or SettingError that is raised."""
    found = []
    for file in FILES:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            kind = ast.unparse(node.exc.func)
            if kind not in ("ValueError", "SettingError"):
                continue
            text = " ".join(text_of(argument) for argument in node.exc.args)
            found.append((f"{file.parent.name}/{file.name}:{node.lineno}", text))
    return found


def text_of(node: ast.expr) -> str:
    """Return a message with the code of what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{" + ast.unparse(node.value) + "}"
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


@pytest.mark.parametrize(("place", "text"), messages())
def test_a_message_says_what_to_do(place: str, text: str) -> None:
    assert REMEDY.search(text) or EXPECTED.search(text), f"{place}: {text}"


def test_the_check_sees_what_lacks_a_remedy() -> None:
    assert len(messages()) > 90
    for text in ("the tokenizer has 332 tokens, the embedding 330 rows", "{file} is damaged: x"):
        assert not REMEDY.search(text)
        assert not EXPECTED.search(text)
