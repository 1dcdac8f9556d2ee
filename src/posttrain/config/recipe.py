"""Reading a recipe's YAML file and its overrides into one tree; the schema is checked elsewhere."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from posttrain.common.files import expanded
from posttrain.config.yaml_values import Loader, parse_value


def read_yaml(
    path: str | Path,
    what: str = "recipe",
    content: str = "sections (model, data, trainer, ...)",
) -> dict[str, Any]:
    """Return the tree in a YAML file. Raises ValueError if the file is missing or holds none.

    Errors name `what` the file is, and the `content` that it must have."""
    file = Path(expanded(str(path)))
    if not file.is_file():
        recipes = [*Path().glob("recipes/**/*.yaml"), *file.parent.glob("*.yaml")]
        by_stem = {str(p)[:-5]: p for p in recipes}  # all end in .yaml
        near = difflib.get_close_matches(str(file).removesuffix(file.suffix), by_stem)
        hint = f"; did you mean {by_stem[near[0]]}?" if near else ""
        if (file / "config.yaml").is_file():
            hint = f", but a folder: name {file / 'config.yaml'}"
        raise ValueError(f"no {what} {path}{hint}")
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}{not_yaml(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold {content}")
    return tree


HINTS = {
    "\\t": "indent with spaces, not tabs",
    "expected a single document": "one file is one run: remove the line --- and what follows",
    "could not find expected ':'": "a key needs a colon and a space before its value",
    "mapping values": "a colon is missing in the line before, or a value with a colon needs quotes",
    "block end": "the keys of a section must be indented alike",
    "constructor for the tag": "tags are not read: write the value itself, in quotes",
    "flow": "a bracket is not closed, or a value that holds one needs quotes",
}
"""What to do, by a part of what the YAML library says."""
SIGN = "put a value that begins with a sign or holds a colon in quotes"


def not_yaml(error: yaml.YAMLError) -> str:
    """Return what is wrong with a file that is not YAML, and in which line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = "" if mark is None else f", line {mark.line + 1}"
    parts = [getattr(error, name, None) or "" for name in ("context", "problem")]
    said = ", ".join(part for part in parts if part) or str(error).splitlines()[0]
    sign = isinstance(error, yaml.composer.ComposerError | yaml.scanner.ScannerError)
    hint = next((hint for part, hint in HINTS.items() if part in said), SIGN if sign else "")
    return f"{place}: not valid YAML: {said}" + (f"; {hint}" if hint else "")


def with_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the tree, changed in place by overrides of the form section.key=value.

    Hydra's +key=value and ++key=value set a key too, whether the tree has it or not."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if key.startswith("~"):
            raise ValueError(
                f"override {override!r}: keys are not removed on the command line: set the key to "
                "null, or remove it from the file"
            )
        key = key.removeprefix("+").removeprefix("+")
        if not equals or not key:
            raise ValueError(f"override {override!r} is not of the form section.key=value")
        set_key(tree, key, parse_value(override, value), override)
    return tree


def set_key(tree: dict[str, Any], key: str, value: Any, written: str) -> None:
    """Set tree[a][b] = value for the key "a.b"; errors quote what the user has `written`.

    A number is the index of an item of a list, counted from 0.
    """
    *sections, last = key.split(".")
    node: Any = tree
    for section in sections:
        node = (
            _item(node, section, written)
            if isinstance(node, list)
            else node.setdefault(section, {})
        )
        if not isinstance(node, dict | list):
            raise ValueError(f"override {written!r}: {section} is not a section with keys")
    if isinstance(node, list):
        _item(node, last, written)
        node[int(last)] = value
    else:
        node[last] = value


def _item(items: list[Any], index: str, written: str) -> Any:
    """Return the item of a list at an index counted from 0, as in `data.0.path=...`."""
    if not index.isdecimal() or int(index) >= len(items):
        raise ValueError(
            f"override {written!r}: expected the number of one of the {len(items)} items of the "
            f"list, counted from 0; got {index}"
        )
    return items[int(index)]
