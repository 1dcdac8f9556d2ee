"""The answer checker: verdicts of both polarities, real data, time limits, no stray process.

The rows of `ROWS` come from public Math-Verify, TRL and verl threads about wrong verdicts, and from
the answer formats of GSM8K and MATH. A row is (completion, gold, verdict).
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.rewards.rules import math_worker
from posttrain.rewards.rules.math import (
    VERDICTS,
    MathCorrectness,
    build,
    check,
    final_answer,
    plain_number,
    verdicts,
)
from posttrain.rewards.score import Score

DATA = SHARED / "data"
YES, NO, NO_PREDICTION, NO_GOLD, TIMEOUT = (
    "correct",
    "wrong",
    "unparseable_prediction",
    "unparseable_gold",
    "timeout",
)
HANGS = (r"\boxed{9^{9^{9^9}}}", r"\sqrt{2}")

ROWS = [
    # where the answer is
    ("9 * 2 = 18\n#### 18", "#### 18", YES),
    ("#### 17\nNo, wait.\n#### 18", "18", YES),
    ("#### 18\nNo, wait.\n#### 17", "18", NO),
    ("#### 18\n\nQuestion: what is 3+3?", "18", YES),
    ("#### Step 1: add 4\nSo \\boxed{8}", "8", YES),
    ("first \\boxed{4}, but corrected it is \\boxed{5}", "5", YES),
    ("first \\boxed{5}, but corrected it is \\boxed{4}", "5", NO),
    ("\\boxed{5} and the rest was cut \\boxed{4", "5", YES),
    ("A: 18", "She makes 9 * 2 = 18\nA: 18", YES),
    ("A: 81", "A: 18", NO),
    ("**Answer:** 18", "18", YES),
    ("### Final Answer\n\n**Answer: 18**", "18", YES),
    ("Answer:\n18", "18", YES),
    ("The answer is 18. I hope it is correct.", "18", YES),
    ("The answer is 18.", "1", NO),
    ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "1/2", YES),
    ("A: The ball costs 5 cents.", "5", YES),
    ("So she has 16 - 3 = 13", "13", YES),
    ("So 16-3=13", "-3", NO),
    ("It costs $5 or maybe $6", "6", NO_PREDICTION),
    ("the probability is \\frac{2}{3}", "3", NO),
    # plain numbers, exactly
    ("A: 2.0", "2", YES),
    ("A: 0.333333", "1/3", NO),
    ("A: 0.5", "1/2", YES),
    ("A: 0.1000000000000000001", "0.1", NO),
    ("A: 2e-7", "1e-7", NO),
    ("A: 1e3", "1000", YES),
    ("A: 1,234.50", "1234.5", YES),
    ("\\boxed{1{,}234}", "1234", YES),
    ("\\boxed{11,\\! 111}", "11111", YES),
    ("\\boxed{32, 349}", "32349", NO),
    ("\\boxed{\\$18}", "18", YES),
    ("A: -$5", "-5", YES),
    ("A: −5", "-5", YES),
    ("A: 5", "-5", NO),
    ("A: 2 1/2", "5/2", YES),
    ("\\boxed{2\\frac{1}{2}}", "2.5", YES),
    ("\\boxed{-\\frac{1}{2}}", "-0.5", YES),
    ("\\boxed{\\frac12}", "0.5", YES),
    ("A: 1/0", "0", NO_PREDICTION),
    ("Soucis : 2,74 $", "2.74", YES),
    ("A: 5 5", "5", NO_PREDICTION),
    # percent, units, text
    ("\\boxed{28\\%}", "28", YES),
    ("\\boxed{28 pct}", "28%", YES),
    ("A: 0.28", "28%", YES),
    ("A: 28", "0.28", NO),
    ("\\boxed{18\\text{ cm}^2}", "18", YES),
    ("A: 18 dollars", "18", YES),
    ("\\boxed{90^\\circ}", "90", YES),
    ("A: 2 million", "2000000", YES),
    ("A: 2 million", "2", NO),
    ("\\boxed{5x}", "5", NO),
    ("\\boxed{2\\pi}", "2", NO),
    ("\\boxed{5!}", "5", NO),
    ("\\boxed{\\text{13}}", "13", YES),
    ("\\boxed{13}", "\\text{13}", YES),
    ("\\boxed{\\text{Evelyn}}", "Evelyn", YES),
    ("\\boxed{nylevE}", "Evelyn", NO),
    ("\\boxed{(C)}", "\\text{(C)}", YES),
    ("\\boxed{B}", "C", NO),
    ("A: 12:30", "12:00", NO),
    ("A: 12:00", "12:00", YES),
    # lists, sets, tuples, intervals: every part, in order where order counts
    ("\\boxed{1728}", "1331 and 1728", NO),
    ("\\boxed{1728, 1331}", "1331 and 1728", YES),
    ("\\boxed{1331} and \\boxed{1728}", "1331 and 1728", YES),
    ("\\boxed{1331 \\text{ and } 1728}", "1728", NO),
    ("x = \\boxed{1} and y = \\boxed{2}", "2", NO),
    ("\\boxed{n=1,2,3}", "n=2,3,4", NO),
    ("\\boxed{1,2,3,4}", "2,3,4", NO),
    ("\\boxed{\\pm 2}", "-2, 2", YES),
    ("\\boxed{2}", "x = \\pm 2", NO),
    ("\\boxed{(1, 2)}", "(1,2)", YES),
    ("\\boxed{(2, 1)}", "(1,2)", NO),
    ("\\boxed{[0,1)}", "[0,1)", YES),
    ("\\boxed{[0,1]}", "[0,1)", NO),
    ("\\boxed{[0,9)}", "[0,1)", NO),
    ("\\boxed{(0.6, 2.666667]}", "(\\frac{3}{5}, \\frac{8}{3}]", NO),
    ("\\boxed{(0.6, 2.5]}", "(\\frac{3}{5}, \\frac{5}{2}]", YES),
    ("\\boxed{(0, 1.5)}", "D = (0, 1)", NO),
    # formulas
    ("\\boxed{x=5}", "5", YES),
    ("\\boxed{5=x}", "5", YES),
    ("\\boxed{5}", "x=5", YES),
    ("\\boxed{y=5}", "x=5", NO),
    ("\\boxed{11a+c}", "7 = 11a+c", NO),
    ("\\boxed{(x-1)(x+1)}", "x^2-1", YES),
    ("\\boxed{x^2+1}", "x^2-1", NO),
    ("\\boxed{5 \\le x}", "x \\ge 5", YES),
    ("\\boxed{x < 5}", "x > 5", NO),
    ("\\boxed{2\\sqrt{3}}", "\\sqrt{12}", YES),
    ("\\boxed{1.414214}", "\\sqrt{2}", NO),
    ("\\boxed{2\\cdot 10^{-20}}", "10^{-20}", NO),
    ("\\boxed{1 + \\frac{1}{\\mathrm{e}}}", "1 - \\frac{1}{\\mathrm{e}}", NO),
    ("\\boxed{a+c+b}", "a + b + c", YES),
    ("\\boxed{3}", "3 t", NO),
    ("\\boxed{1 + \\frac{}{x}}", "x", NO_PREDICTION),
    ("\\boxed{\\sqrt{1{,}000}}", "\\sqrt{1,\\!000}", YES),
    ("\\boxed{2^10}", "1024", YES),
    ("\\boxed{101_3}", "101_2", NO),
    ("\\boxed{-i}", "i", NO),
    # nothing to compare
    ("", "18", NO_PREDICTION),
    ("I do not know.", "18", NO_PREDICTION),
    ("\\boxed{\\frac{}", "\\frac{1}{2}", NO_PREDICTION),
    ("\\boxed{}", "\\sqrt{2}", NO_PREDICTION),
    ("#### 18", "", NO_GOLD),
    ("", "", NO_GOLD),
    ("#### ", "#### ", NO_GOLD),
    ("\\boxed{???}", "???", NO_GOLD),
    ("\\boxed{\\frac{1}{}", "\\frac{1}{", NO_GOLD),
    ("\\boxed{\\frac{0}{0}}", "\\frac{1}{0}", NO_GOLD),
]


@pytest.fixture(scope="module", autouse=True)
def _end_worker() -> Iterator[None]:
    yield
    math_worker.close()


@pytest.mark.parametrize(("completion", "gold", "verdict"), ROWS)
def test_known_rows(completion: str, gold: str, verdict: str) -> None:
    assert check(completion, gold) == verdict


def test_rows_cover_every_verdict_but_timeout() -> None:
    kinds = Counter(verdict for *_, verdict in ROWS)
    assert len(ROWS) >= 60
    assert set(kinds) == set(VERDICTS) - {TIMEOUT}
    assert min(kinds[YES], kinds[NO]) >= 30


# --- numbers --------------------------------------------------------------------------------------


@given(st.fractions())
def test_a_number_equals_itself_and_not_its_successor(x: Fraction) -> None:
    assert check(f"so it is\n#### {x}", str(x)) == YES
    assert check(f"so it is\n#### {x + 1}", str(x)) == NO
    assert check(f"so it is\n#### {-x}", str(x)) == (YES if x == 0 else NO)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-1e9, max_value=1e9))
def test_number_formats_agree(x: Any) -> None:
    for form in (f"{x}", f"{x:,}", f"${x:,}$", f"\\boxed{{{x}}}", f"{x} dollars", f"**{x}**."):
        assert check(f"Answer: {form}", str(x)) == YES, form
        assert check(f"Answer: {form}", str(x + 1)) == NO, form


@settings(max_examples=20, deadline=None)
@given(st.integers(-999, 999))
def test_the_worker_never_calls_a_number_its_successor(x: int) -> None:
    sqrt = f"{x}\\sqrt{{2}}"
    assert check(f"\\boxed{{{sqrt}}}", sqrt) == YES
    assert check(f"\\boxed{{{x + 1}\\sqrt{{2}}}}", sqrt) == NO


@given(st.text(max_size=300), st.text(max_size=60))
@settings(max_examples=150)
def test_reading_never_fails(completion: str, answer: str) -> None:
    plain_number(answer)
    assert len(final_answer(f"{completion}\n#### {answer}").text) <= len(completion) + 10 + 60
    assert check(completion, "") == NO_GOLD


def test_gold_may_be_a_number_object_or_missing() -> None:
    assert check("#### 18", cast(Any, 18)) == YES
    assert check("#### 18", cast(Any, None)) == NO_GOLD


# --- the reward -----------------------------------------------------------------------------------


def test_reward_values_and_verdicts() -> None:
    reward = build(MathCorrectness(positive=2.0, negative=-1.0, timeout=0.3))
    rows = [("#### 1", "1"), ("#### 2", "1"), ("?", "1"), ("#### 1", ""), HANGS]
    scores = reward(
        ["p"] * len(rows),
        [completion for completion, _ in rows],
        [[0]] * len(rows),
        answer=[gold for _, gold in rows],
        level=[1] * len(rows),
    )
    assert scores == [2.0, -1.0, -1.0, None, -1.0]
    kinds = [score.verdict for score in scores if isinstance(score, Score)]
    assert kinds == [YES, NO, NO_PREDICTION, TIMEOUT]
    assert verdicts(["#### 1"], [""]) == [NO_GOLD]


def test_reward_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        MathCorrectness.model_validate({"positve": 1.0})
    with pytest.raises(ValueError, match="zip"):
        verdicts(["#### 1"], [])


def test_score_is_a_float_with_a_verdict() -> None:
    score = pickle.loads(pickle.dumps(Score(1.0, YES)))
    assert (score, score.verdict, score + 1) == (1.0, YES, 2.0)
    assert repr(score) == "Score(1.0, 'correct')"


# --- time, memory, processes ----------------------------------------------------------------------


def _worker_pid() -> int:
    assert check("\\boxed{x}", "x") == YES
    assert math_worker._child is not None
    return math_worker._child.process.pid


def _is_running(pid: int) -> bool:
    """Also False for a process that has ended but that nobody has reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.monotonic()
    result = call()
    return result, time.monotonic() - start


