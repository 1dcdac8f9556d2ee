"""Holds the candidate's objects to one story.

If the tests name no class of the candidate, a function is to return a value. An object of a class
of its own may stand for one, but it could answer each question of a test as suits it: a length
without items, another order in each pass. So an object whose class is derived from a plain one is
taken for its plain value, and the answers of any other must agree while nothing changes it.
"""

from typing import Any

from posttrain.sandbox.operations import COMPARISONS, PLAIN_BASES

# What does not change an object.
OBSERVING = frozenset({"iter", "next", "len", "bool", "str", "repr", "format", "hash", "getitem"})
OBSERVING |= {"get", "plain", "isinstance", "issubclass", "contains", *COMPARISONS}
# Methods of plain values that change nothing, and that a test may take the answer of.
_READING = frozenset({"count", "index", "keys", "values", "items", "get", "copy", "isdisjoint"})
_READING |= {"issubset", "issuperset", "union", "intersection", "difference"}
_READING |= {"symmetric_difference"}
# Such methods with which an object would judge itself.
PREDICATES = frozenset(
    name
    for kind in (str, set, float)
    for name in dir(kind)
    if name.startswith("is") or name in ("startswith", "endswith")
)
_COMPARABLE = (int, float, complex, str, bytes, bool, type(None))
_NAMES = frozenset(base.__name__ for base in PLAIN_BASES)
IMMUTABLE = (int, float, complex, str, bytes, tuple, frozenset)


def names_a_class(names: list[str]) -> bool:
    """Whether one of the names that a program has to define is written as those of classes are."""
    stripped = [name.lstrip("_") for name in names]
    return any(name[:1].isupper() and "_" not in name for name in stripped)


def has_plain(stand_in: Any) -> bool:
    """Whether the class of an object is derived from a plain one."""
    return stand_in._base in _NAMES


def plain_view(stand_in: Any) -> Any:
    """Return the plain value that an object is taken for; None if it speaks for itself."""
    session = stand_in._session
    if not has_plain(stand_in) or session.names_classes:
        return None
    answers = session.observed.setdefault(stand_in._number, {})
    if "plain" not in answers:
        value = stand_in._ask("plain")
        if type(value).__name__ != stand_in._base:
            stand_in._refuse(f"has no value of class {stand_in._base}")
        answers["plain"] = value
    return answers["plain"]


def reads(plain: Any, name: str) -> bool:
    """Whether an attribute is one of the plain value that a test may use in its place."""
    return hasattr(plain, name) and (type(plain) in IMMUTABLE or name in _READING)


def noted(stand_in: Any, question: Any, answer: Any) -> Any:
    """Return an answer of an object, after a check that it agrees with the earlier ones.

    Args:
        stand_in: The object.
        question: The operation, "items" (all items of one pass), or ("item", index).
        answer: The answer: a plain value, a tuple of items, or an item.
    """
    session = stand_in._session
    if session.names_classes:
        return answer
    answers = session.observed.setdefault(stand_in._number, {})
    if not _agree(answers.setdefault(question, answer), answer):
        stand_in._refuse(f"gives two answers: {question}")
    items = answers.get("items")
    if items is not None:
        if answers.get("len", len(items)) != len(items):
            stand_in._refuse("has another length than number of items")
        if "len" in answers:
            _check_items(stand_in, answers, items)
    return answer


def _check_items(stand_in: Any, answers: dict[Any, Any], items: tuple[Any, ...]) -> None:
    for question, answer in list(answers.items()):
        if type(question) is not tuple or not -len(items) <= question[1] < len(items):
            continue
        if not _agree(items[question[1]], answer) and not hasattr(stand_in, "keys"):
            stand_in._refuse(f"has another item {question[1]} than in a pass")


def _agree(first: Any, second: Any) -> bool:
    """Whether two answers are the same, as far as they are plain."""
    if type(first) is tuple and type(second) is tuple:
        return len(first) == len(second) and all(map(_agree, first, second))
    if type(first) in _COMPARABLE and type(second) in _COMPARABLE:
        return bool(first == second or first != first)
    return True
