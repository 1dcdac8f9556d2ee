"""A recipe's file and the overrides beside it, as one tree; config.py says what it must hold."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: str | Path) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        there = [*Path().glob("recipes/**/*.yaml"), *file.parent.glob("*.yaml")]
        near = difflib.get_close_matches(str(file), [str(p) for p in there])
        raise ValueError(f"no recipe {path}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeys)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold sections (model, data, trainer, ...)")
    return tree


class _UniqueKeys(yaml.SafeLoader):
    """YAML asks for unique keys; PyYAML keeps the last of two without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def with_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override {override!r} is not of the form section.key=value")
        set_key(tree, key, parse_value(override, value), override)
    return tree


def parse_value(override: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"override {override!r}: the value is not valid YAML") from None


def set_key(tree: dict[str, Any], key: str, value: Any, written: str) -> None:
    """tree[a][b] = value for the key "a.b", which the user wrote in `written`."""
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {written!r}: {section} is not a section with keys")
    tree[last] = value
