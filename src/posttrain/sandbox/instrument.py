"""Rewrites the code of tests so that a candidate cannot pass them by what it raises or changes.

Four kinds of places are rewritten; everything else runs as it is written:

    except E                     the exception of a candidate counts as asked for by this name
    with ...                     as does one that a context manager swallows (suppress)
    f(x) == sorted(x)            a side without the candidate's result is computed from arguments as
                                 they were passed, even if the candidate changed them since
    statements of check          each test is recorded, for partial credit
"""

import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from posttrain.sandbox.remote import Remote
from posttrain.sandbox.session import Session

_JUDGES = ("assert", "isclose", "is_close", "allclose", "array_equal", "almost_equal", "approx")
_RAISING = ("assertRaises", "assertRaisesRegex", "raises")


def instrument(tree: ast.Module, candidates: set[str]) -> ast.Module:
    """Return the tree of a test, rewritten in place.

    Args:
        tree: The test.
        candidates: Names that stand for functions and classes of the candidate.
    """
    results = _results(tree, candidates)
    rewritten = _Rewriter(results, _expected(tree, results)).visit(tree)
    ast.fix_missing_locations(rewritten)
    assert isinstance(rewritten, ast.Module)
    return rewritten


def _results(tree: ast.AST, candidates: set[str]) -> set[str]:
    """Return `candidates` and the names that hold what was computed with them."""
    names = set(candidates)
    while True:
        before = len(names)
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=targets, value=value):
                    pass
                case (
                    ast.AnnAssign(target=target, value=value)
                    | ast.AugAssign(target=target, value=value)
                ):
                    targets = [target]
                case ast.NamedExpr(target=target, value=value):
                    targets = [target]
                case (
                    ast.For(target=target, iter=value)
                    | ast.comprehension(target=target, iter=value)
                ):
                    targets = [target]
                case ast.withitem(context_expr=value, optional_vars=target) if target:
                    targets = [target]
                case _:
                    continue
            if value is not None and mentions(value, names):
                names |= {
                    n.id
                    for target in targets
                    for n in ast.walk(target)
                    if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
                }
        if len(names) == before:
            return names


def _expected(tree: ast.AST, results: set[str]) -> set[str]:
    """Return the names in what results are compared with."""
    names: set[str] = set()
    for node in ast.walk(tree):
        operands: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.BinOp):
            operands = [node.left, node.right]
        elif isinstance(node, ast.Call):
            operands = node.args
        if any(mentions(operand, results) for operand in operands):
            apart = [operand for operand in operands if not mentions(operand, results)]
            names |= {n.id for e in apart for n in ast.walk(e) if isinstance(n, ast.Name)}
    return names


