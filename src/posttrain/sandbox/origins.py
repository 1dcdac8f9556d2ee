"""Which expressions of a test come from a candidate, and which it is compared with.

The analysis goes by names, without regard to scopes; an attribute counts as a name that begins with
a dot (`self.got` is ".got").
"""

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Methods that change neither the object nor the arguments.
READING = frozenset({"issubset", "issuperset", "isdisjoint", "union", "intersection"})
READING |= {"difference", "index", "count", "find", "startswith", "endswith", "equals"}
READING |= {"__eq__", "__ne__", "__contains__"}
# Methods that keep their argument.
_KEEPING = frozenset(
    ("append", "appendleft", "add", "extend", "insert", "update", "setdefault", "put", "push")
)
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_NAMING = (ast.Name, ast.Lambda, ast.Yield, ast.YieldFrom, ast.Await)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Origins:
    """The names of a test by what they have to do with the candidate."""

    calling: set[str]
    """Functions and classes of the candidate, and those of the test that call them."""
    candidates: frozenset[str] = frozenset()
    """The functions and classes of the candidate."""
    results: set[str] = field(default_factory=set)
    """Names that hold what was computed with them."""
    expected: set[str] = field(default_factory=set)
    """Names that hold what results are compared with, or what that is computed from."""
    judged: set[int] = field(default_factory=set)
    """Ids of collections that are compared themselves: `(pop(x), x) == (3, [1, 2])`."""
    functions: dict[str, Function] = field(default_factory=dict)
    """Functions that the test defines."""

    def level(self, node: ast.AST | None) -> int:
        """Return 2 if an expression runs the candidate, 1 if it uses a result, else 0."""
        if node is None or (isinstance(node, ast.Name) and node.id in self.calling - self.results):
            return 0
        level = 0
        for part in walk(node):
            runs = isinstance(part, (ast.Call, ast.Subscript))  # f[x] of a class runs it, too
            if runs and not self.calling.isdisjoint(names(part)):
                return 2
            if isinstance(part, (ast.Name, ast.Attribute)) and name_of(part) in self.results:
                level = 1
        return level

    def operands(self, node: ast.AST) -> list[ast.expr]:
        """Return the operands of an expression that brings results and other values together."""
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others):
                identity = (ast.Is, ast.IsNot, ast.NotIn)
                return [] if any(isinstance(op, identity) for op in ops) else [left, *others]
            case ast.BinOp(left=left, right=right):
                return [left, right]
            case ast.Tuple(elts=parts, ctx=ast.Load()) | ast.List(elts=parts, ctx=ast.Load()):
                return [] if id(node) in self.judged else parts
            case ast.Call(func=function, args=args, keywords=keywords):
                return self._arguments(function, [*args, *(k.value for k in keywords)])
        return []

    def _arguments(self, function: ast.expr, arguments: list[ast.expr]) -> list[ast.expr]:
        name = name_of(function)
        if name in ("eval", "exec", "compile", "super", ".assertIs", ".assertIsNot", ".is_"):
            return []
        if name in self.calling or (not name and not self.calling.isdisjoint(names(function))):
            return []
        if isinstance(function, ast.Attribute):
            if function.attr in READING:
                return [function.value, *arguments]
            if self.level(function.value):
                return []
        local = self.functions.get(name.strip("."))
        if local is not None and _indexes(local):
            return []
        return arguments


def origins_of(tree: ast.AST, candidates: set[str]) -> Origins:
    """Return the origins of the names in a test.

    Args:
        tree: The test.
        candidates: Names that stand for functions and classes of the candidate.
    """
    nodes = _marked(tree)
    found = Origins(set(candidates), frozenset(candidates))
    found.functions = {node.name: node for node in nodes if isinstance(node, _FUNCTION)}
    found.judged = {id(part) for node in nodes for part in _judged(node)}
    methods = {
        id(part)
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for part in node.body
        if isinstance(part, _FUNCTION)
    }
    sizes = (-1, -1)
    while sizes != (sizes := (len(found.calling), len(found.results))):
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f".{node.name}" if id(node) in methods else node.name
                if not found.calling.isdisjoint(names(node)):
                    found.calling |= {name} - {"check", "__init__", ".__init__"}
            for target, value in _flows(node, found):
                if value is not None and _passes_on(value, found.calling):
                    found.calling |= _stored(target)
                if found.level(value):
                    found.results |= _stored(target)
    size = -1
    for node in nodes:
        operands = found.operands(node)
        levels = [found.level(operand) for operand in operands]
        for operand, level in zip(operands, levels):
            if level == 0 < max(levels):
                found.expected |= names(operand) - vars(builtins).keys()
    while size != (size := len(found.expected)):
        for node in nodes:
            for target, value in _flows(node, found):
                if value is not None and not _stored(target).isdisjoint(found.expected):
                    found.expected |= names(value) - vars(builtins).keys()
    return found


