"""The parts of the sandbox: what passes between the two sides, the levels, and the end of it."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from repeats import choice

from posttrain.sandbox import calls, extract, lane, names, pool
from posttrain.sandbox.isolation import Ending

LIMITS = {
    "wall_seconds": 10.0,
    "cpu_seconds": 2,
    "memory_mib": 256,
    "processes": 8,
    "file_mib": 1,
    "output_bytes": 1 << 20,
}
LEVELS = ["bubblewrap", "namespace", "process"]


# --- programs and tests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("a\n```python\nx = 1\n```\nb", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\n```\nout\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```json\n{}\n```", "```json\n{}\n```"),
        ("```python\n    return 1\n```", "    return 1\n"),
        ("```python\nx = 1\ny =", "x = 1\ny ="),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("  ```py\n  x = 1\n  ```", "x = 1\n"),
    ],
)
def test_the_code_of_a_completion(text: str, code: str):
    assert extract.code_of(text).rstrip(" ") == code


F = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (F, F),
        (f"{F}\nThis function returns its argument.", f"{F}"),
        (f"{F}[DONE]\nassert f(1) == 1\nIt's so.\n\nTask 2: (", f"{F}[DONE]\nassert f(1) == 1"),
        (f"{F}\ndef g(x):\n    return (x,\n", F),  # breaks off
        (f"{F}\ndef g(x):\n    return x +\n\n    never\n", F),
        (f'{F}\n"""And so', F),
        ("Here it is:\n" + F, ""),
        ("    return x\n", ""),
        ("def f(x):\n    return (x", ""),
        ("", ""),
        ("x = 1\0", ""),
        ("(" * 5000, ""),
        ("1 2\n" * 50, ""),
    ],
)
def test_the_python_that_a_text_begins_with(text: str, code: str):
    found = extract.leading(text)
    assert found.strip() == code.strip()
    ast.parse(found)


def test_words_after_a_program_are_left_out():
    words = f"{F}\nThis function returns its argument; it doesn't copy it."
    assert extract.program_of(words, "Write f(x).", "f") == F
    assert extract.program_of(f"g = 1\n{words}", "import re\n\ndef f(x):\n", "f") is not None


def test_a_fenced_block_is_python_as_a_whole_or_not_at_all():
    broken = f"```python\n{F}\ndef g(x):\n    return (\n```\nIt returns its argument."
    assert extract.python_of(broken) == ""
    assert extract.program_of(broken, "Write f(x).", "f") is None
    assert extract.python_of(f"```\n{F}```\nIt returns its argument.") == F
    assert extract.python_of(f"{F}It returns its argument.").strip() == F.strip()


def test_a_program_that_python_warns_of_is_one():
    """Also where warnings are errors."""
    program = 'import re\n\ndef f(x):\n    return re.match("\\d", x)\n'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extract.program_of(program, "Write f(x).", "f") == program
        assert extract.python_of(program) == program


def test_names_that_tests_leave_to_the_candidate():
    assert names.free_names("assert f(1) == len([2])") == {"f"}
    assert names.free_names("import math\na = f(math.pi)\nassert [g(x) for x in a]") == {"f", "g"}
    assert names.free_names("def check(c):\n    y = h(c)\n    assert y == z") == {"h", "z"}


def test_a_filter_of_system_calls_is_made_of_whole_steps():
    assert len(calls.filter_program()) % 8 == 0


# --- the levels -----------------------------------------------------------------------------------


@pytest.fixture(params=LEVELS)
def lanes(request: pytest.FixtureRequest) -> Any:
    try:
        opened = pool.open_pool(request.param, LIMITS, workers=2)
    except ValueError as error:
        pytest.skip(f"{request.param} does not work here: {error}")
    yield opened
    pool.close(opened)


def job(program: str, *tests: str) -> dict[str, Any]:
    return {
        "form": "asserts",
        "completion": program,
        "tests": list(tests),
        "setup": "",
        "partial": False,
    }


