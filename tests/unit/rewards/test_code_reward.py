"""The code reward: real solutions score 1, changed ones 0; forms, limits, input that is wrong."""

import ast
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import Capture, complaint, output_of
from conftest import ROOT, shared
from repeats import choice

from posttrain.rewards import code
from posttrain.rewards.build import check_columns
from posttrain.rewards.code import CodeExecution, CodeReward, build
from posttrain.rewards.scoring import score
from posttrain.sandbox import pool

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def reward() -> Any:
    built = build(CodeExecution(workers=2))
    yield built
    pool.close(built.pool)


def human_eval() -> Rows:
    with gzip.open(shared("data/humaneval") / "HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def mbpp() -> Rows:
    with open(shared("data/mbpp") / "mbpp.jsonl") as file:
        return [json.loads(line) for line in file]


def judge(reward: CodeReward, rows: Rows, completions: list[str]) -> list[Any]:
    prompts = [row.get("prompt") for row in rows]
    return score(reward, prompts, completions, [[] for _ in rows], rows)


def one(reward: CodeReward, completion: str, **row: Any) -> str:
    (found,) = judge(reward, [row], [completion])
    assert float(found) == (found.verdict == "correct")
    return str(found.verdict)


# --- real solutions -------------------------------------------------------------------------------


@pytest.mark.parametrize("one_in", choice((1, 4), (4,)))
def test_every_canonical_solution_of_human_eval_scores_1(reward: CodeReward, one_in: int):
    rows = human_eval()[::one_in]
    scores = judge(reward, rows, [row["canonical_solution"] for row in rows])
    assert [row["task_id"] for row, s in zip(rows, scores) if s != 1.0] == []
    assert len(scores) == 164 / one_in


def test_whole_functions_in_a_fence_score_1_too(reward: CodeReward):
    rows = human_eval()[1::4]
    answers = [
        f"Here it is:\n```python\n{row['prompt']}{row['canonical_solution']}```\nIt works."
        for row in rows
    ]
    assert {float(s or 0) for s in judge(reward, rows, answers)} == {1.0}


@pytest.mark.parametrize("one_in", choice((4, 20), (20,)))
def test_canonical_solutions_of_mbpp_score_1(reward: CodeReward, one_in: int):
    rows = mbpp()[::one_in]
    scores = judge(reward, rows, [row["code"] for row in rows])
    assert [row["task_id"] for row, s in zip(rows, scores) if s != 1.0] == []


@pytest.mark.slow
@pytest.mark.parametrize("level", ["bubblewrap", "namespace"])
def test_every_canonical_solution_at_both_strong_levels(level: str):
    strong = build(CodeExecution(isolation=level, workers=2))  # type: ignore[arg-type]
    rows = [row | {"code": row["canonical_solution"]} for row in human_eval()] + mbpp()
    check_columns(strong, rows, "rows")
    scores = judge(strong, rows, [row["code"] for row in rows])
    pool.close(strong.pool)
    assert [row["task_id"] for row, s in zip(rows, scores) if s != 1.0] == []
    assert len(scores) == 164 + 974


# --- changed solutions ----------------------------------------------------------------------------


class ReturnsNone(ast.NodeTransformer):
    def visit_Return(self, node: ast.Return) -> ast.AST:
        return ast.Return(ast.Constant(None))


class ReturnsWrapped(ast.NodeTransformer):
    """Every returned value in a tuple with a 0, which no expected value is."""

    def visit_Return(self, node: ast.Return) -> ast.AST:
        value = node.value or ast.Constant(None)
        return ast.Return(ast.Tuple([value, ast.Constant(0)], ast.Load()))


def changed(source: str, change: ast.NodeTransformer) -> str:
    return ast.unparse(ast.fix_missing_locations(change.visit(ast.parse(source))))


# nothing returned: of MBPP in the fast tests
@pytest.mark.parametrize("change", choice((ReturnsNone, ReturnsWrapped), (ReturnsWrapped,)))
def test_changed_solutions_of_human_eval_score_0(reward: CodeReward, change: Any):
    rows = human_eval()[::2]
    answers = [changed(row["prompt"] + row["canonical_solution"], change()) for row in rows]
    scores = judge(reward, rows, answers)
    assert [row["task_id"] for row, s in zip(rows, scores) if s != 0.0] == []


@pytest.mark.parametrize(
    ("change", "one_in"),
    choice([(ReturnsNone, 24), (ReturnsNone, 8), (ReturnsWrapped, 8)], [(ReturnsNone, 24)]),
)
def test_changed_solutions_of_mbpp_score_0(reward: CodeReward, change: Any, one_in: int):
    rows = [row for row in mbpp()[::one_in] if "return" in row["code"]]
    answers = [changed(row["code"], change()) for row in rows]
    passed = [row for row, s in zip(rows, judge(reward, rows, answers)) if s != 0.0]
    # where the expected value itself is None, returning None is right
    assert [r["task_id"] for r in passed if "None" not in "".join(r["test_list"])] == []


def test_the_solution_of_another_task_scores_0(reward: CodeReward):
    rows = human_eval()[:60]
    scores = judge(reward, rows, [row["canonical_solution"] for row in rows[1:] + rows[:1]])
    assert sum(s or 0 for s in scores) == 0


# --- verdicts -------------------------------------------------------------------------------------

CHECK = {
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}
ASSERTS = {"test_list": ["assert double(2) == 4", "assert double(0) == 0"], "test_setup_code": ""}
PROGRAM = {"inputs": ["2\n", "0"], "outputs": ["4\n", "0"]}
QUICK = {"wall_seconds": 2.0, "cpu_seconds": 1, "workers": 1, "memory_mib": 128}


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("    return 2 * x", "correct"),
        ("    return x + x\n\ndef other(\n", "correct"),
        ("def double(x):\n    return 2 * x", "correct"),
        ("```python\ndef double(x):\n    return 2 * x\n```", "correct"),
        ("```\ndef double(x):\n    return 2 * x\n```", "correct"),
        ("```python\nbad(\n```\nor\n```py\ndef double(x):\n    return 2 * x", "correct"),
        ("    return 2.0 * x", "correct"),
        ("    return x", "wrong"),
        ("    return str(2 * x)", "wrong"),
        ("    return [2 * x]", "wrong"),
        ("    return x / 0", "error"),
        ("def triple(x):\n    return 3 * x", "wrong"),
        ("double = 4", "error"),
        ("I would multiply by two.", "no_code"),
        ("", "no_code"),
        ("```python\n```", "no_code"),
        ("    return 'a' * 10**8", "output"),
        ("    import os; os._exit(0)", "died"),
        ("    raise SystemExit(0)", "error"),
        ("    raise MemoryError", "memory"),
        ("    return 2 * x\n\0", "no_code"),
    ],
)
def test_verdicts_of_a_function(reward: CodeReward, completion: str, verdict: str):
    assert one(reward, completion, **CHECK) == verdict


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("def double(x):\n    return 2 * x", "correct"),
        ("double = lambda x: x << 1", "correct"),
        ("def double(x):\n    return x", "wrong"),
        ("x = 1", "error"),
        ("def double(x:\n", "no_code"),
    ],
)
def test_verdicts_of_asserts(reward: CodeReward, completion: str, verdict: str):
    assert one(reward, completion, **ASSERTS) == verdict


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("print(2 * int(input()))", "correct"),
        ("import sys\nsys.stdout.write(f' {2 * int(sys.stdin.read())}')", "wrong"),
        ("print(2 * int(input()), '  ')\nprint()", "correct"),
        ("if __name__ == '__main__':\n    print(2 * int(open(0).read()))", "correct"),
        ("import sys\nprint(2 * int(input()))\nsys.exit()", "correct"),
        ("print(2 * int(input()))\nsys.exit()", "error"),
        ("print(3 * int(input()))", "wrong"),
        ("print(", "no_code"),
        ("", "no_code"),
        ("print('x' * 10**8)", "output"),
        ("import os\nos.kill(os.getpid(), 11)", "died"),
        ("x = bytearray(10**10)", "memory"),
    ],
)
def test_verdicts_of_a_program(reward: CodeReward, completion: str, verdict: str):
    assert one(reward, completion, **PROGRAM) == verdict