def test_a_hanging_comparison_is_killed_and_reaped() -> None:
    pid = _worker_pid()
    verdict, seconds = _seconds(lambda: check(*HANGS, timeout=0.3))
    assert verdict == TIMEOUT
    assert 0.3 <= seconds < 2
    with pytest.raises(ChildProcessError):  # no such child any more, not even a zombie
        os.waitpid(pid, os.WNOHANG)
    assert math_worker._child is None
    assert _worker_pid() != pid


def test_a_worker_that_waits_is_killed_by_the_wall_clock() -> None:
    """A stopped process uses no CPU time, so only the parent's patience can end it."""
    pid = _worker_pid()
    os.kill(pid, signal.SIGSTOP)
    verdict, seconds = _seconds(lambda: check("\\boxed{x}", "x", timeout=0.1))
    assert verdict == TIMEOUT
    assert math_worker.PATIENCE * 0.1 <= seconds < 3
    assert check("\\boxed{x}", "x") == YES


def test_a_verdict_does_not_depend_on_what_else_the_machine_does() -> None:
    """A worker that gets no CPU for five times its seconds, and then goes on."""
    pid = _worker_pid()
    os.kill(pid, signal.SIGSTOP)
    woken = threading.Event()

    def wake() -> None:
        woken.set()
        os.kill(pid, signal.SIGCONT)

    threading.Timer(1.0, wake).start()
    assert check("\\boxed{x + y}", "y + x", timeout=0.2) == YES
    assert woken.is_set()  # not answered by a fresh worker in the meantime
    assert _worker_pid() == pid


