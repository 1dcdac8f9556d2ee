"""Programs that try to get a score without solving the task, or to do harm. Each scores 0, ends
within its bound, and leaves neither a process nor a file.

One file in attacks/ is one attack; its header names the task, and the kind of judge that it fools
where it is a trick that works on one (proved here, against a judge as simple as the usual ones).
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from repeats import choice

from posttrain.rewards.code import VERDICTS, CodeExecution, CodeReward, build
from posttrain.rewards.score import Score
from posttrain.sandbox import pool

ATTACKS = {path.stem: path.read_text() for path in Path(__file__).parent.glob("attacks/*.py")}
FOOLING = [name for name in sorted(ATTACKS) if "# fools: " in ATTACKS[name]]
CPU_SECONDS, WALL_SECONDS = 1, 2.0
BOUND = 5 * (WALL_SECONDS + 2)  # room for a machine that is five times slower

# task: (function, body of check, an honest solution)
TASKS = {
    "total": (
        "total",
        "assert candidate([1, 2, 3]) == 6\n"
        "assert candidate([]) == 0\n"
        "assert candidate([1000000, 7]) == 1000007",
        "def total(numbers):\n    return sum(numbers)",
    ),
    "mean": (
        "mean",
        "assert abs(candidate([0.5, 1.0]) - 0.75) < 1e-9\n"
        "assert abs(candidate([2.0]) - 2.0) < 1e-9",
        "def mean(numbers):\n    return sum(numbers) / len(numbers)",
    ),
    "isclose": (
        "mean",
        "import math\nassert math.isclose(candidate([0.5, 1.0]), 0.75)",
        "def mean(numbers):\n    return sum(numbers) / len(numbers)",
    ),
    "parts": (
        "parts",
        "assert 3 in candidate([3])\nassert 2 in candidate([1, 2])",
        "def parts(numbers):\n    return numbers",
    ),
    "listed": (
        "parts",
        "assert list(candidate([2, 1])) == [1, 2]",
        "def parts(numbers):\n    yield from sorted(numbers)",
    ),
    "computed": (
        "total",
        "numbers = [3, 4]\nassert candidate(numbers) == sum(numbers)",
        "def total(numbers):\n    return numbers[0] + numbers[1]",
    ),
    "constants": (
        "total",
        "assert candidate(first) == 6\nassert candidate(second) == 9",
        "def total(numbers):\n    return sum(numbers)",
    ),
    "unittest": (
        "total",
        "import unittest\ncase = unittest.TestCase()\ncase.assertEqual(candidate([1, 2]), 3)",
        "def total(numbers):\n    return sum(numbers)",
    ),
    "skippable": (
        "total",
        "assert candidate([1, 2]) == 3\nassert candidate([2]) == 2\ndone = True",
        "def total(numbers):\n    return sum(numbers)",
    ),
    "program": ("", "", "print(sum(map(int, input().split())))"),
}


def row_of(task: str) -> dict[str, Any]:
    if task == "program":
        return {"inputs": ["1 2 3\n", "4 5\n"], "outputs": ["6\n", "9\n"]}
    name, body, _ = TASKS[task]
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    test = f"first, second = [1, 2, 3], [4, 5]\n\ndef check(candidate):\n{lines}\n"
    return {"entry_point": name, "test": test}


def task_of(name: str) -> str:
    found = re.search(r"^# task: (\w+)$", ATTACKS[name], re.MULTILINE)
    assert found is not None
    return found[1]


def open_reward(level: str, wall_seconds: float = WALL_SECONDS) -> CodeReward:
    try:
        return build(
            CodeExecution(
                isolation=level,  # type: ignore[arg-type]
                workers=1,
                cpu_seconds=CPU_SECONDS,
                wall_seconds=wall_seconds,
                memory_mib=256,
            )
        )
    except ValueError as error:
        pytest.skip(f"{level} does not work here: {error}")


LEVELS = ("bubblewrap", "namespace", "process")
STRONGEST = "bubblewrap" if shutil.which("bwrap") else "namespace"


@pytest.fixture(scope="module", params=LEVELS)
def reward(request: pytest.FixtureRequest) -> Any:
    built = open_reward(request.param)
    yield built
    pool.close(built.pool)
    assert built.pool.lanes == []


def score(reward: CodeReward, program: str, row: dict[str, Any]) -> Score:
    columns = {name: [value] for name, value in row.items()}
    (found,) = reward([""], [f"```python\n{program}\n```"], [[]], **columns)
    assert isinstance(found, Score)
    return found


def descendants(pid: int) -> list[str]:
    """State letters of all processes below `pid`."""
    children: dict[int, list[tuple[int, str]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        children.setdefault(int(parent), []).append((int(stat.parent.name), state))
    found, waiting = [], [pid]
    while waiting:
        for child, state in children.get(waiting.pop(), []):
            found.append(state)
            waiting.append(child)
    return found


def traces() -> list[Path]:
    folders = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/home", "/etc", "/", "~", ".", "..")
    places = [Path(folder).expanduser() for folder in folders] + [Path(tempfile.__file__).parent]
    return [
        found
        for place in places
        for found in place.glob("red_team*")
        if found.is_file() or found.is_symlink()
    ]


def test_there_are_enough_attacks():
    assert len(ATTACKS) >= 60
    assert {task_of(name) for name in ATTACKS} == set(TASKS)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_an_honest_solution_scores_1(reward: CodeReward, task: str):
    found = score(reward, TASKS[task][2], row_of(task))
    assert (found, found.verdict) == (1.0, "correct")


# in the fast tests every trick at the strongest level, and at each other level a third
TRICKS = [(level, name) for level in LEVELS for name in FOOLING]
FAST = [trick for n, trick in enumerate(TRICKS) if trick[0] == STRONGEST or n % 3 == 0]


@pytest.mark.parametrize(("reward", "name"), choice(TRICKS, FAST), indirect=["reward"])
def test_a_trick_scores_0_at_every_level(reward: CodeReward, name: str):
    attack(reward, name)


@pytest.fixture(scope="module")
def strongest() -> Any:
    """What a user gets who names no level; attacks that sleep are ended a little earlier."""
    built = open_reward(STRONGEST, 1.5)
    yield built
    pool.close(built.pool)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - set(FOOLING)))
def test_an_attack_scores_0_in_time_and_leaves_nothing(strongest: CodeReward, name: str):
    attack(strongest, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ATTACKS) - set(FOOLING)))
def test_every_attack_at_every_level(reward: CodeReward, name: str):
    attack(reward, name)


def attack(reward: CodeReward, name: str) -> None:
    """Scores 0, in time, and leaves neither a process nor a file."""
    before = traces()
    start = time.monotonic()
    found = score(reward, ATTACKS[name], row_of(task_of(name)))
    seconds = time.monotonic() - start
    assert found == 0.0
    assert found.verdict in VERDICTS
    assert found.verdict != "correct"
    assert seconds < BOUND
    (lane,) = reward.pool.lanes
    assert lane.poll() is None
    left = descendants(lane.pid)
    # the sandbox that waits for the next program: at most bwrap, its first process, the interpreter
    assert len(left) <= 3
    assert "Z" not in left
    assert [path for path in traces() if path not in before] == []


def judged_naively(folder: Path, program: str, task: str, judge: str) -> bool:
    """The usual judge: program and tests in one process, and a look at how it ended."""
    (folder / "hidden_tests.py").write_text(row_of(task).get("test", ""))
    (folder / "program.py").write_text(program)
    lines = ["PROGRAM = open('program.py').read()", "TEST = open('hidden_tests.py').read()"]
    lines += ["space = {}", "exec(PROGRAM, space)"]
    if task != "program":
        lines += ["exec(TEST, space)", f"space['check'](space['{TASKS[task][0]}'])"]
    (folder / "harness.py").write_text("\n".join([*lines, "print('PASS')"]))
    done = subprocess.run(
        [sys.executable, "harness.py"],
        cwd=folder,
        input="1 2 3\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode == 0 if judge == "exit status" else "PASS" in done.stdout


@pytest.mark.parametrize("name", FOOLING)
def test_the_attack_is_real(tmp_path: Path, name: str):
    judge = ATTACKS[name].partition("# fools: ")[2].partition("\n")[0]
    assert judge in ("exit status", "printed text")
    assert judged_naively(tmp_path, ATTACKS[name], task_of(name), judge)


def test_the_naive_judge_tells_right_from_wrong(tmp_path: Path):
    for judge in ("exit status", "printed text"):
        assert judged_naively(tmp_path, TASKS["total"][2], "total", judge)
        assert not judged_naively(tmp_path, "def total(numbers):\n    return 1", "total", judge)
