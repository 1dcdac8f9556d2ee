"""Evaluates texts that are pure arithmetic, on the trusted side.

A test may evaluate what a candidate returned: `eval(f([4, 6, 8, 2])) == 24`. A candidate that
evaluates its text itself could answer as it likes. So a text without effects is evaluated here,
and only any other text in the candidate's process.
"""

import ast
from typing import Any

LONGEST = 10_000  # characters
_FUNCTIONS = {f.__name__: f for f in (abs, min, max, sum, round, len, divmod, int, float, bool)}
_NODES = (
    *(ast.Expression, ast.Constant, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp),
    *(ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Subscript, ast.Slice, ast.Call, ast.Name),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)


def is_arithmetic(text: Any, names: Any = None) -> bool:
    """Whether a text is an expression of numbers, texts, collections and their operators.

    Args:
        text: What a test evaluates.
        names: The names that it may use, with their values.
    """
    if type(text) is not str or len(text) > LONGEST:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    known = names if type(names) is dict else {}
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Name) and not _is_plain(node.id, known):
            return False
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call)}  # type: ignore[attr-defined]
    return called <= _FUNCTIONS.keys() - known.keys()


def _is_plain(name: str, known: dict[str, Any]) -> bool:
    if name in known:
        return type(known[name]) in (int, float, complex, bool, str, type(None))
    return name in _FUNCTIONS


def arithmetic(text: str, names: Any = None) -> Any:
    """Return the value of a text for which `is_arithmetic` holds."""
    plain = names if type(names) is dict else {}
    space = {"__builtins__": dict(_FUNCTIONS), **plain}
    space["__builtins__"] = dict(_FUNCTIONS)
    return eval(compile(text.strip(), "text", "eval"), space)
