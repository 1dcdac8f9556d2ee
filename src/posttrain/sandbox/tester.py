"""Runs the tests of one row in a trusted process, against a candidate in another process.

The tests' own code, the expected values and all comparisons are here. Names that the tests use but
do not define stand for the candidate's functions (`remote.Remote`).
"""

import ast
import builtins
import importlib
import random
import symtable
import sys
from dataclasses import asdict, dataclass
from types import CodeType
from typing import Any

from posttrain.sandbox.extract import program_of, prompt_code, python_of
from posttrain.sandbox.remote import CandidateGone, NotPlain, Session, Unsendable

DETAIL = 300  # characters
_WELL_KNOWN = ("math", "collections", "itertools", "functools", "statistics", "copy", "operator")
_ALIASES = {"np": "numpy"}


@dataclass
class Verdict:
    """The outcome of judging one completion."""

    verdict: str
    """correct, wrong, error, timeout, memory, output, died, protocol, no_code; or bad_test."""
    passed: int = 0
    total: int = 0
    """Number of tests: those in the row, or those that were run if they are more (in a loop)."""
    detail: str = ""


@dataclass
class Tally:
    """The number of tests run and passed so far, and the first problem."""

    session: Session
    passed: int = 0
    total: int = 0
    problem: Verdict | None = None

    def run(self, test: CodeType, space: dict[str, Any]) -> bool:
        """Run one test, and return whether it passed."""
        try:
            exec(test, space)
        except Exception as error:
            return self.record(error)
        return self.record(None)

    def record(self, error: Exception | None) -> bool:
        """Count one test, and return whether it passed."""
        self.total += 1
        if error is not None:
            self.fail(error)
        passed = error is None and self.session.gone is None
        self.passed += passed
        return passed

    def fail(self, error: Exception) -> None:
        """Note an exception as the problem, unless there is one already."""
        # Before the first call, these two errors cannot be the candidate's doing.
        is_own = isinstance(error, (Unsendable, ImportError)) and self.session.num_asked < 2
        self.problem = self.problem or (bad_test(error) if is_own else explain(error))

    def verdict(self, num_tests: int) -> Verdict:
        """Return the verdict on a completion whose row has `num_tests` tests."""
        problem = self.problem
        if problem is not None and problem.verdict == "bad_test":
            return problem
        if self.session.gone is not None:  # even if the test caught the exception
            problem = Verdict(self.session.gone, detail=problem.detail if problem else "")
        total = max(self.total, num_tests)
        if problem is None:
            return Verdict("correct", total, total)
        return Verdict(problem.verdict, min(self.passed, total - 1), total, problem.detail)


def explain(error: BaseException) -> Verdict:
    """Return the verdict for an exception that ended a test."""
    kind = "error"
    if isinstance(error, (AssertionError, CandidateGone, NotPlain)):
        kind = "wrong"
    elif isinstance(error, MemoryError):
        kind = "memory"
    return Verdict(kind, detail=f"{type(error).__name__}: {error}"[:DETAIL])


def bad_test(error: Exception) -> Verdict:
    """Return the verdict for tests that fail by themselves, whatever the candidate does."""
    return Verdict("bad_test", detail=f"{type(error).__name__}: {error}"[:DETAIL])


def run_tests(job: dict[str, Any], session: Session, limits: dict[str, int]) -> dict[str, Any]:
    """Return the verdict on a job of form "check" (HumanEval) or "asserts" (MBPP), as a dict."""
    random.seed(0)  # some tests draw their inputs at random
    run = run_check if job["form"] == "check" else run_asserts
    return asdict(run(job, session, limits))


def run_check(job: dict[str, Any], session: Session, limits: dict[str, int]) -> Verdict:
    """Return the verdict on a HumanEval job, whose `test` defines check(candidate)."""
    name = job["entry_point"]
    before = prompt_code(job["prompt"], name)
    tree = ast.parse(job["test"])
    num_tests = sum(isinstance(node, ast.Assert) for node in ast.walk(tree))
    program = program_of(job["completion"], job["prompt"], name)
    if program is None:
        return Verdict("no_code", 0, num_tests, f"no program that defines {name}")
    tally = Tally(session)
    space: dict[str, Any] = {"__name__": "test", "__tally__": tally}
    try:
        exec(compile(without(before, name), "prompt", "exec"), space)
        if job["partial"]:
            tree.body = record_asserts(tree.body)
            ast.fix_missing_locations(tree)
        exec(compile(tree, "test", "exec"), space)
        names = {name, *free_names(job["test"])} - space.keys()
        space |= trusted_names(job["test"], names - {name})
        check = space["check"]
    except Exception as error:
        return bad_test(error)
    loaded = _load(tally, session, program, sorted(names - space.keys()), limits)
    space |= loaded
    if tally.problem is None and session.gone is None and name not in loaded:
        tally.fail(NameError(f"the program does not define {name}"))
    if tally.problem is None and session.gone is None:
        try:
            check(loaded[name])
        except Exception as error:
            tally.fail(error)
    return tally.verdict(num_tests)