def names(node: ast.AST) -> set[str]:
    """Return the names and attributes in a part of a test."""
    return {name_of(part) for part in walk(node) if isinstance(part, (ast.Name, ast.Attribute))}


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a part of a test and its parts, except what `is_constant`."""
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if not is_constant(part):
            yield part
            waiting += ast.iter_child_nodes(part)


def is_constant(node: ast.AST) -> bool:
    """Whether an expression is known to use no name, as the large tables of some tests."""
    return getattr(node, "is_constant", False)


def _marked(tree: ast.AST) -> list[ast.AST]:
    """Mark the expressions of a test that use no name, and return all other nodes."""
    every = list(ast.walk(tree))
    kept: set[int] = set()
    for node in reversed(every):  # parts come before what they are part of
        holds = any(id(part) in kept for part in ast.iter_child_nodes(node))
        if isinstance(node, ast.expr) and not holds and not isinstance(node, _NAMING):
            node.is_constant = True  # type: ignore[attr-defined]
        elif holds or isinstance(node, _NAMING):
            kept.add(id(node))
    return [node for node in every if not is_constant(node)]


def name_of(node: ast.AST) -> str:
    """Return the name of a variable, or of an attribute with a dot; "" for anything else."""
    if isinstance(node, ast.Attribute):
        return f".{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _stored(target: ast.AST) -> set[str]:
    """Return the names that a target of an assignment gives a value, or a new item."""
    match target:
        case ast.Name() | ast.Attribute():
            return {name_of(target)}
        case ast.Subscript(value=value) | ast.Starred(value=value):
            return _stored(value)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return set().union(*map(_stored, parts))
    return set()


def _flows(node: ast.AST, found: Origins) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    """Yield (target, value) of what a node assigns."""
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                pair: Any = (target, value)
                if all(isinstance(part, ast.Tuple) for part in pair) and (
                    len(pair[0].elts) == len(pair[1].elts)
                ):
                    yield from zip(pair[0].elts, pair[1].elts)
                else:
                    yield target, value
        case ast.AnnAssign(target=target, value=value) | ast.AugAssign(target=target, value=value):
            yield target, value
        case ast.NamedExpr(target=target, value=value):
            yield target, value
        case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
            yield from _loops(target, value)
        case ast.AsyncFor(target=target, iter=value):
            yield target, value
        case ast.withitem(context_expr=value, optional_vars=target) if target:
            yield target, value
        case ast.Call(func=ast.Attribute(value=receiver, attr=name), args=args):
            if name in _KEEPING:
                yield from ((receiver, argument) for argument in args)
    if isinstance(node, ast.Call):
        function = found.functions.get(name_of(node.func).strip("."))
        if function is not None:
            yield from _parameters(function, node)


def _loops(target: ast.AST, value: ast.expr) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    match target, value:
        case ast.Tuple(elts=[_, item]), ast.Call(func=ast.Name("enumerate"), args=[items, *_]):
            yield item, items  # the number of an item is no result
        case _, ast.Call(func=ast.Name("range"), args=[ast.Call(func=ast.Name("len"))]):
            pass
        case _:
            yield target, value


def _parameters(function: Function, call: ast.Call) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    parameters = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    if isinstance(call.func, ast.Attribute) and parameters[:1] == ["self"]:
        del parameters[0]
    for parameter, argument in zip(parameters, call.args):
        yield ast.Name(parameter), argument
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield ast.Name(keyword.arg), keyword.value


def _passes_on(value: ast.AST, calling: set[str]) -> bool:
    """Whether a value is a function that calls the candidate: by name, made of it, or a lambda."""
    if calling.isdisjoint(names(value)):
        return False
    if isinstance(value, ast.Lambda):
        return True
    match value:
        case ast.Name():
            return True
        case ast.Call(func=function, args=parts):  # a decorator, functools.partial
            if name_of(function) in vars(builtins):
                return False
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Dict(values=parts):
            pass
        case _:
            return False
    return any(isinstance(part, ast.Name) and part.id in calling for part in parts)


def _judged(node: ast.AST) -> list[ast.expr]:
    """Return the expressions that a node compares, or passes to what compares them."""
    match node:
        case ast.Compare(left=left, comparators=others):
            return [left, *others]
        case ast.Call(func=function, args=args) if "assert" in name_of(function).lower():
            return args
        case ast.Subscript(slice=index):
            return [index]
    return []


def _indexes(function: Function) -> bool:
    """Whether a function uses one parameter as an index into another: they belong together."""
    parameters = {a.arg for a in (*function.args.posonlyargs, *function.args.args)}
    return any(
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id in parameters
        and not parameters.isdisjoint(names(node.slice))
        for node in ast.walk(function)
    )