def facts(opened: pool.Pool, expression: str, expected: str) -> tuple[str, str]:
    """Is an expression's value in the candidate's process the expected one?"""
    program = f"import os, sys\ndef f():\n    return {expression}"
    (verdict,) = pool.judge(opened, [job(program, f"assert f() == {expected}, f()")])
    return verdict.verdict, verdict.detail


def test_what_a_candidate_finds_around_it(lanes: pool.Pool):
    if lanes.level not in pool.STRONG:
        pytest.skip("process promises none of this")
    assert facts(lanes, "os.getuid(), os.getgid()", "(65534, 65534)")[0] == "correct"
    files = "[f for d in ('/home', '/tmp') for *_, files in os.walk(d) for f in files]"
    assert facts(lanes, files, "[]")[0] == "correct"
    assert facts(lanes, "os.path.exists('/proc') or os.path.exists('/etc/passwd')", "False")[0] == (
        "correct"
    )
    assert facts(lanes, "os.getcwd()", "'/home'")[0] == "correct"
    assert facts(lanes, "'PATH' in os.environ or len(os.environ) > 5", "False")[0] == "correct"
    assert facts(lanes, "[d for d in sys.path if 'packages' in d]", "[]")[0] == "correct"
    assert facts(lanes, "os.path.exists('/work') or os.path.exists('/root/.ssh')", "False")[0] == (
        "correct"
    )
    writable = "[p for p, *_ in os.walk('/') if os.access(p, os.W_OK)]"
    assert facts(lanes, writable, "[]") == ("correct", "")


@pytest.mark.parametrize("call", ["os.fork()", "__import__('_socket').socket()"])
def test_new_processes_and_sockets_are_refused(lanes: pool.Pool, call: str):
    program = f"import os\ndef f():\n    {call}"
    tests = "try: f()\nexcept PermissionError: pass\nelse: assert False"
    (verdict,) = pool.judge(lanes, [job(program, tests)])
    assert verdict.verdict == "correct"


def test_threads_work_up_to_their_limit(lanes: pool.Pool):
    if lanes.level not in pool.STRONG:
        pytest.skip("process can not count the threads of one candidate")
    program = """
import threading, time
threading.stack_size(65536)
def f(n):
    for _ in range(n):
        threading.Thread(target=time.sleep, args=(5,)).start()
"""
    few, many = pool.judge(lanes, [job(program, "f(5)"), job(program, "f(500)")])
    assert (few.verdict, many.verdict) == ("correct", "error")
    assert "can't start new thread" in many.detail


def test_nothing_passes_from_one_candidate_to_the_next(lanes: pool.Pool):
    first = "import builtins, math\nbuiltins.abs = math.pi = None\ndef f(): return 1"
    second = "import math\ndef f(): return abs(-1) if math.pi else 0"
    verdicts = pool.judge(lanes, [job(c, "assert f() == 1") for c in [first, second] * 4])
    assert {v.verdict for v in verdicts} == {"correct"}


def test_a_test_that_loops_is_stopped():
    opened = pool.open_pool("process", LIMITS | {"wall_seconds": 1.0}, workers=1)
    start = time.monotonic()
    (verdict,) = pool.judge(opened, [job("def f(): return 1", "while f(): pass")])
    assert verdict.verdict == "timeout"
    assert time.monotonic() - start < 15
    pool.close(opened)


def test_a_lane_that_dies_is_replaced(lanes: pool.Pool):
    timer = threading.Timer(0.5, lanes.lanes[0].kill)
    timer.start()
    program = "import time\ndef f(): time.sleep(1)"
    assert [v.verdict for v in pool.judge(lanes, [job(program, "f()")] * 2)] == ["correct"] * 2
    timer.join()


