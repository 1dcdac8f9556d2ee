"""Rewrites the code of tests so that a candidate cannot pass them by what it raises or changes.

These places are rewritten; everything else runs as it is written:

    except E                     the exception of a candidate counts as asked for by this name
    with ...                     as does one that a context manager swallows (suppress)
    raises(E, f, x)              as does one that such a call swallows
    f(x) == sorted(x)            a side without the candidate's result is computed from arguments as
                                 they were passed, even if the candidate changed them since
    f(f(x))                      a result that is passed again is not an argument of the test's
    type(x), x.__class__         of a stand-in, the class of what it stands for
    eval("1 + 2")                a text that is written in the test is evaluated in its process
"""

import ast
import builtins
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from posttrain.sandbox.origins import Origins, is_constant, name_of, names, origins_of
from posttrain.sandbox.remote import Remote
from posttrain.sandbox.session import Session

_RAISING = ("assertRaises", "assertRaisesRegex", "raises")


def instrument(tree: ast.Module, candidates: set[str]) -> ast.Module:
    """Return the tree of a test, rewritten in place.

    Args:
        tree: The test.
        candidates: Names that stand for functions and classes of the candidate.
    """
    rewritten = _Rewriter(origins_of(tree, candidates)).visit(tree)
    ast.fix_missing_locations(rewritten)
    assert isinstance(rewritten, ast.Module)
    return rewritten


@dataclass
class _Rewriter(ast.NodeTransformer):
    origins: Origins
    classes: list[str] = field(default_factory=list)
    """Classes around the node: names in a class body are not seen by a lambda."""
    starred: set[int] = field(default_factory=set)
    """Ids of the handlers of `except*`."""

    def visit(self, node: ast.AST) -> Any:
        """Rewrite a node, unless it is a constant."""
        return node if is_constant(node) else super().visit(node)

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
        flags = [ast.Constant(flag) for flag in (self._is_own(asked), id(node) in self.starred)]
        node.type = _call("__caught__", asked, *flags)
        return node

    def visit_TryStar(self, node: ast.TryStar) -> ast.AST:
        self.starred |= set(map(id, node.handlers))
        return self.generic_visit(node)

    def _is_own(self, asked: ast.expr) -> bool:
        """Whether an exception class, or what holds it, is one that the candidate defines."""
        return not self.origins.candidates.isdisjoint(names(asked))

    def _visit_with(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        own = ast.Constant(any(self._is_own(item.context_expr) for item in node.items))
        outer = ast.withitem(_call("__around__", own), ast.Name("__with__", ast.Store()))
        inner = ast.withitem(
            ast.Attribute(ast.Name("__with__", ast.Load()), "inner", ast.Load()), None
        )
        if isinstance(node, ast.With):
            node.items = [outer, *node.items, inner]
        return node  # type: ignore[no-any-return]

    visit_With = visit_AsyncWith = _visit_with

    def _visit_operation(self, node: Any) -> ast.AST:
        operands = self.origins.operands(node)
        levels = [self.origins.level(operand) for operand in operands]
        again = isinstance(node, ast.Call) and name_of(node.func) in self.origins.calling
        marked = [again and self.origins.level(a) > 0 for a in getattr(node, "args", [])]
        self.generic_visit(node)
        if again:
            node.args = [_again(a) if mark else a for a, mark in zip(node.args, marked)]
        if not any(levels):
            return node  # type: ignore[no-any-return]
        # visiting may have replaced the operands
        slots = _slots(node, operands, self.origins)
        top = max(levels)
        late = {
            i: self._as_passed(slot, level)
            for i, (slot, level) in enumerate(zip(slots, levels))
            if level < top
        }
        late = {i: new for i, new in late.items() if new is not slots[i]}
        return _with_operands(node, slots, late)

    visit_Compare = visit_BinOp = visit_Tuple = visit_List = _visit_operation

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        reads_class = node.attr == "__class__" and isinstance(node.ctx, ast.Load)
        return _call("__type__", node.value) if reads_class else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = name_of(node.func).strip(".")
        if name == "type" and isinstance(node.func, ast.Name) and len(node.args) == 1:
            node.func.id = "__type__"
        if name in _RAISING and len(node.args) > 1:
            self.generic_visit(node)
            return _call("__raising__", node.func, *node.args, keywords=node.keywords)
        if name in ("eval", "exec", "compile") and isinstance(node.func, ast.Name):
            self.generic_visit(node)
            if node.args and isinstance(node.args[0], ast.Constant):
                node.func.id = f"__{name}__"  # a text of the test's own
            return node
        return self._visit_operation(node)

    def _visit_assignment(self, node: Any) -> ast.AST:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        value = node.value
        # a second name of an object stays one
        fits = value is not None and not isinstance(value, (ast.Name, ast.Constant))
        fits = fits and self._is_expectation(targets, value)
        self.generic_visit(node)
        if fits:
            node.value = self._as_passed(node.value, 0)
        return node  # type: ignore[no-any-return]

    visit_Assign = visit_AnnAssign = visit_AugAssign = _visit_assignment

    def _visit_loop(self, node: Any) -> ast.AST:
        fits = self._is_expectation([node.target], node.iter)
        self.generic_visit(node)
        if fits:
            node.iter = self._as_passed(node.iter, 0)
        return node  # type: ignore[no-any-return]

    visit_For = visit_comprehension = _visit_loop

    def _is_expectation(self, targets: list[ast.expr], value: ast.expr) -> bool:
        """Whether an assignment gives a value to names that a result is compared with."""
        given = set().union(*map(names, targets))
        expected = not self.origins.expected.isdisjoint(given)
        return expected and not self.origins.level(value)

    def _as_passed(self, node: ast.expr, level: int) -> ast.expr:
        """Return an expression of the same value, from arguments as they were passed.

        Args:
            node: The expression.
            level: See `Origins.level`.
        """
        if isinstance(node, ast.Starred):
            node.value = self._as_passed(node.value, level)
            return node
        if not (names(node) - vars(builtins).keys()) or isinstance(node, ast.Lambda):
            return node
        if self.classes[-1:] == ["class"]:
            return node
        unfit = (ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await)
        if any(isinstance(n, unfit) for n in ast.walk(node)):
            return node
        nothing = ast.arguments([], [], None, [], [], None, [])
        return _call("__as_passed__", ast.Lambda(nothing, node), ast.Constant(level))


def _again(node: ast.expr) -> ast.expr:
    """Return an argument of the candidate that is, or holds, a result of the candidate."""
    if isinstance(node, ast.Starred):
        node.value = _call("__again__", node.value)
        return node
    return _call("__again__", node)


def _slots(node: Any, operands: list[ast.expr], origins: Origins) -> list[ast.expr]:
    """Return the operands of a node that was visited, in the order of `Origins.operands`."""
    match node:
        case ast.Compare(left=left, comparators=others):
            return [left, *others]
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return list(parts)
    slots = [*node.args, *(keyword.value for keyword in node.keywords)]
    return [node.func.value, *slots] if len(slots) < len(operands) else slots


def _with_operands(node: Any, slots: list[ast.expr], late: dict[int, ast.expr]) -> ast.AST:
    """Return a node in which some operands are replaced and come after the others.

    `x == f(x)` is to compare with what x was before the call, so x is evaluated after it:
    (lambda b, a: a == b)(f(x), as_passed(x)).
    """
    last_kept = max((i for i in range(len(slots)) if i not in late), default=-1)
    starred = any(isinstance(slot, ast.Starred) for slot in slots)
    starred |= any(k.arg is None for k in getattr(node, "keywords", []))
    if not late or starred or min(late) > last_kept:
        return _filled(node, slots, late)  # type: ignore[no-any-return]
    parameters = {i: f"__operand_{i}__" for i in range(len(slots))}
    values = [(parameters[i], slot) for i, slot in enumerate(slots) if i not in late]
    values += [(parameters[i], new) for i, new in late.items()]
    body = _filled(node, slots, {i: ast.Name(name, ast.Load()) for i, name in parameters.items()})
    if isinstance(body, ast.Call) and not _is_own_operand(body.func, parameters):
        values.insert(0, ("__function__", body.func))
        body.func = ast.Name("__function__", ast.Load())
    arguments = [ast.arg(name) for name, _ in values]
    function = ast.Lambda(ast.arguments([], arguments, None, [], [], None, []), body)
    return ast.Call(function, [value for _, value in values], [])


def _is_own_operand(function: ast.expr, parameters: dict[int, str]) -> bool:
    """Whether a call's function is a method of one of its operands."""
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id in parameters.values()
    )