def test_time_of_the_processor_and_of_the_clock_are_both_limited():
    quick = build(CodeExecution(**QUICK))
    assert one(quick, "    while True: pass", **CHECK) == "timeout"
    assert one(quick, "    import time; time.sleep(100)", **CHECK) == "timeout"
    assert one(quick, "    return len(bytearray(10**9))", **CHECK) == "memory"
    pool.close(quick.pool)


@pytest.fixture(scope="module")
def partial() -> Any:
    built = build(CodeExecution(partial_credit=True, negative=-1.0, positive=1.0, **QUICK))
    yield built
    pool.close(built.pool)


THIRDS = {"test_list": ["assert f(1) == 5", "assert f(2) == 6", "assert f(3) == 7"]}
LOOPED = {
    "entry_point": "primes",
    "test": "def check(candidate):\n"
    "    for p in candidate(30):\n        assert isinstance(p, int) and p > 1\n"
    "    assert candidate(30) == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]\n"
    "    assert candidate(4) == [2, 3]\n    assert candidate(0) == []\n",
}
INPUTS = {"inputs": ["2", "0", "3", "4", "5"], "outputs": ["4", "0", "9", "YES", "YES"]}


@pytest.mark.parametrize(
    ("row", "answer", "score", "verdict"),
    [
        (CHECK, "    return 2 * x", 1, "correct"),
        (CHECK, "    return 0", -1, "wrong"),
        (ASSERTS, "double = lambda x: 0", -1, "wrong"),
        (THIRDS, "import os\nf = lambda x: x + 4 if x < 3 else os._exit(0)", 1 / 3, "died"),
        (THIRDS, "def f(x):\n    while x == 2: pass\n    return x + 4", -1 / 3, "timeout"),
        (THIRDS, "def f(x): return x + 4 if x != 2 else 0", 1 / 3, "wrong"),
        # a loop is one test, whatever the candidate makes it turn over
        (LOOPED, "def primes(n): return [2] * 100000", -1, "wrong"),
        (LOOPED, "def primes(n): return [2, 3]", 0, "wrong"),
        (LOOPED, "def primes(n): return None", -1, "error"),
        (LOOPED, "def primes(n): return []", -1, "wrong"),
        (INPUTS, "print(0)", -1, "wrong"),
        (INPUTS, "print(4)", 0, "wrong"),
        (INPUTS, "print(9)", 0, "wrong"),
        (INPUTS, "print('YES')", -1, "wrong"),
        (
            INPUTS,
            "n = int(input())\nprint(n * n if n < 4 else 'YES')",
            1,
            "correct",
        ),
    ],
)
def test_partial_credit_is_the_share_of_the_tests_that_no_stub_passes(
    partial: CodeReward, row: Any, answer: str, score: float, verdict: str
):
    (found,) = judge(partial, [row], [answer])
    assert found.verdict == verdict
    assert float(found) == pytest.approx(score)


