r"""The parts of an answer: lists, tuples, intervals, sets, matrices, names, equations.

`form_of` takes an answer apart and `equal` compares two answers part by part; only their leaves,
numbers and formulas, are left to a computer algebra system. So nothing that such a system might
drop (a bracket, an element, the name of a variable, the left side of an equation) is lost.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from posttrain.rewards.rules.answers.characters import compact
from posttrain.rewards.rules.answers.names import is_name, name_of
from posttrain.rewards.rules.answers.numbers import plain_number

Order = Literal["free", "kept"]


@dataclass(frozen=True)
class Leaf:
    """A number, a formula or words."""

    text: str


@dataclass(frozen=True)
class Group:
    """Several forms; `kind` is list, or, set, union, matrix, row or a pair of brackets."""

    kind: str
    items: tuple["Form", ...]
    text: str


@dataclass(frozen=True)
class Named:
    """A value with the name before its equals sign."""

    name: str
    value: "Form"
    contradicts: bool = False
    """Whether two different numbers are said to be equal: x = 5 = 6."""


@dataclass(frozen=True)
class Chain:
    """Sides of an equation between numbers, such as 2 + 3 = 5."""

    sides: tuple["Form", ...]


@dataclass(frozen=True)
class Relation:
    """An equation or inequality that has to be compared as a whole; "" if it cannot be read."""

    text: str


LISTS = {"list", "or", "set"}
Form = Leaf | Group | Named | Chain | Relation

# --- taking apart ---------------------------------------------------------------------------------

_OPEN, _CLOSE = "([{⦃⟨", ")]}⦄⟩"
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
DECIMAL_COMMA = re.compile(r"(?<![\d,.])(\d+),(\d{1,2}|\d{4,})(?![\d,])")


def split(text: str, separator: str) -> list[str]:
    """Split a text at the matches of a pattern that are in no bracket and no command."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf"([(\[{{⦃⟨])|([)\]}}⦄⟩])|\\[A-Za-z]+|\\.|({separator})", text):
        if match[1]:
            depth += 1
        elif match[2]:
            depth -= 1
        elif match[3] and depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def _inside(text: str) -> tuple[str, str] | None:
    """Return brackets and content of a text that one pair of brackets encloses as a whole."""
    if len(text) < 2 or text[0] not in _OPEN or text[-1] not in _CLOSE:
        return None
    depth = 0
    for position, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0 and position < len(text) - 1:
            return None
    return (text[0] + text[-1], text[1:-1].strip()) if depth == 0 else None


_JOIN = r",|\s*,?\s*\b(?:and|or)\b\s*,?|(?<=[\d)])or(?=[A-Za-z(\d-])"


def _items(text: str, in_brackets: bool) -> list[str]:
    """Split a text at its commas, semicolons and "and" or "or", but not at those of 1,000."""
    if len(split(text, ";")) > 1:
        parts = split(text, r";|\b(?:and|or)\b")
        return [DECIMAL_COMMA.sub(r"\1.\2", part) for part in parts if part]
    if not in_brackets or len(split(text, r",\s")) > 1:
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    return [part for part in split(text, _JOIN) if part]


_MATRIX = re.compile(
    r"\\begin\s*\{([pbB]?matrix|array)\}(?:\{[clr|]*\})?((?:(?!\\begin|\\end).)*)\\end\s*\{\1\}",
    re.DOTALL,
)
_SIGN = re.compile("[±∓]")
_DEEPEST = 12


def form_of(text: str, depth: int = 0) -> Form:
    """Return the form of an answer.

    Args:
        text: The answer, as `tidy` returns it.
        depth: The number of brackets around it; deeper than twelve nothing is taken apart.
    """
    text = text.strip().strip(";").removesuffix(",").strip()
    if not text.endswith(".."):
        text = text.removesuffix(".")
    if depth > _DEEPEST:
        return Leaf(text)
    deeper = depth + 1
    if match := _MATRIX.fullmatch(text):
        lines = [line for line in re.split(r"\\\\", match[2]) if line.strip()]
        rows = [[form_of(cell, deeper) for cell in line.split("&")] for line in lines]
        return Group("matrix", tuple(Group("row", tuple(row), "") for row in rows), text)
    if len(parts := split(text, "∪")) > 1:
        return Group("union", tuple(form_of(part, deeper) for part in parts), text)
    if len(parts := _items(text, False)) > 1:
        items = tuple(form_of(part, deeper) for part in parts)
        if all(_is_interval(item) for item in items) and len(split(text, r"\bor\b|,")) == len(
            items
        ):
            return _union(items, text)
        every_or = len(split(text, r"\bor\b")) == len(items)
        return Group("or" if every_or else "list", items, text)
    if enclosed := _inside(text):
        brackets, content = enclosed
        if brackets == "{}" or not content:
            return form_of(content, deeper) if content else Leaf("")
        parts = _items(content, True)
        if len(parts) > 1:
            kind = "set" if brackets == "⦃⦄" else brackets
            return Group(kind, tuple(form_of(part, deeper) for part in parts), text)
        if brackets == "⦃⦄" and depth > 0:
            return Group("set", (form_of(content, deeper),), text)
        if brackets not in ("⟨⟩", "(]", "[)"):
            return form_of(content, deeper)
    return _relation(text, deeper)


