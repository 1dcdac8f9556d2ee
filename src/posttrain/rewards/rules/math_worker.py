"""Symbolic comparison of two answers in a process that can be killed.

sympy can run for hours on a short input, and neither a thread nor a signal stops it reliably:
SIGALRM needs the main thread, and a long integer power never returns to the interpreter. So
math-verify runs in one warm child process. The parent measures the child's CPU time, so that a
verdict does not depend on the load of the machine. A child that exceeds its time is killed with
SIGKILL and reaped, and the next call starts a fresh one.

The upper half of this file is the parent's side (`compare`). The lower half is the child's side: it
runs this file as a script, and so never imports the package or torch.
"""

import atexit
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

STARTUP_SECONDS = 60.0  # imports of sympy and math-verify on a cold disk
PATIENCE = 10  # a child that gets too little CPU is killed after this many times its seconds
MEMORY_BYTES = 2 * 1024**3
VERDICTS = ("correct", "wrong", "unparseable_prediction", "unparseable_gold", "timeout")


class _Child:
    """The warm child process, owned by the process that started it."""

    def __init__(self) -> None:
        self.killed = False
        # -P keeps this folder off the child's path, where its math.py would hide the stdlib's.
        self.process = subprocess.Popen(
            [sys.executable, "-P", os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )
        greeting = self._within(STARTUP_SECONDS, None)
        if greeting != "ready":
            self.kill()
            raise RuntimeError(f"the math checker's worker did not start: {greeting or 'no reply'}")

    def ask(self, request: dict[str, Any], timeout: float) -> str | None:
        """Return the child's reply; None if it died.

        A child that died or was killed must be replaced. It may have been killed just after its
        reply: check `killed` also if there is a reply.
        """
        return self._within(timeout, json.dumps(request).encode() + b"\n")

    def _within(self, timeout: float, line: bytes | None) -> str | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(timeout, over), daemon=True)
        watch.start()
        try:
            if line is not None:
                self.process.stdin.write(line)
                self.process.stdin.flush()
            reply = self.process.stdout.readline()
        except OSError:
            reply = b""
        finally:
            over.set()
            watch.join()
        return reply.decode().strip() or None

    def _watch(self, timeout: float, over: threading.Event) -> None:
        """Kill the child after `timeout` seconds of CPU time, unless `over` is set before.

        Its death closes its pipes, which ends a blocked write as well as a blocked read.
        """
        began, before = time.monotonic(), _cpu_seconds(self.process.pid)
        left = timeout
        while not over.wait(left):
            waited, now = time.monotonic() - began, _cpu_seconds(self.process.pid)
            used = waited if before is None or now is None else now - before
            left = min(timeout - used, PATIENCE * timeout - waited)
            if left <= 0:
                self.killed = True
                self.process.kill()
                return

    def kill(self) -> None:
        """End the child and reap it."""
        self.process.kill()
        self.process.wait()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close this process's ends of the child's pipes."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # unsent bytes of a request whose reader is gone
                    pipe.close()


def _cpu_seconds(pid: int) -> float | None:
    """Return the CPU time that a process has used; None if /proc does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_lock = threading.Lock()
_child: _Child | None = None


def compare(gold: str, answer: str, *, whole_text: bool, timeout: float) -> str:
    """Compare two answers symbolically with math-verify.

    Args:
        gold: The reference answer, plain text or LaTeX.
        answer: The completion's answer, or its whole text.
        whole_text: Whether `answer` is prose in which math-verify looks for the answer itself.
        timeout: Limit of this comparison, in seconds of CPU time. Starting the child is not
            counted.

    Returns:
        One of `VERDICTS`. "timeout" also stands for a child that hit its memory limit or crashed.

    Raises:
        RuntimeError: The child cannot start, for example because math-verify is not installed.
    """
    global _child
    request = {"gold": gold, "answer": answer, "whole_text": whole_text, "seconds": timeout}
    with _lock:
        if _child is None:
            _child = _Child()
        healthy = False
        try:
            verdict = _child.ask(request, timeout)
            healthy = verdict in VERDICTS and not _child.killed
        finally:  # also on KeyboardInterrupt: a late reply must not answer the next question
            if not healthy:
                _child.kill()
                _child = None
    return verdict if verdict in VERDICTS else "timeout"


def close() -> None:
    """End the child process, if there is one. The next comparison starts a new one."""
    global _child
    with _lock:
        if _child is not None:
            _child.kill()
            _child = None


def _forget_after_fork() -> None:
    """Forget the parent's child after a fork, and close its pipes, which would keep it alive."""
    global _child, _lock
    _lock = threading.Lock()
    if _child is not None:
        _child.close_pipes()
        _child = None


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


