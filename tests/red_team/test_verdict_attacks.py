"""Wrong programs that try to pass real kinds of tests; none gets credit, at either strong level.

`verdict_attacks.txt` holds them: the name, the program, and the tests (`--- test` items of
test_list, `--- check` a test that defines check(candidate), `--- setup` test_setup_code). A program
that begins with `# FORGE` has the part of its process that speaks to the tests as `S`. Most fool a
judge that runs program and tests in one process. "slow: " marks those that use up a limit.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.rewards.code import CodeExecution, CodeReward, build
from posttrain.sandbox import pool

FORGE = """
import sys
from posttrain.sandbox import wire
_frame = sys._getframe()
while "served" not in _frame.f_locals:
    _frame = _frame.f_back
S = _frame.f_locals["served"]
"""


def attacks() -> dict[str, dict[str, Any]]:
    """Return the rows by name."""
    rows = {}
    text = Path(__file__).with_name("verdict_attacks.txt").read_text()
    for block in re.split(r"^=== ", text, flags=re.M)[1:]:
        head, *parts = re.split(r"^--- (\w+)\n", block, flags=re.M)
        name, program = head.split("\n", 1)
        row: dict[str, Any] = {"test_list": [], "test_setup_code": ""}
        for kind, part in zip(parts[::2], parts[1::2]):
            if kind == "test":
                row["test_list"].append(part)
            elif kind == "check":
                row = {"test": part, "entry_point": "f"}
            else:
                row["test_setup_code"] = part
        assert name not in rows
        rows[name] = row | {"program": program.replace("# FORGE", FORGE)}
    return rows


def scores(reward: CodeReward, rows: list[dict[str, Any]]) -> list[float | None]:
    names = ("test", "entry_point", "test_list", "test_setup_code", "inputs", "outputs")
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    completions = [f"```python\n{row['program']}```" for row in rows]
    return reward([""] * len(rows), completions, [None] * len(rows), **columns)


@pytest.fixture(scope="module", params=["bubblewrap", "namespace"])
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(level: str, **settings: Any) -> CodeReward:
    limits = {"cpu_seconds": 1, "wall_seconds": 10.0, "memory_mib": 256}
    try:
        return build(CodeExecution(isolation=level, workers=2, **limits, **settings))  # type: ignore[arg-type]
    except ValueError as error:
        pytest.skip(f"{level} does not work here: {error}")


def credited(level: str, rows: dict[str, dict[str, Any]], **settings: Any) -> list[str]:
    """Return the names of the programs that get any credit."""
    reward = opened(level, **settings)
    try:
        return [name for name, score in zip(rows, scores(reward, list(rows.values()))) if score]
    finally:
        pool.close(reward.pool)


def test_no_wrong_program_gets_credit(level: str) -> None:
    rows = [(name, row) for name, row in attacks().items() if not name.startswith("slow: ")]
    assert len(rows) > 300
    assert credited(level, dict(rows[level == "namespace" :: 4])) == []


@pytest.mark.slow
def test_no_wrong_program_gets_credit_at_any_level(level: str) -> None:
    assert credited(level, attacks()) == []


@pytest.mark.slow
def test_no_wrong_program_gets_partial_credit(level: str) -> None:
    rows = {name: row for name, row in attacks().items() if len(row.get("test_list", [])) < 2}
    del rows["is_correct"]  # its row is refused: nothing defines a name that it uses
    assert credited(level, rows, partial_credit=True) == []