def mentions(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression uses one of these names."""
    return any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(node))


@dataclass
class _Rewriter(ast.NodeTransformer):
    results: set[str]
    """Names that hold what was computed with the candidate."""
    expected: set[str]
    """Names in what results are compared with."""
    classes: list[str] = field(default_factory=list)
    """Classes around the node: names in a class body are not seen by a lambda."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.classes.append("class")
        self.generic_visit(node)
        self.classes.pop()
        return node

    def _visit_function(self, node: Any) -> ast.AST:
        self.classes.append("function")
        self.generic_visit(node)
        self.classes.pop()
        return node  # type: ignore[no-any-return]

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        asked = node.type or ast.Name("BaseException", ast.Load())
        node.type = _call("__caught__", asked)
        return node

    def _visit_with(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        outer = ast.withitem(_call("__around__"), ast.Name("__with__", ast.Store()))
        inner = ast.withitem(
            ast.Attribute(ast.Name("__with__", ast.Load()), "inner", ast.Load()), None
        )
        if isinstance(node, ast.With):
            node.items = [outer, *node.items, inner]
        return node  # type: ignore[no-any-return]

    visit_With = visit_AsyncWith = _visit_with

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        if names & self.expected and not isinstance(node.value, (ast.Name, ast.Lambda)):
            node.value = self._as_passed(node.value)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        operands = [node.left, *node.comparators]
        if not any(mentions(operand, self.results) for operand in operands):
            return node
        plain = (ast.Is, ast.IsNot, ast.In, ast.NotIn)
        for i, operator in enumerate(node.ops):
            if not isinstance(operator, plain):
                operands[i] = self._as_passed(operands[i])
                operands[i + 1] = self._as_passed(operands[i + 1])
        node.left, node.comparators = operands[0], operands[1:]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if mentions(node.left, self.results) != mentions(node.right, self.results):
            node.left, node.right = self._as_passed(node.left), self._as_passed(node.right)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node.func:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                pass
            case _:
                return node
        if name in ("eval", "exec", "compile") and isinstance(node.func, ast.Name):
            if node.args and isinstance(node.args[0], ast.Constant):
                node.func.id = f"__{name}__"  # a text of the test's own
        elif name in _RAISING and len(node.args) > 1:
            return _call("__raising__", node.func, *node.args, keywords=node.keywords)
        elif (name == "zip" or any(judge in name.lower() for judge in _JUDGES)) and any(
            mentions(argument, self.results) for argument in node.args
        ):
            node.args = [self._as_passed(argument) for argument in node.args]
        return node

    def _as_passed(self, node: ast.expr) -> ast.expr:
        """Return an expression of the same value, from arguments as they were passed."""
        if not any(isinstance(n, ast.Name) for n in ast.walk(node)):
            return node
        if mentions(node, self.results) or self.classes[-1:] == ["class"]:
            return node
        unfit = (ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await, ast.Starred)
        if any(isinstance(n, unfit) for n in ast.walk(node)):
            return node
        nothing = ast.arguments([], [], None, [], [], None, [])
        return _call("__as_passed__", ast.Lambda(nothing, node))


def _call(name: str, *args: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(args), keywords or [])


# --- what the rewritten code calls ----------------------------------------------------------------


@dataclass
class _Around:
    """Sees whether a context manager between it and `inner` swallows an exception."""

    session: Session
    seen: list[BaseException] = field(default_factory=list)

    @property
    def inner(self) -> "_Inner":
        return _Inner(self.seen)

    def __enter__(self) -> "_Around":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            for swallowed in self.seen:
                self.session.asked(swallowed)


@dataclass
class _Inner:
    seen: list[BaseException]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.seen.append(error)


def helpers(session: Session) -> dict[str, Any]:
    """Return what instrumented code calls, by name."""

    def caught(asked: Any) -> Any:
        error = sys.exc_info()[1]
        assert error is not None
        kinds = tuple(_matching(session, error, asked))
        if isinstance(error, kinds):
            session.asked(error)
        return kinds

    def raising(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        before = list(session.pending)
        value = function(*args, **named)
        for error in session.pending:
            if error not in before and isinstance(error, args[0]):
                session.asked(error)
        return value

    return {
        "__caught__": caught,
        "__around__": lambda: _Around(session),
        "__raising__": raising,
        "__as_passed__": session.as_passed,
        "__eval__": _of_constant(eval),
        "__exec__": _of_constant(exec),
        "__compile__": lambda *arguments, **named: compile(*arguments, **named),
    }


def _of_constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `eval` or `exec` for a text that is written in the test."""

    def evaluate(text: str, *spaces: Any) -> Any:
        frame = sys._getframe(1)
        return function(text, *(spaces or (frame.f_globals, frame.f_locals)))

    return evaluate


def _matching(session: Session, error: BaseException, asked: Any) -> list[type[BaseException]]:
    """Return the classes of an `except`; for a class of the candidate's, that of `error` if so."""
    found: list[type[BaseException]] = []
    for kind in asked if type(asked) is tuple else (asked,):
        if type(kind) is not Remote:
            found.append(kind)
            continue
        stand_in = getattr(error, "_stand_in", None)
        if stand_in is not None and session.ask("isinstance", stand_in, kind) is True:
            found.append(type(error))
    return found


# --- partial credit -------------------------------------------------------------------------------


def record_tests(body: list[ast.stmt]) -> tuple[list[ast.stmt], int]:
    """Return statements that record each test of `body` in `__tally__`, and the number of tests.

    A test is a statement that asserts something, directly or in its parts, or calls something for
    its effect. After a failed test, the next one runs.
    """
    recorded: list[ast.stmt] = []
    count = 0
    for statement in body:
        if is_test(statement):
            (wrapper,) = ast.parse(_RECORDED.format(count)).body
            assert isinstance(wrapper, ast.Try)
            wrapper.body = [statement]
            recorded.append(wrapper)
            count += 1
        else:
            recorded.append(statement)
    return recorded, count


def is_test(statement: ast.stmt) -> bool:
    """Whether a statement of check is a test."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return False
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    return any(isinstance(node, ast.Assert) for node in ast.walk(statement))


_RECORDED = """
try: pass
except BaseException as __error__: __tally__.record({0}, __error__)
else: __tally__.record({0}, None)
"""