def test_a_fresh_worker_is_as_fast_as_a_warm_one() -> None:
    """Else one that a busy machine makes late would be followed by one that is late again."""

    def cpu_seconds(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    math_worker.close()
    math_worker._child = math_worker._Child()
    pid = math_worker._child.process.pid
    before = cpu_seconds(pid)
    assert check("\\boxed{\\frac{\\pi}{7} + y}", "y + \\frac{\\pi}{7}") == YES
    assert cpu_seconds(pid) - before < 0.05


def test_an_interrupt_leaves_no_late_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker interrupted before its reply was read would answer the next question wrongly."""
    _worker_pid()
    child = math_worker._child
    assert child is not None

    def interrupted(request: dict[str, Any], timeout: float) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check("\\boxed{x}", "x")
    assert child.process.returncode is not None  # killed and reaped
    assert check("\\boxed{x}", "x") == YES


def test_the_worker_is_reused() -> None:
    assert _worker_pid() == _worker_pid()


def test_a_crashed_worker_is_replaced() -> None:
    os.kill(_worker_pid(), signal.SIGKILL)
    assert check("\\boxed{x}", "x") == TIMEOUT
    assert check("\\boxed{x}", "x") == YES


@pytest.mark.parametrize(
    ("completion", "gold", "allowed"),
    [
        ("a" * 10_000_000 + "\n#### 18", "18", [YES]),
        ("#### 18\n" * 1_000_000, "18", [YES]),
        ("\\boxed{1}" + "\\text{ and } " * 1_000_000 + "\\boxed{1}", "1", [YES]),
        ("\\boxed{1}" + "\\text{ and } " * 1_500 + "x\\boxed{1}", "1", [YES]),
        ("\\boxed{" * 1_000_000, "18", [NO_PREDICTION]),
        ("A: " + "1," * 900, "5", [NO, NO_PREDICTION]),
        ("$" * 10_000_000, "\\sqrt{2}", [NO_PREDICTION]),
        ("the answer is " + " " * 10_000_000 + "A" * 10_000_000, "\\sqrt{2}", [NO_PREDICTION]),
        (" " * 19_000 + "x", "\\sqrt{2}", [NO, NO_PREDICTION]),
        ("(" * 10_000_000, "\\sqrt{2}", [NO_PREDICTION]),
        ("\\boxed{" + "9" * 1_000_000 + "}", "\\sqrt{2}", [NO, NO_PREDICTION]),
        ("\\boxed{" + "{" * 900 + "}" * 900 + "}", "\\sqrt{2}", [NO_PREDICTION, TIMEOUT]),
        ("\\boxed{9**9**9**9}", "\\sqrt{2}", [NO, NO_PREDICTION, TIMEOUT]),
        ("\\boxed{9^{9^{9^9}}}", "5", [TIMEOUT]),
        ("\\boxed{5}", "9^{9^{9^9}}", [TIMEOUT]),
    ],
    ids=lambda value: str(value)[:12],
)
def test_hostile_text_ends_within_the_bound(completion: str, gold: str, allowed: list[str]) -> None:
    _worker_pid()  # the start of the worker is not part of the bound
    verdict, seconds = _seconds(lambda: check(completion, gold, timeout=0.5))
    assert verdict in allowed
    assert seconds < 3


def test_threads_get_their_own_answers() -> None:
    jobs = [(f"\\boxed{{{i}x + {i % 3}}}", f"{i % 3} + {i}x", YES) for i in range(20)]
    jobs += [(f"\\boxed{{{i}x}}", f"{i}y", NO) for i in range(1, 21)]
    jobs += [(*HANGS, TIMEOUT)] * 2
    found: dict[int, str] = {}

    def work(first: int) -> None:
        for index in range(first, len(jobs), 4):
            completion, gold, _ = jobs[index]
            found[index] = check(completion, gold, timeout=10.0 if index < 40 else 0.3)

    handler = signal.getsignal(signal.SIGALRM)
    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [found[index] for index in range(len(jobs))] == [verdict for *_, verdict in jobs]
    assert signal.getsignal(signal.SIGALRM) == handler


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the child's limits")
def test_the_worker_has_limits() -> None:
    import resource

    pid = _worker_pid()
    assert resource.prlimit(pid, resource.RLIMIT_AS)[0] == 2 * 1024**3
    assert 0 < resource.prlimit(pid, resource.RLIMIT_CPU)[0] < 600


def test_the_parent_does_not_import_sympy_and_leaves_no_child() -> None:
    """A script that ends normally takes its worker with it, even in the middle of nothing."""
    code = (
        "import sys\n"
        "from posttrain.rewards.rules import math, math_worker\n"
        "assert math.check('#### 18', '18') == 'correct' and math_worker._child is None\n"
        "assert math.check('\\\\boxed{x+y}', 'y+x') == 'correct'\n"
        "assert 'math_verify' not in sys.modules\n"
        "print(math_worker._child.process.pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not _is_running(int(done.stdout))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_the_worker_ends_with_a_killed_parent() -> None:
    """SIGKILL runs no clean-up: a closed pipe ends an idle worker, the CPU limit a busy one."""
    code = (
        "from posttrain.rewards.rules import math, math_worker\n"
        "math.check('\\\\boxed{x}', 'x')\n"
        "print(math_worker._child.process.pid, flush=True)\n"
        "math.check('\\\\boxed{9^{9^{9^9}}}', '\\\\sqrt{2}', timeout=0.5)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.1)
    assert _is_running(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 15
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(pid)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_its_own_worker() -> None:
    own = _worker_pid()
    pid = os.fork()
    if pid == 0:
        forgotten = math_worker._child is None
        verdict = check("\\boxed{x+y}", "y+x")
        other = math_worker._child is not None and math_worker._child.process.pid != own
        math_worker.close()
        os._exit(0 if forgotten and other and verdict == YES else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert _worker_pid() == own


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without math-verify every comparison would otherwise look like a timeout."""
    math_worker.close()
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    with pytest.raises(RuntimeError, match="worker did not start"):
        check("\\boxed{x}", "x")
    assert math_worker._child is None


# --- real data ------------------------------------------------------------------------------------


def _rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs shared/data/{name} beside the repository")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_gsm8k_model_solutions_agree_with_their_published_verdicts() -> None:
    compared, disagreements = 0, []
    for row in _rows("gsm8k/example_model_solutions.jsonl"):
        for entry in row.values():
            if isinstance(entry, dict):
                compared += 1
                verdict = check(entry["solution"], row["ground_truth"])
                if (verdict == YES) != entry["is_correct"]:
                    disagreements.append((verdict, entry, row["ground_truth"]))
    assert compared == 5276
    assert disagreements == []


def test_the_last_number_of_solutions_without_an_answer_line() -> None:
    """A right solution loses its credit for "7 dozens", where 7 is the published answer."""
    credited: Counter[bool] = Counter()
    for row in _rows("gsm8k/example_model_solutions.jsonl"):
        for entry in row.values():
            if isinstance(entry, dict) and "\nA: " in entry["solution"]:
                text = entry["solution"].rpartition("\nA: ")[0]
                credited[entry["is_correct"]] += check(text, row["ground_truth"]) == YES
    assert credited[True] >= 1940  # of 1,951 whose last number is the answer
    assert credited[False] <= 6  # where the answer line differs from the number before it


@pytest.mark.parametrize("split", ["train", "test"])
def test_gsm8k_gold_equals_itself(split: str) -> None:
    golds = [row["answer"] for row in _rows(f"gsm8k/{split}.jsonl")]
    assert Counter(verdicts(golds, golds)) == {YES: len(golds)}
    # The neighbour's solution is the negative: right only where the two answers are equal.
    others = golds[1:] + golds[:1]
    equal = [a.rsplit("#### ")[-1] == b.rsplit("#### ")[-1] for a, b in zip(golds, others)]
    assert [verdict == YES for verdict in verdicts(golds, others)] == equal


def test_math_gold_equals_itself() -> None:
    golds = [row["answer"] for row in _rows("math/math500_test.jsonl")]
    found = verdicts([f"\\boxed{{{gold}}}" for gold in golds], golds)
    assert found.count(YES) >= 0.99 * len(golds)
    assert NO_GOLD not in found


def test_math_solutions_match_their_own_answer_only() -> None:
    rows = _rows("math/math500_test.jsonl")[:100]
    solutions, golds = [row["solution"] for row in rows], [row["answer"] for row in rows]
    assert verdicts(solutions, golds).count(YES) >= 0.99 * len(golds)
    others = golds[1:] + golds[:1]
    assert verdicts(solutions, others).count(YES) <= 0.03 * len(golds)


# Where this checker differs on purpose from the upstream expectation, by the prediction's start.
UPSTREAM_DIFFERENCES = {
    "Answer $ \n 9 \n $": "a formula broken over lines is read all the same",
    r"$\begin{pmatrix}0.33": "0.33 is not exactly 1/3",
    "$(0.6,2.6667]$": "2.6667 is not exactly 8/3",
    "$f(y)$": "f(x) and f(y) are different",
    r"$1 + \frac{1}{\mathrm{e}}$": "the expected verdict is wrong: 1 + 1/e is not 1 - 1/e",
}


def test_math_verify_pairs() -> None:
    rows = _rows("math_verify/pairs.jsonl")
    different = [
        row["pred"]
        for row in rows
        if (check(row["pred"], row["gold"]) == YES) != bool(row.get("expected", row.get("result")))
    ]
    assert len(rows) - len(different) >= 0.95 * len(rows)
    assert [p for p in different if not p.startswith(tuple(UPSTREAM_DIFFERENCES))] == []
