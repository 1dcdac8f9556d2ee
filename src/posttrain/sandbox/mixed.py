"""Arithmetic of the candidate's objects with plain values, as in `Vector(1, 2) * 3`.

The plain value may be the expected one (`abs(f(x) - 3) < 1e-6`), and the candidate computes. So
this is done only if the tests name a class of the candidate, and its result is mixed: it has to be
an object again, and does not answer for itself as a number or a date would. It may be compared with
other objects of the candidate, and its own attributes and items are plain values as any.
"""

import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

_NUMBERS = (int, float, complex, bool, Fraction, Decimal, datetime.timedelta)
_OTHERS = (str, bytes, list, tuple, dict, set, datetime.datetime)
_NOT_ITS_OWN = frozenset(name for kind in (*_NUMBERS, *_OTHERS) for name in dir(kind))
_OF_NUMBERS = frozenset({"bool", "int", "float", "complex", "index", "round", "abs", "hash"})
_OF_NUMBERS |= {"neg", "pos", "invert", "contains"}


_BEGUN = "an iterator that has given no item"


def may_mix(stand_in: Any, name: str, other: Any) -> bool:
    """Whether an object may be combined with a plain value by the operator of this name."""
    fits = type(other) in _NUMBERS or (name == "truediv" and type(other) is str)
    return stand_in._session.names_classes and fits


def mixed(stand_in: Any, value: Any) -> Any:
    """Return the result of such an operator, marked as mixed."""
    if type(value) is not type(stand_in):
        return stand_in._refuse("comes to a plain value in arithmetic with one")
    object.__setattr__(value, "_mixed", True)
    return value


def answered(stand_in: Any, operation: str, operands: tuple[Any, ...], value: Any) -> Any:
    """Return what a mixed object answers, if it does not stand for a number by that."""
    if operation == "get" and operands[0] in _NOT_ITS_OWN:
        return stand_in._refuse(f"answers {operands[0]} as a plain value would")
    if type(value) is type(stand_in):
        mixed(stand_in, value)
        if operation == "iter":
            object.__setattr__(value, "_mixed", _BEGUN)
        return value
    if operation in _OF_NUMBERS:
        return stand_in._refuse(f"answers {operation} as a number would")
    empty = value == 0 if operation == "len" else type(value) is tuple and len(value) != 1
    if empty and (operation == "len" or (operation == "next" and stand_in._mixed == _BEGUN)):
        return stand_in._refuse("has no items")  # so that nothing is compared
    if operation == "next":
        object.__setattr__(stand_in, "_mixed", True)
    if operation in ("str", "repr", "format") and _reads_as_number(value):
        return stand_in._refuse("reads as a number")
    return value


def _reads_as_number(text: Any) -> bool:
    try:
        complex(text)
    except (TypeError, ValueError):
        return False
    return True
