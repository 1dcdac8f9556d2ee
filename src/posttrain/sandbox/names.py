"""Which names of a test come from where: Python, its library, the data set, or the candidate."""

import ast
import builtins
import importlib
import symtable
import sys
from dataclasses import dataclass
from typing import Any

from posttrain.sandbox.pieces import free_names

# Modules whose functions tests use as if they were imported, most usual first.
_WELL_KNOWN = (
    *("math", "collections", "itertools", "functools", "statistics", "copy", "operator"),
    *("re", "heapq", "bisect", "random", "string", "datetime", "decimal", "fractions"),
    *("typing", "json", "time", "unittest"),
)
_ELSEWHERE = {
    "pytest": ("approx", "raises"),
    "numpy": ("allclose", "array_equal", "ndarray", "linspace", "arange"),
    "numpy.testing": (
        *("assert_allclose", "assert_array_equal", "assert_almost_equal"),
        *("assert_array_almost_equal", "assert_equal"),
    ),
    "pandas": ("DataFrame", "Series"),
    "pandas.testing": ("assert_frame_equal", "assert_series_equal", "assert_index_equal"),
}
_ALIASES = {"np": "numpy", "pd": "pandas", "plt": "matplotlib.pyplot", "sp": "scipy"}
_ALIASES |= {name: name for name in ("numpy", "pandas", "scipy", "sympy", "torch", "pytest")}
_JUDGING = (
    *("assert", "close", "equal", "approx", "compare", "same", "match", "check", "verify"),
    *("correct", "valid", "expect", "near"),
)


@dataclass
class Names:
    """Where the free names of a test come from."""

    trusted: dict[str, Any]
    """Those of Python's library and of installed packages, with their values."""
    candidate: set[str]
    """Those that the candidate's program defines."""
    unknown: set[str]
    """Those that nothing defines, and that the candidate must not: they judge its results."""


def names_of(text: str, entry_point: str | None, prompt: str = "") -> Names:
    """Return where the free names of a test come from.

    If there is an `entry_point`, the candidate defines it alone; the code of the prompt defines
    others. Else it defines the names that no library has; if there are none, the function that the
    tests call first.

    Raises:
        ImportError: A library that the test uses is not installed.
    """
    free = free_names(text) - defined_names(prompt)
    tree = ast.parse(text)
    if entry_point is not None:
        trusted = _trusted(tree, free - {entry_point})
        return Names(trusted, {entry_point}, free - {entry_point} - trusted.keys())
    if not free:
        return Names({}, called_builtins(text), set())
    if len(free) == 1 and not _is_module(tree, *free):
        return Names({}, free, set())
    judging = _wrapping(tree, free)
    trusted = _trusted(tree, free)
    candidate = free - trusted.keys() - judging
    if candidate:
        candidate |= _asked_for(tree, trusted.keys() - judging, defined_names(text))
    else:
        # a task may ask for a function that a library has, too
        candidate = {n for n in trusted if not _is_module(tree, n)} - judging
        first = called_first(text) & candidate
        candidate = first or candidate
    trusted = {name: value for name, value in trusted.items() if name not in candidate}
    return Names(trusted, candidate, free - trusted.keys() - candidate)


def defined_names(text: str) -> set[str]:
    """Return the global names that `text` assigns, imports or defines."""
    top = symtable.symtable(text, "prompt", "exec")
    return {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}


def called_builtins(text: str) -> set[str]:
    """Return the builtin that each assert calls first, for tests that use no other name.

    A task may ask for a function named `sum`.
    """
    return called_first(text) & vars(builtins).keys()


def called_first(text: str) -> set[str]:
    """Return the name that each assert calls on its left side."""
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assert):
            test = node.test.operand if isinstance(node.test, ast.UnaryOp) else node.test
            call = test.left if isinstance(test, ast.Compare) else test
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                names.add(call.func.id)
    return names


_MAKERS = tuple(importlib.import_module(name) for name in ("functools", "typing", "unittest"))


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    called = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return {d.id for d in called if isinstance(d, ast.Name)}