@pytest.mark.parametrize("poison", ["def poison", "def "])
def test_a_row_that_ends_its_lanes_has_a_verdict_if_others_do_not(
    poison: str, monkeypatch: pytest.MonkeyPatch
):
    opened = pool.open_pool("process", LIMITS, workers=1)
    ask = pool._ask

    def deadly(lane: pool.Lane, line: str | None, seconds: float) -> str:
        if line is not None and poison in line:
            lane.kill()
        return ask(lane, line, seconds)

    monkeypatch.setattr(pool, "_ask", deadly)
    deadly_job = job("def poison(): return 1", "assert poison() == 1")
    jobs = [deadly_job, job("f = int", "assert f() == 0")]
    if poison == "def ":
        with pytest.raises(RuntimeError, match="out of memory or processes"):
            pool.judge(opened, jobs)
    else:
        assert [v.verdict for v in pool.judge(opened, jobs)] == ["died", "correct"]
    pool.close(opened)


def test_an_unavailable_level_is_never_replaced_by_a_weaker_one(monkeypatch: pytest.MonkeyPatch):
    """Neither where the user names it, nor below the two strong ones."""
    monkeypatch.setattr(pool, "STRONG", ("bubblewrap",))
    monkeypatch.setenv("PATH", "/nowhere")
    for isolation in ("bubblewrap", None):
        with pytest.raises(ValueError, match="cannot isolate programs on this machine"):
            pool.open_pool(isolation, LIMITS, workers=1)


# --- the end --------------------------------------------------------------------------------------

TRAINER = """
import os, signal, sys, threading, time
from posttrain.sandbox import pool
opened = pool.open_pool(sys.argv[1], {limits}, workers=2)
job = {{"form": "asserts", "completion": "import time\\ndef f(): time.sleep(100)", "tests": ["f()"],
       "setup": "", "partial": False}}
threading.Thread(target=pool.judge, args=(opened, [job] * 2), daemon=True).start()
time.sleep(1)
print(*[lane.pid for lane in opened.lanes], flush=True)
{end}
"""


def alive(pids: list[int]) -> list[int]:
    """Those of `pids`, and all of their sessions' processes, that are neither gone nor zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if state != "Z" and (int(session) in pids or int(stat.parent.name) in pids):
            found.append(int(stat.parent.name))
    return found


def children(pids: list[int]) -> list[int]:
    """Processes below `pids`, at any depth."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = list(pids)
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


ENDS = [
    (level, end)
    for end in ("time.sleep(1000)", "sys.exit()", "raise KeyboardInterrupt")
    for level in LEVELS
]
# each end at one level, and at each level one end
FAST_ENDS = [ENDS[0], ENDS[4], ENDS[8]]


@pytest.mark.parametrize(("level", "end"), choice(ENDS, FAST_ENDS))
def test_no_process_survives_the_trainer(level: str, end: str):
    program = TRAINER.format(limits=LIMITS | {"wall_seconds": 100}, end=end)
    trainer = subprocess.Popen(
        [sys.executable, "-c", program, level],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(pool.__file__).parents[2])},
    )
    assert trainer.stdout is not None
    line = trainer.stdout.readline()
    if not line:
        pytest.skip(f"{level} does not work here")
    family = children([int(pid) for pid in line.split()])
    if "sleep" in end:
        assert len(family) >= 6  # two lanes, each with a candidate and its tests
        trainer.send_signal(signal.SIGKILL)
    trainer.wait(60)
    trainer.stdout.close()
    deadline = time.monotonic() + 20
    while alive(family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(family) == []


def test_a_forked_process_does_not_use_its_parents_lanes():
    opened = pool.open_pool("process", LIMITS, workers=1)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"none" if not opened.lanes else b"some")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 4) == b"none"
    assert pool.judge(opened, [job("def f(): return 1", "assert f() == 1")])[0].verdict == "correct"
    pool.close(opened)


def test_the_signal_of_the_time_limit_is_a_timeout_whatever_time_is_reported() -> None:
    stub: Any = SimpleNamespace(limits={"cpu_seconds": 2})
    ends = {128 + signal.SIGXCPU: "timeout", 128 + signal.SIGKILL: "died", 99: "memory"}
    for status, verdict in ends.items():
        assert lane._cause(stub, Ending(status, 0.3), late=False) == verdict
    assert lane._cause(stub, Ending(0, 2.0), late=False) == "timeout"