# --- the child's side -----------------------------------------------------------------------------

_JOIN_WORDS = re.compile(r"\s*(?:,|\\text\s*\{)?\s*\b(?:and|or)\b\s*\}?\s*")
_TEXT_COMMAND = re.compile(r"\\(?:text\w*|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_LITERAL = re.compile(r"(?=.*\w)[\w\s.,:'/()-]+")
_WORDS = re.compile(r"(?=.*[^\W\d_]{4})[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*")
# A thin negative space, a thousands separator (1{,}000 or 1,\!000), a leading "approximately".
_NO_MEANING = re.compile(r"(?:,?\\!|\{,\})\s*(?=\d{3})|\\!|^\s*\$?\s*(?:\\approx|≈)")
_LETTER_FONT = re.compile(r"\\math(?:rm|bf|it|sf)\s*\{\s*([A-Za-z])\s*\}")
_POWER = re.compile(r"(?:\*\*|\^)\s*(-?\d{2,}|(?<=\*)-?\d)")  # 2**10 and 2^10, not 2^1 times 0
_ONE_FORMULA = re.compile(r"\s*(?:\$\$?|\\\(|\\\[)((?:(?!\\[)\]])[^$])+)(?:\$\$?|\\\)|\\\])\s*\.?")
_IN_BASE = re.compile(r"\(?(\w+)\)?_\{?(?:\\text\{)?(\w+)\}*")
_UNICODE_MATH = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "≤": r"\le ",
        "≥": r"\ge ",
        "∞": r"\infty ",
        "±": r"\pm ",
        "√": r"\sqrt ",
        "∪": r"\cup ",
        "∈": r"\in ",
        "°": r"^\circ ",
    }
)


def _literal(text: str) -> str:
    """Return an answer in lower case, without LaTeX text commands and without outer periods."""
    bare = _TEXT_COMMAND.sub(r" \1 ", text).replace("$", " ")
    return " ".join(bare.split()).strip(" .").casefold()


@lru_cache(maxsize=4096)  # one gold is compared with many completions
def _parse(text: str, whole_text: bool) -> Any:
    """Return the sympy object that a text stands for; None if it cannot be read."""
    try:
        return _parse_or_raise(text, whole_text)
    except Exception:  # sympy raises almost any type on malformed input
        return None