@pytest.mark.parametrize("one_in", choice((8, 24), (24,)))
def test_no_stub_earns_anything_on_human_eval(partial: CodeReward, one_in: int):
    rows = human_eval()[::one_in]
    for value in ("None", "[]", "0", "''", "True", "x[0] if x else 0"):
        stubs = [f"def {row['entry_point']}(*x, **y): return {value}" for row in rows]
        assert {float(s or 0) for s in judge(partial, rows, stubs)} == {-1.0}


def test_verdicts_do_not_depend_on_order_or_company(reward: CodeReward):
    rows = [CHECK, ASSERTS, PROGRAM] * 6
    answers = [
        *("    return 2 * x", "double = lambda x: x * 2", "print(2 * int(input()))"),
        *("    return x", "double = lambda x: x", "print(int(input()))"),
    ] * 3
    together = judge(reward, rows, answers)
    backwards = judge(reward, rows[::-1], answers[::-1])[::-1]
    assert [s.verdict for s in together] == [s.verdict for s in backwards]
    assert Counter(s.verdict for s in together) == {"correct": 9, "wrong": 9}


# --- what tests may do ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "tests", "verdict"),
    [
        # arguments changed in place, by a function that returns None
        ("def f(x): x.sort()", ["a = [2, 1]\nf(a)\nassert a == [1, 2]"], "correct"),
        ("def f(x): x[0].append(1)", ["a = [[]]; b = a[0]\nf(a)\nassert b == [1]"], "correct"),
        ("def f(x): return x", ["a = [2, 1]\nf(a)\nassert a == [1, 2]"], "wrong"),
        # arguments changed by a function that returns a value
        ("def f(x):\n x.sort(); return x", ["a = [2, 1]\nr = f(a)\nassert a == [1, 2]"], "correct"),
        ("def f(x):\n x.sort(); return x", ["a = [2, 1]\nassert f(a) is a"], "correct"),
        ("def f(x):\n x.sort(); return x", ["a = [2, 1]\nassert f(x=a) == sorted(a)"], "correct"),
        (
            "def f(x):\n x[:2] = [1, 2]; return 2",
            ["a = [1, 1, 2]\nk = f(a)\nassert a[:k] == [1, 2]"],
            "correct",
        ),
        ("def f(x):\n x.sort(); return x", ["a = [2, 1]\nf(a)\nassert a == [2, 1]"], "wrong"),
        ("def f(x):\n x.clear(); return 0", ["a = [2, 1]\nassert f(a) == sum(a)"], "wrong"),
        (
            "def f(x):\n x.clear(); return []",
            ["a = [2, 1]\nr = f(a)\nwant = sorted(a)\nassert r == want"],
            "wrong",
        ),
        (
            "def f(x):\n x[:] = [0]; return [0]",
            ["a = [2]\nfor r, want in zip(f(a), sorted(a)): assert r == want"],
            "wrong",
        ),
        ("def f(x): return x", ["a = [[1]]\nf(a)[0].append(2)\nassert a == [[1]]"], "wrong"),
        ("def f(x): return [*x]", ["a = [1]\nf(a).append(2)\nassert a == [1]"], "correct"),
        # exceptions
        (
            "def f(x): raise ValueError('no')",
            ["try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'no'"],
            "correct",
        ),
        ("def f(x): pass", ["try:\n    f(1)\n    assert False\nexcept KeyError: pass"], "wrong"),
        (
            "class E(KeyError): pass\ndef f(x): raise E",
            ["try: f(1)\nexcept KeyError: pass"],
            "correct",
        ),
        ("import os\ndef f(x): os._exit(0)", ["try: f(1)\nexcept BaseException: pass"], "died"),
        ("def f(x): raise StopIteration", ["assert all(map(f, [1]))"], "error"),
        ("def f(x): raise AttributeError", ["assert not hasattr(f(1), 'x') or True"], "error"),
        (
            "def f(x): raise KeyError",
            ["import contextlib\nwith contextlib.suppress(KeyError): f(1)"],
            "correct",
        ),
        (
            "def f(x): raise KeyError",
            ["import contextlib\nwith contextlib.suppress(ValueError): f(1)"],
            "error",
        ),
        (
            "class E(Exception): pass\ndef f(x): raise E",
            ["try: f(1)\nexcept E: pass\nelse: assert False"],
            "correct",
        ),
        # classes of the candidate's
        (
            "class S:\n    def __init__(self): self.v = []\n    def push(self, x): self.v += [x]",
            ["s = S()\ns.push(3)\nassert s.v == [3]"],
            "correct",
        ),
        ("class S: pass", ["s = S(); s.x = 2\nassert s.x == 2"], "correct"),
        (
            "class S: pass\ndef f(s): return s.x",
            ["s = S(); s.x = 2\nassert f([s][0]) == 2"],
            "correct",
        ),
        # kinds of values
        (
            "from collections import *\ndef f(x): return Counter(x)",
            ["assert f('aa')['b'] == 0"],
            "correct",
        ),
        (
            "from fractions import *\ndef f(x): return Fraction(x, 3)",
            ["assert f(1) * 3 == 1"],
            "correct",
        ),
        (
            "def f(x): return {1: {2.5, None}, 'a': (b'x', 1j)}",
            ["assert f(0) == {1: {2.5, None}, 'a': (b'x', 1j)}"],
            "correct",
        ),
        ("def f(x): return 10**5000", ["assert f(0) == 10**5000"], "correct"),
        ("def f(x): return float('inf')", ["assert f(0) == float('inf')"], "correct"),
        ("def f(x): return '\\ud800\\0'", ["assert f(0) == '\\ud800\\0'"], "correct"),
        ("def f(x): return map(abs, x)", ["assert list(f([-1])) == [1]"], "correct"),
        ("def f(x): return lambda y: x + y", ["assert f(1)(2) == 3"], "correct"),
        (
            "from typing import *\nP = NamedTuple('P', [('a', int)])\ndef f(x): return P(x)",
            ["assert f(1) == (1,)"],
            "correct",
        ),
        (
            "import enum\nclass C(enum.IntEnum):\n    A = 1\ndef f(x): return C.A",
            ["assert f(1) == 1"],
            "correct",
        ),
        # names that only the trusted side may define
        (
            "import sys\nsys = None\ndef f(x): return 1",
            ["assert f(1) == sys.getsizeof(1)"],
            "wrong",
        ),
        (
            "def isclose(a, b): return True\ndef f(x): return 9.0",
            ["assert isclose(f(1), 1.0)"],
            "wrong",
        ),
        ("def set(x): return 1\ndef f(x): return x", ["assert set(f([1])) == set([2])"], "wrong"),
        ("def sum(a, b): return a * b", ["assert sum(2, 3) == 6"], "correct"),
        ("def gcd(a, b): return 1", ["assert gcd(2, 4) == 2"], "wrong"),
    ],
)
def test_what_tests_may_do(reward: CodeReward, program: str, tests: list[str], verdict: str):
    assert one(reward, program, test_list=tests) == verdict