def run_asserts(job: dict[str, Any], session: Session, limits: dict[str, int]) -> Verdict:
    """Return the verdict on an MBPP job, whose tests call functions of the program by name."""
    tests: list[str] = job["tests"]
    text = "\n".join([job["setup"], *tests])
    names = free_names(text) or called_builtins(text)
    program = python_of(job["completion"])
    if not program.strip():
        return Verdict("no_code", 0, len(tests), "no Python in the completion")
    tally = Tally(session)
    try:
        space = {"__name__": "test", **trusted_names(text, names)}
    except ImportError as error:
        return bad_test(error)
    space |= _load(tally, session, program, sorted(names - space.keys()), limits)
    if tally.problem is not None or session.gone is not None:
        return tally.verdict(len(tests))
    try:
        exec(compile(job["setup"], "setup", "exec"), space)
    except Exception as error:  # the setup may use the candidate's classes
        tally.fail(error)
        return tally.verdict(len(tests))
    for test in tests:
        if not tally.run(compile(test, "test", "exec"), space) and not job["partial"]:
            break
    return tally.verdict(len(tests))


def _load(
    tally: Tally, session: Session, program: str, names: list[str], limits: dict[str, int]
) -> dict[str, Any]:
    """Return what the program defines of `names`; if it fails, nothing, and note the problem."""
    try:
        return session.load(program, names, limits)
    except Exception as error:
        tally.fail(error)
        return {}


def without(prompt: str, name: str) -> ast.Module:
    """Return the prompt's code without the function `name`, which the candidate has to write."""
    tree = ast.parse(prompt)
    kept = [n for n in tree.body if not (isinstance(n, ast.FunctionDef) and n.name == name)]
    return ast.Module(kept, [])


def free_names(text: str) -> set[str]:
    """Return the global names that `text` reads and that neither it nor Python defines."""
    top = symtable.symtable(text, "test", "exec")
    defined = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    read: set[str] = set()
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                read.add(symbol.get_name())
    return read - defined - vars(builtins).keys()


def called_builtins(text: str) -> set[str]:
    """Return the builtin that each assert calls first, for tests that use no other name.

    A task may ask for a function named `sum`.
    """
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assert):
            call = node.test.left if isinstance(node.test, ast.Compare) else node.test
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                names.add(call.func.id)
    return names


def trusted_names(text: str, names: set[str]) -> dict[str, Any]:
    """Return what the tests use of libraries without importing it, among their free `names`.

    It must come from here: the candidate's `isclose` or `sys` would answer as the candidate likes.
    A name whose attributes the tests read (`sys.x`) is a module. A function of a well-known module
    is trusted if some other name is left for the candidate to define.

    Raises:
        ImportError: The library is not installed.
    """
    bases = {
        node.value.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    space: dict[str, Any] = {}
    for name in names & bases:
        if name in sys.stdlib_module_names or name in _ALIASES:
            space[name] = importlib.import_module(_ALIASES.get(name, name))
    known: dict[str, Any] = {}
    for module in map(importlib.import_module, _WELL_KNOWN):
        known |= {name: vars(module)[name] for name in names & vars(module).keys()}
    return space | (known if names - space.keys() - known.keys() else {})


def record_asserts(block: list[ast.stmt]) -> list[ast.stmt]:
    """Return statements that record each assert in `__tally__`, and continue after a failed one."""
    recorded: list[ast.stmt] = []
    for statement in block:
        if isinstance(statement, ast.Assert):
            (wrapper,) = ast.parse(_RECORDED).body
            assert isinstance(wrapper, ast.Try)
            wrapper.body = [statement]
            recorded.append(wrapper)
            continue
        if not isinstance(statement, ast.Try):  # an assert in a try may be meant to fail
            parts = vars(statement)
            for name in {"body", "orelse"} & parts.keys():
                parts[name] = record_asserts(parts[name])
        recorded.append(statement)
    return recorded


_RECORDED = """
try: pass
except Exception as __error__: __tally__.record(__error__)
else: __tally__.record(None)
"""
