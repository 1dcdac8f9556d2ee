"""Right programs get credit: programs and tests of every kind, as data sets and users have them.

The rows are in `honest_programs/*.txt`:

    === name                  a right program follows
    === name !text            a kind that cannot be judged: refused, with this text in the detail
    --- setup                 test_setup_code
    --- prompt                the prompt, for the HumanEval form
    --- check entry_point     HumanEval: `test`, which defines check(candidate)
    --- test                  MBPP: an item of test_list
"""

import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.rewards.code import CodeExecution, build, job_of
from posttrain.sandbox import pool

FOLDER = Path(__file__).parent / "honest_programs"


def rows() -> list[dict[str, Any]]:
    found = []
    for path in sorted(FOLDER.glob("*.txt")):
        for block in re.split(r"^=== ", path.read_text(), flags=re.MULTILINE)[1:]:
            head, *parts = re.split(r"^--- (\w+) ?(\w*)\n", block, flags=re.MULTILINE)
            title, program = head.split("\n", 1)
            name, _, refusal = title.partition(" !")
            row: dict[str, Any] = {"name": name, "refusal": refusal, "completion": program}
            for kind, argument, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
                if kind == "test":
                    row.setdefault("test_list", []).append(text)
                elif kind == "check":
                    row |= {"test": text, "entry_point": argument}
                else:
                    row["test_setup_code" if kind == "setup" else kind] = text
            found.append(row)
    return found


def jobs(completion: bool) -> list[dict[str, Any]]:
    """The jobs of all rows; without a completion, they try stubs."""
    kept = {"completion": None, "partial": True}
    return [
        job_of(row) | ({"completion": row["completion"], "partial": False} if completion else kept)
        for row in rows()
    ]


@pytest.fixture(params=["bubblewrap", pytest.param("namespace", marks=pytest.mark.slow)])
def level(request: pytest.FixtureRequest) -> Any:
    try:
        built = build(CodeExecution(workers=2, isolation=request.param))
    except ValueError as error:
        pytest.skip(str(error))
    yield built.pool
    pool.close(built.pool)


def test_right_programs_get_credit(level: pool.Pool):
    """A kind that cannot be judged says so."""
    wrong = []
    for row, verdict in zip(rows(), pool.judge(level, jobs(True)), strict=True):
        if row["refusal"]:
            right = verdict.verdict != "correct" and row["refusal"] in verdict.detail
        else:
            right = verdict.verdict == "correct"
        if not right:
            wrong.append((row["name"], verdict.verdict, verdict.detail))
    assert wrong == []
    assert len(rows()) >= 150


@pytest.mark.slow
def test_no_stub_makes_their_tests_seem_broken(level: pool.Pool):
    verdicts = pool.judge(level, jobs(False))
    broken = [
        (row["name"], verdict.detail)
        for row, verdict in zip(rows(), verdicts, strict=True)
        if verdict.verdict == "bad_test" and row["refusal"] not in verdict.detail
    ]
    assert broken == []