def test_the_prompts_helpers_are_the_data_sets_not_the_candidates(reward: CodeReward):
    row = {
        "prompt": "def twice(x):\n    return 2 * x\n\ndef f(x):\n    '''Undo twice.'''\n",
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(twice(3)) == 3\n",
    }
    assert one(reward, "    return x // 2", **row) == "correct"
    # with a `twice` of its own it would only have to agree with itself
    assert one(reward, "def twice(x):\n    return x\n\ndef f(x):\n    return x", **row) == "wrong"


def test_a_prompt_may_be_a_conversation(reward: CodeReward):
    for text in (
        CHECK["prompt"],
        f"Complete it:\n```python\n{CHECK['prompt']}```",
        f"Complete this function.\n\n{CHECK['prompt']}",
    ):
        row = CHECK | {"prompt": [{"role": "user", "content": text}]}
        assert one(reward, "    return 2 * x", **row) == "correct"
    row = CHECK | {"prompt": "Write double(x)."}
    assert one(reward, "def double(x): return 2 * x", **row) == "correct"
    assert one(reward, "    return 2 * x", **row) == "no_code"


# --- input that is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"answer": "4"}, "expected the columns test+entry_point, test_list, or inputs+outputs"),
        ({"test": "def check(c): pass"}, "entry_point must be the name of a function; got None"),
        ({"test": "def c(", "entry_point": "f"}, "test is not valid Python"),
        ({"test": "x = 1", "entry_point": "f"}, "test does not define check(candidate)"),
        ({"test_list": []}, "test_list is empty"),
        ({"test_list": "assert f(1)"}, "test_list must be a list of strings"),
        ({"test_list": ["assert f(1"]}, "test_list[0] is not valid Python"),
        ({"inputs": ["1"], "outputs": ["1", "2"]}, "got 1 inputs and 2 outputs"),
        ({"inputs": ["1"]}, "outputs must be a list of strings"),
    ],
)
def test_a_row_that_can_not_be_judged_is_named(reward: CodeReward, row: Any, expected: str):
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 2") as caught:
        check_columns(reward, [CHECK, row], "rows.jsonl")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"test_list": ["import no_such_module\nassert f(1) == 1"]}, "no_such_module"),
        ({"test_list": ["import sys\nassert f(sys) == 1"]}, "passes a module"),
        ({"test_list": ["assert f(1) == 2, '\\ud800'", "assert_equals(f(1), 2)"]}, "assert_equals"),
        ({"test_list": ["assert f(1) == later"], "test_setup_code": "del later"}, "later"),
        ({**CHECK, "test": "import no_such_module\ndef check(candidate): pass"}, "no_such_module"),
        ({**CHECK, "test": "def check(candidate): assert helper(candidate(1))"}, "helper"),
        ({**CHECK, "test": "1 / 0\ndef check(candidate): pass"}, "ZeroDivisionError"),
    ],
)
def test_tests_that_fail_by_themselves_are_found_before_training(
    reward: CodeReward, row: Any, fault: str
):
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 2: the tests do not run") as caught:
        check_columns(reward, [CHECK, row], "rows.jsonl")
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    "test",
    [
        "assert eval(f(12)) == 12",  # of what a stub returns, this is a syntax error
        "exec(f(1), space := {})\nassert space['x'] == 1",
        "assert f(1).real == 1",
        "try:\n    import no_such_module\nexcept ImportError:\n    assert f(1) == 2",
        "while f(1) is None: pass",
        "assert f(1)(2) == 3",
        "for x in f(3): assert x",
    ],
)
def test_tests_are_not_blamed_for_what_stubs_return(reward: CodeReward, test: str):
    check_columns(reward, [{"test_list": [test, "assert f(0) == 0"]}], "rows.jsonl")


