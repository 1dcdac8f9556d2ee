"""Runs the tests of one row in a trusted process, against a candidate in another process.

The tests' own code, the expected values and all comparisons are here. Names that the tests use but
do not define stand for the candidate's functions (`remote.Remote`).
"""

import ast
import builtins
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Any

from posttrain.sandbox.arithmetic import arithmetic, is_arithmetic
from posttrain.sandbox.extract import program_of, prompt_code, python_of
from posttrain.sandbox.instrument import helpers, instrument
from posttrain.sandbox.library import adapt_library
from posttrain.sandbox.names import Names, class_name, names_of, shared_definitions
from posttrain.sandbox.operations import plain_base
from posttrain.sandbox.recording import record_tests
from posttrain.sandbox.remote import NotPlain
from posttrain.sandbox.session import CandidateGone, Session

DETAIL = 300  # characters


@dataclass
class Verdict:
    """The outcome of judging one completion."""

    verdict: str
    """correct, wrong, error, timeout, memory, output, died, protocol, no_code; or bad_test."""
    passed: int = 0
    total: int = 0
    """Number of tests that count: not those that a stub passes."""
    detail: str = ""
    free: list[int] = field(default_factory=list)
    """Numbers of the tests that a stub passes, if that was the question."""


@dataclass
class Report:
    """What the tests of one row came to, in plain values; `lane.py` makes the verdict of it."""

    verdict: str = "correct"
    passed: list[bool] = field(default_factory=list)
    detail: str = ""


@dataclass
class Tally:
    """The tests passed so far, and the first problem."""

    session: Session
    report: Report
    problems: list[BaseException] = field(default_factory=list)
    """All problems, in order."""

    def record(self, number: int, error: BaseException | None) -> bool:
        """Note how a test ended, and return whether it passed."""
        error = self.settle(error)
        if error is not None:
            self.fail(error)
        passed = error is None and self.session.gone is None
        self.report.passed[number] = passed
        return passed

    def settle(self, error: BaseException | None) -> BaseException | None:
        """Return the problem of what has just run: what it raised, or what it passed over."""
        left = [*self.session.failures, *self.session.pending]
        self.session.failures, self.session.pending = [], []
        return error if error is not None else next(iter(left), None)

    def fail(self, error: BaseException) -> None:
        """Note an exception as the problem, unless there is one already."""
        self.problems.append(error)
        if self.report.verdict == "correct":
            self.report.verdict, self.report.detail = explain(error)

    def run(self, action: Callable[[], Any]) -> BaseException | None:
        """Run a part of the tests, and return its problem."""
        try:
            action()
        except BaseException as error:
            return self.settle(error)
        return self.settle(None)

    def result(self) -> Report:
        """Return the report, once the tests have run."""
        if self.session.gone is not None:  # even if the test caught the exception
            self.report.verdict = self.session.gone
        return self.report


def explain(error: BaseException) -> tuple[str, str]:
    """Return the verdict and the detail for an exception that ended a test."""
    kind = "error"
    if isinstance(error, (AssertionError, CandidateGone, NotPlain)):
        kind = "wrong"
    elif isinstance(error, MemoryError):
        kind = "memory"
    try:
        return kind, f"{type(error).__name__}: {error}"[:DETAIL]
    except Exception:  # the text of a candidate's exception
        return kind, type(error).__name__


def bad_test(error: BaseException) -> Report:
    """Return the report of tests that fail by themselves, whatever the candidate does."""
    return Report("bad_test", [], explain(error)[1])


def run_tests(
    job: dict[str, Any],
    session: Session,
    limits: dict[str, int],
    problems: list[BaseException] | None = None,
) -> Report:
    """Return the report on a job of form "check" (HumanEval) or "asserts" (MBPP).

    Args:
        job: The tests and the completion.
        session: The candidate, which has loaded nothing yet.
        limits: Limits that its process sets on itself.
        problems: Where to note all that the tests raise.
    """
    adapt_library()
    random.seed(0)  # some tests draw their inputs at random
    run = run_check if job["form"] == "check" else run_asserts
    tally = Tally(session, Report(), [] if problems is None else problems)
    return run(job, tally, limits)


def run_check(job: dict[str, Any], tally: Tally, limits: dict[str, int]) -> Report:
    """Return the report on a HumanEval job, whose `test` defines check(candidate)."""
    session, report = tally.session, tally.report
    name = job["entry_point"]
    try:
        check = check_code(job["prompt"], name, job["test"], job["partial"])
    except Exception as error:
        return bad_test(error)
    report.passed = [False] * max(check.num_tests, 1)
    program = program_of(job["completion"], job["prompt"], name)
    if program is None:
        return Report("no_code", report.passed, f"no program that defines {name}")
    space = namespace(session, "test") | {"__tally__": tally}
    try:
        exec(check.prompt, space)
        exec(check.test, space)
        space |= {n: v for n, v in check.names.trusted.items() if n not in space}
    except BaseException as error:
        return bad_test(error)
    classes = share(session, space, check.classes)
    loaded: dict[str, Any] = {}
    error_ = tally.run(lambda: loaded.update(session.load(program, [name], limits, "", classes)))
    if error_ is None and name not in loaded:
        error_ = NameError(f"the program does not define {name}")
    if error_ is None:
        space |= loaded
        error_ = tally.run(lambda: space["check"](loaded[name]))
    if error_ is not None:
        tally.fail(error_)
    if report.verdict == "correct":
        report.passed = [True] * len(report.passed)
    return tally.result()