def _parse_or_raise(text: str, whole_text: bool) -> Any:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    from sympy import Eq, Float, Rational, nan, zoo

    text = _LETTER_FONT.sub(r"{\1}", text.translate(_UNICODE_MATH)).rstrip(" .")
    text = _POWER.sub(r"^{\1}", text)
    if formula := _ONE_FORMULA.fullmatch(text):
        text, whole_text = formula[1], False
    # math-verify removes c, t, m, ... as units; a formula without a word, a + b + c, has none.
    units = re.search(r"\\(?:text|mathrm|mbox)|(?<![\\A-Za-z])[A-Za-z]{2}", text) is not None
    latex = LatexExtractionConfig()
    latex = replace(latex, normalization_config=replace(latex.normalization_config, units=units))
    readers: list[Any] = [latex, ExprExtractionConfig()]
    if not whole_text and not re.search(r"\$|\\\(|\\\[", text):
        # Read as one formula or not at all: as prose, "1331 and 1728" would become its last
        # number, and a formula that the LaTeX parser cannot read the first number in it.
        text = f"${_JOIN_WORDS.sub(', ', text)}$"
        readers = readers[:1]
    expressions = parse(text, readers, fallback_mode="no_fallback", parsing_timeout=None)
    if not expressions or expressions[0] in (nan, zoo):
        return None
    expression = expressions[0]
    if isinstance(expression, Eq) and expression.lhs.is_number and expression.rhs.is_Symbol:
        expression = expression.reversed  # math-verify reads a value from "x = 5" only
    # math-verify rounds floats to six places; as rationals 0.333333 and 1/3 stay different.
    return expression.xreplace({f: Rational(str(f)) for f in expression.atoms(Float)})


def _same_number(gold: Any, answer: Any) -> bool:
    """Return False for constants that math-verify calls equal only because they are close."""
    from sympy import Expr, N, simplify

    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return True
    if not (gold.is_number and answer.is_number):
        return True
    gold, answer = gold.doit(), answer.doit()
    percent = {gold, gold / 100, gold * 100}  # math-verify reads 28% as 28 and as 0.28
    return answer in percent or any(
        simplify(value - answer) == 0
        or bool(abs(N(value - answer, 60)) < abs(N(value, 60)) * 1e-30)
        for value in percent
    )


def _judge(gold: str, answer: str, whole_text: bool) -> str:
    from math_verify import verify

    gold, answer = (_NO_MEANING.sub("", text) for text in (gold, answer))
    gold_literal, answer_literal = _literal(gold), _literal(answer)
    if _WORDS.fullmatch(gold_literal) and not whole_text:
        # math-verify would read a word as a product of one-letter variables, in any order.
        if not answer_literal:
            return "unparseable_prediction"
        return "correct" if gold_literal == answer_literal else "wrong"
    parsed_gold = _parse(gold, False)
    if parsed_gold is None and not _LITERAL.fullmatch(gold_literal):
        return "unparseable_gold"
    if gold_literal == answer_literal:
        return "correct"
    bases = _IN_BASE.fullmatch(gold.strip("$ ")), _IN_BASE.fullmatch(answer.strip("$ "))
    if bases[0] and bases[1] and bases[0].groups() != bases[1].groups():
        return "wrong"  # math-verify drops the subscript of 101_2
    parsed_answer = _parse(answer, whole_text)
    if parsed_answer is None:
        return "unparseable_prediction"
    # The order matters: gold "x = 5" accepts "5", but gold "7 = a + c" must not accept its echo.
    try:
        equal = (
            parsed_gold is not None
            and verify(parsed_gold, parsed_answer, timeout_seconds=None)
            and _same_number(parsed_gold, parsed_answer)
        )
    except Exception:  # sympy, as in _parse: what cannot be shown to be equal is not equal
        equal = False
    return "correct" if equal else "wrong"


def _limit_cpu(seconds: float) -> None:
    """Have the kernel end this process if the parent is killed in the middle of a comparison."""
    if sys.platform != "win32":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _serve() -> None:
    """Answer one JSON request per line until the parent closes the pipe or dies."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for a reply
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        print(error, file=replies, flush=True)
        return
    # The first comparisons build tables, which takes ten times as long as a later comparison. On a
    # busy machine they would exceed the limit in every fresh child, so they are made here.
    for gold, answer in ((r"\frac{\pi}{2} + x", r"x + 0.5\pi"), ("(1, 2)", "(1, 2.0)")):
        _judge(gold, answer, False)
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _limit_cpu(request["seconds"])
        verdict = _judge(request["gold"], request["answer"], request["whole_text"])
        print(verdict, file=replies, flush=True)


if __name__ == "__main__":
    _serve()
