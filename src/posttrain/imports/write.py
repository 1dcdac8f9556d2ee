"""The recipe of an import as YAML with comments, and the table of what became of each key."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from posttrain.imports.draft import FATES, Draft, Line

SECTIONS = (
    "model",
    "data",
    "length",
    "trainer",
    "rollout",
    "reward",
    "reference",
    "eval",
    "distributed",
)
WIDTH = 96


def tree_of(draft: Draft) -> dict[str, Any]:
    """Return the recipe as nested sections, in the order of docs/reference/config.md."""
    tree: dict[str, Any] = {}
    order = {name: place for place, name in enumerate(SECTIONS)}
    first = ("type", "name")
    for key in sorted(
        draft.recipe, key=lambda k: (order[k.partition(".")[0]], k.rpartition(".")[2] not in first)
    ):
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = draft.recipe[key]
    return tree


def recipe_text(draft: Draft, origin: str) -> str:
    """Return the recipe, with what changed its meaning beside each key, and the rest on top."""
    lines = [f"# Imported by posttrain from {origin} ({draft.title})."]
    lines += [f"# {line}" for line in textwrap.wrap(_summary(draft), WIDTH)]
    for fate, heading in (
        ("refused", "Refused, so this run differs"),
        ("without effect", "Without effect on the result"),
    ):
        of_fate = [line for line in draft.lines.values() if line.fate == fate]
        if not of_fate:
            continue
        lines += ["#", f"# {heading}:"]
        if fate == "refused":
            for line in of_fate:
                lines += _wrapped(f"{line.key}: {shown(line.value, 50)}: {line.note}", "#   ")
        else:
            lines += _wrapped(", ".join(line.key for line in of_fate), "#   ")
    _section(tree_of(draft), "", draft.comments, lines)
    return "\n".join(lines) + "\n"


def _wrapped(text: str, indent: str) -> list[str]:
    flat = " ".join(text.split())
    return textwrap.wrap(
        flat, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )


def _summary(draft: Draft) -> str:
    counts = ", ".join(f"{count} {fate}" for fate, count in draft.counts().items())
    return f"{len(draft.lines)} keys: {counts}."


def _section(
    tree: dict[str, Any], prefix: str, comments: dict[str, list[str]], out: list[str]
) -> None:
    """Append the lines of a section."""
    indent = "  " * prefix.count(".")
    for name, value in tree.items():
        key = f"{prefix}{name}"
        notes = list(dict.fromkeys(note for note in comments.get(key, []) if note))
        if (
            isinstance(value, dict)
            and value
            and (
                not prefix
                or key in ("model.adapter", "model.quantization", "trainer.early_stopping")
            )
        ):
            out += [line for note in notes for line in _wrapped(note, f"{indent}# ")]
            out.append(f"{indent}{name}:")
            _section(value, f"{key}.", comments, out)
            continue
        text = _entry(name, _plain(value))
        body = textwrap.indent(text.rstrip("\n"), indent).split("\n")
        comment = " ".join("; ".join(notes).split())
        if len(body) == 1 and comment and len(body[0]) + len(comment) + 4 <= WIDTH:
            body[0] += f"  # {comment}"
        elif comment:
            out += _wrapped(comment, f"{indent}# ")
        out += body


def _entry(name: str, value: Any) -> str:
    """Return a key and its value in YAML; a list of plain values is in brackets."""
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return f"{name}: {yaml.safe_dump(value, default_flow_style=True, width=10_000)}"
    return yaml.safe_dump({name: value}, sort_keys=False, width=10_000)


def _plain(value: Any) -> Any:
    """Return a value without the types that remember how a number was written."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def shown(value: Any, width: int = 36) -> str:
    """Return a value in one short line."""
    text = " ".join(str(_plain(value)).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def table_of(draft: Draft) -> list[Line]:
    """Return what became of each key, refused ones last, each fate in the source's order."""
    places = {key: place for place, key in enumerate(draft.lines)}
    return sorted(draft.lines.values(), key=lambda x: (FATES.index(x.fate), places[x.key]))


def table_text(draft: Draft) -> str:
    """Return the table: one line for each key of the source, and the counts."""
    rows = [
        (line.fate, line.key, shown(line.value), line.target, line.note) for line in table_of(draft)
    ]
    widths = [min(40, max((len(row[i]) for row in rows), default=0)) for i in range(3)]
    text = []
    for fate, key, value, target, note in rows:
        start = "  ".join(cell.ljust(width) for cell, width in zip((fate, key, value), widths))
        rest = f"-> {target}" if target else ""
        text.append(
            f"{start}  {rest}{': ' if rest and note else ''}{' '.join(note.split())}".rstrip()
        )
    return "\n".join([*text, _summary(draft)])
