"""Sets the line numbers in the links of methods.md to where the functions are now.

python docs/lines.py
"""

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"\[`(\w+)`\]\(\.\./(src/[\w/.]+)#L(\d+)\)")


def line_of(name: str, file: str) -> int:
    """ValueError where the file defines no such function, or several."""
    lines = (HERE.parent / file).read_text().splitlines()
    found = [n for n, text in enumerate(lines, 1) if re.match(rf"\s*def {name}\(", text)]
    if len(found) != 1:
        raise ValueError(f"{file} defines {name} {len(found)} times")
    return found[0]


def corrected(page: str) -> str:
    return LINK.sub(lambda m: f"[`{m[1]}`](../{m[2]}#L{line_of(m[1], m[2])})", page)


if __name__ == "__main__":
    path = HERE / "methods.md"
    path.write_text(corrected(path.read_text()))
