"""YAML as people mean it: dates and 007 are texts, 1e-3 is a number, a text may hold colons.

YAML 1.1 reads 12:30 as 750, 007 as 7, 2026-11-29 as a date and 1e-3 as a text. A number whose own
text says more than its value, such as the run name 1.10, keeps that text, for a key that is a text.
"""

from __future__ import annotations

import re
from typing import Any, get_args

import yaml

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
FLOAT = re.compile(
    r"[-+]?(\.[0-9_]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?$"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
QUOTED = re.compile(r"[\"'\[{]|[|>][-+0-9]*\n")
PLACEHOLDER = re.compile(r"\{\w+\}")


class WrittenInt(int):
    """An integer that was not written as Python writes it."""

    text: str


class WrittenFloat(float):
    """A float that was not written as Python writes it."""

    text: str


class WrittenMapping(dict[str, Any]):
    """A mapping that an override spelled without braces, which may be a text with a colon."""

    text: str


class Loader(yaml.SafeLoader):
    """A loader that rejects duplicate keys, as YAML requires; PyYAML silently keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; raise ConstructorError for a key that occurs twice."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key}", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _integer(loader: Loader, node: Any) -> Any:
    return _written(WrittenInt(node.value.replace("_", "")), int, node.value)


def _float(loader: Loader, node: Any) -> Any:
    number = yaml.SafeLoader.construct_yaml_float(loader, node)
    return _written(WrittenFloat(number), float, node.value)


def _written(value: Any, plain: type, text: str) -> Any:
    value.text = text
    return plain(value) if str(plain(value)) == text else value


def _dump_number(dumper: Any, value: int | float) -> Any:
    plain = int(value) if isinstance(value, int) else float(value)
    return dumper.represent_data(plain)


NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(NUMBERS[0], INTEGER, list("-+0123456789"))
Loader.add_implicit_resolver(NUMBERS[1], FLOAT, list("-+.0123456789"))
Loader.add_constructor(NUMBERS[0], _integer)
Loader.add_constructor(NUMBERS[1], _float)
yaml.SafeDumper.add_representer(WrittenInt, _dump_number)
yaml.SafeDumper.add_representer(WrittenFloat, _dump_number)


def parse_value(override: str, value: str) -> Any:
    """Return the value of an override; errors quote the whole `override`.

    It is YAML if it is quoted, in brackets, a number, true, false or null; else it is the text as
    it stands, with its colons and signs: `trainer.run_name=a: b #3`.
    """
    text = value.strip()
    quoted = QUOTED.match(text) is not None and PLACEHOLDER.match(text) is None
    try:
        parsed = yaml.load(value, Loader)
    except yaml.YAMLError:
        if quoted:
            raise ValueError(f"override {override!r}: the value is not valid YAML") from None
        return value
    if quoted:
        return parsed
    words = parsed is None and text.startswith(("#", "&", "!"))
    if isinstance(parsed, str) or words or (isinstance(parsed, list) and "\n" not in text):
        return value
    if isinstance(parsed, dict):
        parsed = WrittenMapping(parsed)
        parsed.text = value
    return parsed


def as_text(value: Any) -> Any:
    """Return the text of a number or mapping where a text is meant; other values unchanged."""
    if isinstance(value, WrittenInt | WrittenFloat | WrittenMapping):
        return value.text
    plain_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if plain_number else value


def as_written(tree: Any, annotations: dict[str, Any]) -> Any:
    """Return a section with the text of each number, such as 007, at a key that is a text.

    So is true at a key that is a number, which is not 1.
    """
    texts = {name for name, annotation in annotations.items() if _is_text(annotation)}
    if not isinstance(tree, dict):
        return tree
    return {
        key: as_text(value)
        if key in texts
        else str(value).lower()
        if isinstance(value, bool) and _is_number(annotations.get(key))
        else value
        for key, value in tree.items()
    }


def _is_text(annotation: Any) -> bool:
    """Whether a key's type is str or str | None, with or without markers."""
    plain = _plain(annotation)
    return str in plain and plain <= {str, type(None)}


def _is_number(annotation: Any) -> bool:
    """Whether a key's type is a number or None."""
    plain = _plain(annotation)
    return bool(plain & {int, float}) and plain <= {int, float, type(None)}


def _plain(annotation: Any) -> set[Any]:
    choices = get_args(annotation) or (annotation,)
    return {getattr(choice, "__origin__", choice) for choice in choices}