def _asked_for(tree: ast.Module, names: set[str], known: set[str]) -> set[str]:
    """Return the names of a library that the tests ask for: `assert mean([1, 3]) == 2`.

    Such a statement uses no other free name, so it says nothing about any other function.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            # no other library than these has decorators
            found |= {
                n for n in names & _decorators(node) if not any(hasattr(m, n) for m in _MAKERS)
            }
        if not isinstance(node, ast.Assert):
            continue
        both = isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.And)
        for part in node.test.values if both else [node.test]:  # type: ignore[attr-defined]
            used = {n for n in ast.walk(part) if isinstance(n, ast.Name)}
            bound = {n.id for n in used if isinstance(n.ctx, ast.Store)}
            free = {n.id for n in used} - bound - known - vars(builtins).keys()
            left = part.left if isinstance(part, ast.Compare) else part
            called = {
                n.func.id
                for n in ast.walk(left)
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
            }
            if len(free) == 1 and free <= called & names:
                found |= free
    judging = {name for name in found if any(word in name.lower() for word in _JUDGING)}
    return {name for name in found - judging if not _is_module(tree, name)}


def _is_module(tree: ast.AST, name: str) -> bool:
    """Whether a name stands for a module: its attributes are read (`sys.x`)."""
    if name not in sys.stdlib_module_names and name not in _ALIASES:
        return False
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
        for node in ast.walk(tree)
    )


def _wrapping(tree: ast.AST, free: set[str]) -> set[str]:
    """Return the free names that judge: they are called with what another free name returns.

    `isclose(mean(x), 1.5)`: the candidate's `isclose` would answer as the candidate likes.
    """
    calls: dict[str, list[bool]] = {name: [] for name in free}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in free:
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            inner = {
                n.func.id
                for argument in arguments
                for n in ast.walk(argument)
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
            }
            others = (inner & free) - {node.func.id}
            calls[node.func.id].append(bool(others) and len(arguments) > 1)
    judging = set()
    for name, wraps in calls.items():
        if wraps and all(wraps) and any(word in name.lower() for word in _JUDGING):
            judging.add(name)
    return judging


def _trusted(tree: ast.AST, names: set[str]) -> dict[str, Any]:
    """Return what libraries define among `names`."""
    space: dict[str, Any] = {}
    for name in names:
        if _is_module(tree, name):
            space[name] = importlib.import_module(_ALIASES.get(name, name))
    for module in _WELL_KNOWN:
        for name in names - space.keys():
            value = vars(importlib.import_module(module)).get(name)
            if callable(value) or isinstance(value, (float, str)):
                space[name] = value
    for module, known in _ELSEWHERE.items():
        for name in (names & set(known)) - space.keys():
            space[name] = vars(importlib.import_module(module))[name]
    return space


# --- definitions that both sides need -------------------------------------------------------------


def shared_definitions(tree: ast.Module) -> tuple[str, tuple[str, ...]]:
    """Return the part of a set-up code that the candidate's program needs, and its classes' names.

    These are imports, classes, and what the classes use. What else the code computes stays here.
    """
    classes = [node for node in tree.body if class_name(node)]
    defined: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            defined |= dict.fromkeys(names, node)
    needed: list[ast.stmt] = []
    waiting: list[ast.stmt] = list(classes)
    while waiting:
        statement = waiting.pop()
        if statement in needed:
            continue
        needed.append(statement)
        used = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
        waiting += [defined[name] for name in used & defined.keys()]
    body: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            # a library may be missing in the sandbox
            pass_ = ast.ExceptHandler(ast.Name("ImportError", ast.Load()), None, [ast.Pass()])
            future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
            body.append(node if future else ast.Try([node], [pass_], [], []))
        elif node in needed:
            body.append(node)
    module = ast.fix_missing_locations(ast.Module(body, []))
    return ast.unparse(module), tuple(class_name(node) for node in classes)


def class_name(statement: ast.stmt) -> str:
    """Return the name of the class that a statement defines; "" if it defines none."""
    match statement:
        case ast.ClassDef(name=name):
            return name
        case ast.Assign(
            targets=[ast.Name(id=name)],
            value=ast.Call(func=ast.Name(id=made) | ast.Attribute(attr=made)),
        ) if made in ("namedtuple", "NamedTuple", "Enum", "IntEnum", "Flag", "make_dataclass"):
            return name
    return ""