@pytest.mark.parametrize("row", [{"test_list": ["assert f(1) == 2"]}, CHECK])
@pytest.mark.parametrize(
    "program",
    [
        "import numpy as np\n{}",
        "from nowhere import x\n{}",
        "raise ImportError('no')\n{}",
        "raise ModuleNotFoundError(name='numpy')\n{}",
        "{}\nraise SyntaxError('test')",
        "class Unsendable(Exception): pass\n{}\nraise Unsendable",
        "def f(x): raise ImportError\ndouble = f",
        "def f(x): import numpy\ndouble = f",
    ],
)
def test_no_program_passes_its_own_faults_for_those_of_the_tests(
    reward: CodeReward, program: str, row: Any
):
    text = program.format("def f(x): return x\ndef double(x): return x")
    assert one(reward, text, **row) == "error"


def test_a_machine_that_can_not_isolate_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="bwrap is not installed") as caught:
        build(CodeExecution(isolation="bubblewrap"))
    assert "apt-get install bubblewrap" in str(caught.value)
    assert "isolation: process" in str(caught.value)


def test_the_level_is_in_the_runs_record(reward: CodeReward):
    about = reward.about()
    assert about["isolation"] in pool.STRONG
    assert "not_isolated" not in about


def test_score_from_the_command_line(tmp_path: Path, capsys: Capture):
    file = tmp_path / "rows.jsonl"
    rows = [
        CHECK | {"completion": "    return 2 * x"},
        ASSERTS | {"completion": "double = lambda x: x"},
        PROGRAM | {"completion": "print(2 * int(input()))"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = output_of(capsys, "score", "code_execution", file, "workers=1").splitlines()
    assert lines[0].startswith("isolation ")
    assert [line.split() for line in lines[1:4]] == [
        ["1", "1", "correct"],
        ["2", "0", "wrong"],
        ["3", "1", "correct"],
    ]
    assert lines[4] == "rows 3  mean 0.6667  correct 2  wrong 1"
    file.write_text(json.dumps({"completion": "x", "answer": "4"}) + "\n")
    assert "row 1: expected the columns" in complaint(capsys, "score", "code_execution", file)


def test_settings_are_documented():
    fields = set(code.CodeExecution.model_fields) - {"type"}
    text = (ROOT / "docs/sandbox.md").read_text()
    assert [name for name in sorted(fields) if f"`{name}`" not in text] == []