def _is_interval(form: Form) -> bool:
    value = form.value if isinstance(form, Named) else form
    return isinstance(form, Named) and isinstance(value, Group) and value.kind in _INTERVALS


_INTERVALS = {"()", "(]", "[)", "[]"}


def _union(items: tuple[Form, ...], text: str) -> Form:
    """Return the union of inequalities: x < 1 or x > 2."""
    names = {item.name for item in items if isinstance(item, Named)}
    union = Group("union", tuple(i.value for i in items if isinstance(i, Named)), text)
    return Named(names.pop(), union) if len(names) == 1 else Group("list", items, text)


def _relation(text: str, depth: int) -> Form:
    sides = split(text, "[<>≤≥≠∈]")
    signs = re.findall("[<>≤≥≠∈]", text)
    if len(sides) > 1:
        if len(signs) != len(sides) - 1 or not all(sides):
            return Relation("")
        return _inequality(sides, signs, text, depth)
    if len(parts := split(text, "≈")) > 1:
        return _approximate(parts, depth)
    sides = [side for side in split(text, "=") if side]
    if len(sides) < 2:
        return _value(sides[0] if sides else "", depth)
    return _equation(sides, text, depth)


def _inequality(sides: list[str], signs: list[str], text: str, depth: int) -> Form:
    if signs == ["∈"] and is_name(sides[0]):
        return _spread(Named(name_of(sides[0]), form_of(sides[1], depth)))
    if signs == ["≠"] and is_name(sides[0]):
        return Named(f"{name_of(sides[0])}≠", form_of(sides[1], depth))
    kinds = {"<": "up", "≤": "up", ">": "down", "≥": "down"}
    directions = {kinds.get(sign) for sign in signs}
    if len(directions) != 1 or None in directions or len(signs) > 2:
        return Relation(text)
    if directions == {"down"}:  # b > x > a is a < x < b
        sides, signs = sides[::-1], [{">": "<", "≥": "≤"}[sign] for sign in signs[::-1]]
    if len(sides) == 2:
        if is_name(sides[0]):
            sides, signs = ["-∞", *sides], ["<", *signs]
        elif is_name(sides[1]):
            sides, signs = [*sides, "∞"], [*signs, "<"]
    if len(sides) != 3 or not is_name(sides[1]) or is_name(sides[0]) or is_name(sides[2]):
        return Relation(text)
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    ends = (form_of(sides[0], depth), form_of(sides[2], depth))
    return Named(name_of(sides[1]), Group(brackets, ends, text))


def _approximate(parts: list[str], depth: int) -> Form:
    """Return the exact value before an approximation, else the approximate one."""
    if len(parts) > 2 or not parts[-1]:
        return Relation("")
    exact, rounded = parts
    if not exact:
        return form_of(rounded, depth)
    if is_name(exact):
        return Named(name_of(exact), form_of(rounded, depth))
    first, second = plain_number(exact), plain_number(rounded)
    if first and second and abs(first.value - second.value) * 100 > abs(first.value):
        return Relation("")  # 5 ≈ 6
    return form_of(exact, depth)