def run_asserts(job: dict[str, Any], tally: Tally, limits: dict[str, int]) -> Report:
    """Return the report on an MBPP job, whose tests call functions of the program by name."""
    session, report = tally.session, tally.report
    report.passed = [False] * len(job["tests"])
    try:
        code = asserts_code(job["setup"], tuple(job["tests"]))
    except Exception as error:
        return bad_test(error)
    free, definitions, shared = code.names, code.definitions, code.classes
    program = python_of(job["completion"], free.candidate)
    if not program.strip():
        return Report("no_code", report.passed, "no Python in the completion")
    space = namespace(session, "test") | free.trusted
    names = sorted(free.candidate)
    problem = tally.run(
        lambda: space.update(session.load(program, names, limits, definitions, shared))
    )
    if problem is None:
        problem = tally.run(lambda: exec(code.setup, space))  # it may use the candidate's classes
    if problem is not None or session.gone is not None:
        if problem is not None:
            tally.fail(problem)
        return tally.result()
    share(session, space, shared)
    for number, test in enumerate(code.tests):
        error_ = tally.run(lambda: exec(test, space))  # noqa: B023
        if not tally.record(number, error_) and not job["partial"]:
            break
    return tally.result()


@dataclass(frozen=True)
class CheckCode:
    """The code of a HumanEval row."""

    prompt: CodeType
    """The prompt's, without the function that the candidate has to write."""
    test: CodeType
    num_tests: int
    names: Names
    classes: tuple[str, ...]
    """Names of the prompt's classes."""


@lru_cache(maxsize=1)  # for the stubs of a row
def check_code(prompt: str, name: str, test: str, partial: bool) -> CheckCode:
    """Return the code of a HumanEval row; with `partial`, check records each of its tests."""
    before = prompt_code(prompt, name)
    begun = without(before, name)
    classes = tuple(filter(None, map(class_name, begun.body)))
    tree = ast.parse(test)
    check = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check")
    parameters = {a.arg for a in [*check.args.posonlyargs, *check.args.args]}
    instrument(tree, parameters | {name})
    recorded, num_tests = record_tests(check.body)
    if partial and num_tests:
        check.body = recorded
        ast.fix_missing_locations(tree)
    prompt_code_ = compile(instrument(begun, {name}), "prompt", "exec")
    test_code = compile(tree, "test", "exec")
    return CheckCode(prompt_code_, test_code, num_tests, names_of(test, name, before), classes)


@dataclass(frozen=True)
class AssertsCode:
    """The code of an MBPP row."""

    setup: CodeType
    definitions: str
    """The part of the set-up code that the program needs."""
    classes: tuple[str, ...]
    """Names of the classes in it."""
    tests: tuple[CodeType, ...]
    names: Names


@lru_cache(maxsize=1)
def asserts_code(setup: str, tests: tuple[str, ...]) -> AssertsCode:
    """Return the code of an MBPP row."""
    names = names_of("\n".join([setup, *tests]), None)
    tree = ast.parse(setup)
    definitions, classes = shared_definitions(tree)
    code = compile(instrument(tree, names.candidate), "setup", "exec")
    codes = [
        compile(instrument(ast.parse(text), names.candidate), "test", "exec") for text in tests
    ]
    return AssertsCode(code, definitions, classes, tuple(codes), names)


def namespace(session: Session, name: str) -> dict[str, Any]:
    """Return the global names with which a test's code runs.

    A text that a test evaluates may be the candidate's, so it is evaluated in the candidate's
    process.
    """
    kept = vars(builtins) | {
        function: remote_evaluation(session, function) for function in ("eval", "exec", "compile")
    }
    return {"__name__": name, "__builtins__": kept, **helpers(session)}


def remote_evaluation(session: Session, function: str) -> Callable[..., Any]:
    """Return an `eval`, `exec` or `compile` that works in the candidate's process."""

    def evaluate(text: Any, *rest: Any) -> Any:
        if function == "eval" and is_arithmetic(text, *rest[:1]):
            return arithmetic(text, *rest[:1])
        if function == "exec" and not rest:
            rest = ({},)
        return session.ask("eval", function, text, *rest)

    return evaluate


def share(session: Session, space: dict[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """Have instances of these classes pass by their attributes; return the names of those."""
    kinds = {n: space[n] for n in names if isinstance(space.get(n), type)}
    for name, kind in kinds.items():
        if kind.__base__ is tuple:
            session.named_tuples[name, getattr(kind, "_fields", ())] = kind
        if plain_base(kind) is None or hasattr(kind, "_member_map_"):
            session.common.classes[name] = kind
    return names


def without(prompt: str, name: str) -> ast.Module:
    """Return the prompt's code without `name`, which the candidate has to write."""
    tree = ast.parse(prompt)
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    kept = [n for n in tree.body if not (isinstance(n, definitions) and n.name == name)]
    return ast.Module(kept, [])