def _filled(node: Any, slots: list[ast.expr], new: dict[int, ast.expr]) -> Any:
    """Return a node with new operands at these places."""
    filled = [new.get(i, slot) for i, slot in enumerate(slots)]
    if isinstance(node, ast.Compare):
        node.left, node.comparators = filled[0], filled[1:]
    elif isinstance(node, ast.BinOp):
        node.left, node.right = filled
    elif isinstance(node, (ast.Tuple, ast.List)):
        node.elts = filled
    else:
        if len(filled) > len(node.args) + len(node.keywords):
            node.func.value = filled.pop(0)
        count = len(node.args)
        node.args = filled[:count]
        for keyword, value in zip(node.keywords, filled[count:]):
            keyword.value = value
    return node


def _call(name: str, *args: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(args), keywords or [])


# --- what the rewritten code calls ----------------------------------------------------------------


@dataclass
class _Around:
    """Sees whether a context manager between it and `inner` swallows an exception."""

    session: Session
    own: bool
    """Whether the candidate defines what the context manager swallows."""
    seen: list[BaseException] = field(default_factory=list)

    @property
    def inner(self) -> "_Inner":
        return _Inner(self.seen)

    def __enter__(self) -> "_Around":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            skipped = getattr(sys.modules.get("unittest"), "SkipTest", ())
            for swallowed in self.seen:
                if not isinstance(swallowed, skipped):  # subTest would count it as no failure
                    self.session.asked(swallowed)
                if self.own and _is_failure(swallowed):
                    self.session.failures.append(swallowed)


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

    def caught(asked: Any, own: bool, star: bool) -> Any:
        error = sys.exc_info()[1]
        assert error is not None
        if own and _is_failure(error):
            return ()
        kinds = tuple(_matching(session, error, asked))
        in_group = star and isinstance(error, BaseExceptionGroup) and error.subgroup(kinds)
        if isinstance(error, kinds) or in_group:
            session.asked(error)  # what `except*` leaves of a group is raised again
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
        "__around__": lambda own: _Around(session, own),
        "__raising__": raising,
        "__again__": session.changes.passed_again,
        "__type__": session.type_of,
        "__as_passed__": session.as_passed,
        "__eval__": _of_constant(eval),
        "__exec__": _of_constant(exec),
        "__compile__": lambda *arguments, **named: compile(*arguments, **named),
    }


def _is_failure(error: BaseException) -> bool:
    """Whether a test raised an exception to fail, which no class of the candidate's may name."""
    return isinstance(error, AssertionError) and not hasattr(error, "_stand_in")


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