def _equation(sides: list[str], text: str, depth: int) -> Form:
    """Return a named value, a chain of numbers, or an equation as a whole."""
    named = [side for side in sides if is_name(side)]
    if named and not is_name(sides[-1]):
        return _named(named[0], sides, depth)
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        return Named(name_of(sides[1]), form_of(sides[0], depth))
    if not re.search(r"(?<!\\)(?<![A-Za-z\\])[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)):
        return Chain(tuple(_value(side, depth) for side in sides))
    return Relation(text)


def _named(name: str, sides: list[str], depth: int) -> Form:
    numbers = {number.value for side in sides if (number := plain_number(side))}
    last = re.sub(r"\\[A-Za-z]+", "", sides[-1])
    contradicts = len(numbers) > 1 or (bool(numbers) and re.search("[A-Za-z]", last) is not None)
    value = form_of(sides[-1], depth)
    inner = _inside(name)
    names = _items(inner[1], True) if inner else []
    if isinstance(value, Group) and value.kind == "()" and len(names) == len(value.items) > 1:
        items = tuple(Named(name_of(n), v) for n, v in zip(names, value.items, strict=True))
        return Group("list", items, value.text)
    return _spread(Named(name_of(name), value, contradicts))


def _spread(named: Named) -> Form:
    """Return x = 1, x = 2 for x = 1, 2 and for x in {1, 2}."""
    if not isinstance(named.value, Group) or named.value.kind not in LISTS:
        return named
    items = tuple(replace(named, value=value) for value in named.value.items)
    kind = "or" if named.value.kind == "or" else "list"
    return replace(named.value, kind=kind, items=items)


def _value(text: str, depth: int) -> Form:
    """Return a leaf, or the two values of a plus-minus sign."""
    if len(_SIGN.findall(text)) and depth <= _DEEPEST:
        upper = text.replace("±", "+").replace("∓", "-").lstrip("+ ")
        lower = text.replace("±", "-").replace("∓", "+").lstrip("+ ")
        return Group("list", (form_of(upper, depth), form_of(lower, depth)), text)
    return Leaf(text)


# --- comparing ------------------------------------------------------------------------------------

Same = Callable[[str, str], bool]


def equal(gold: Form, answer: Form, same: Same, order: Order = "free") -> bool:
    """Whether two forms are equal part by part; `same` compares two leaves."""
    gold, answer = _only_item(gold), _only_item(answer)
    if isinstance(gold, Chain):
        gold = gold.sides[-1]
    if isinstance(answer, Chain):
        return _chain_equals(gold, answer, same, order)
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return False
    if isinstance(answer, Named) and answer.contradicts:
        return False
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _groups_equal(gold, answer, same, order)
    if isinstance(gold, Named) and isinstance(answer, Named):
        if gold.name != answer.name and gold.name and answer.name:
            return False
        return equal(gold.value, answer.value, same, order)
    if isinstance(gold, Named):
        return "≠" not in gold.name and equal(gold.value, answer, same, order)
    if isinstance(answer, Named):
        return "≠" not in answer.name and equal(gold, answer.value, same, order)
    if isinstance(gold, Leaf) and isinstance(answer, Leaf):
        return same(gold.text, answer.text)
    if isinstance(gold, Leaf) and isinstance(answer, Group) and answer.kind == "or":
        return all(equal(gold, item, same, order) for item in answer.items)  # 1/2 or 0.5
    matrices = [isinstance(form, Group) and form.kind == "matrix" for form in (gold, answer)]
    if any(matrices) and isinstance(gold, Leaf | Group) and isinstance(answer, Leaf | Group):
        return same(gold.text, answer.text)  # a matrix and a sum of matrices
    return False


def _only_item(form: Form) -> Form:
    alone = isinstance(form, Group) and form.kind == "list" and len(form.items) == 1
    return form.items[0] if alone and isinstance(form, Group) else form


def _chain_equals(gold: Form, answer: Chain, same: Same, order: Order) -> bool:
    """2 + 3 = 5 is 5; but 5 = 6 is neither, and 1 = 1 states nothing."""
    *others, last = answer.sides
    texts = {compact(side.text) for side in answer.sides if isinstance(side, Leaf)}
    stated = len(texts) > 1 and all(equal(side, last, same, order) for side in others)
    return stated and equal(gold, last, same, order)


def _groups_equal(gold: Group, answer: Group, same: Same, order: Order) -> bool:
    names = [_names(group) for group in (gold, answer)]
    if gold.kind == answer.kind == "set":  # a set holds nothing twice
        pairs = ((gold.items, answer.items, False), (answer.items, gold.items, True))
        return all(
            all(any(equal(*((j, i) if flip else (i, j)), same, order) for j in b) for i in a)
            for a, b, flip in pairs
        )
    if len(gold.items) != len(answer.items):
        # A number given twice is a double root, a tuple given twice is merely repeated.
        answer = replace(answer, items=_distinct_tuples(answer.items))
    if len(gold.items) != len(answer.items):
        return False
    if (names[0] is None) != (names[1] is None) and {gold.kind, answer.kind} <= {
        "list",
        "or",
        "()",
    }:
        return _in_order(gold, answer, same, order)  # x = 1, y = 2 and (1, 2)
    if {gold.kind, answer.kind} <= LISTS:
        kept = order == "kept" and gold.kind == answer.kind == "list" and not names[0]
        return (_in_order if kept else _in_any_order)(gold, answer, same, order)
    if gold.kind != answer.kind:
        return False
    compare = _in_any_order if gold.kind == "union" else _in_order
    return compare(gold, answer, same, order)


def _distinct_tuples(items: tuple[Form, ...]) -> tuple[Form, ...]:
    texts = {compact(i.text): i for i in items if isinstance(i, Group)}
    return tuple(texts.values()) if all(isinstance(i, Group) for i in items) else items


def _names(group: Group) -> set[str] | None:
    """Return the names of a list of values with different names; None for any other group."""
    names = [item.name for item in group.items if isinstance(item, Named)]
    different = len(set(names)) == len(names) == len(group.items) > 1
    return set(names) if different else None


def _in_order(gold: Group, answer: Group, same: Same, order: Order) -> bool:
    return all(equal(g, a, same, order) for g, a in zip(gold.items, answer.items, strict=True))


def _in_any_order(gold: Group, answer: Group, same: Same, order: Order) -> bool:
    waiting = list(answer.items)
    for item in gold.items:
        match = next((i for i, a in enumerate(waiting) if equal(item, a, same, order)), None)
        if match is None:
            return False
        del waiting[match]
    return True


def relations(form: Form) -> Iterator[Relation]:
    """Yield the relations in a form."""
    if isinstance(form, Relation):
        yield form
    elif isinstance(form, Group):
        for item in form.items:
            yield from relations(item)
    elif isinstance(form, Named):
        yield from relations(form.value)
    elif isinstance(form, Chain):
        for side in form.sides:
            yield from relations(side)
