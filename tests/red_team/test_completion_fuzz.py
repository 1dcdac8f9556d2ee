"""Whatever a completion is, it ends in a verdict in time, and the next one is judged rightly.

Completions are grown from pieces that break readers: fences and half fences, white space, nesting,
control and look-alike characters, lone surrogates, sizes up to 1 MiB, statements that raise, exit,
loop or allocate, and right answers in all of it.
"""

import ast
import random
import time
from collections import Counter
from typing import Any

import pytest

from posttrain.rewards.code import VERDICTS, CodeExecution, CodeReward, build
from posttrain.sandbox import pool

CPU_SECONDS, WALL_SECONDS = 1, 3.0
MOST = 1 << 20  # characters of a completion
BOUND = 5 * (WALL_SECONDS + 2)  # room for a machine that is five times slower

ROWS: list[dict[str, Any]] = [
    {"test_list": ["assert f(2) == 4", "assert f(0) == 0", "assert f(5) == 10"]},
    {
        "prompt": 'def f(x):\n    """Twice x."""\n',
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    },
    {"inputs": ["2\n", "0\n"], "outputs": ["4\n", "0\n"]},
]
RIGHT = ("def f(x):\n    return 2 * x\n", "    return 2 * x\n", "print(2 * int(input()))\n")

LINES = [
    *("```python\n", "```\n", "~~~\n", "```py", "````python\n", "   ```\n", "``` python {x}\n"),
    *(
        "<think>",
        "</think>",
        "# ",
        '"""',
        "'''",
        "\\\n",
        ";",
        ":",
        "\t",
        "    ",
        "\n\n",
        "\r",
        "\r\n",
    ),
    *("\x00", "\x0b", "\x0c", "\x1a", "\ufeff", "\u2028", "\u202e", "\u200b", "\ud800", "\udfff"),
    *("é", "٣", "𝟚", "ⅴ", "🙂", "\N{COMBINING ACUTE ACCENT}", "(", ")", "[", "]", "{", "}", "f'{"),
    *(
        "def f(x):\n",
        "class f:\n",
        "    return x\n",
        "return 2 * x\n",
        "lambda: ",
        "if x:\n",
        "async ",
    ),
    *("import numpy\n", "import f\n", "from __future__ import annotations\n", "from f import *\n"),
    *("raise ImportError\n", "raise StopIteration\n", "raise SystemExit(0)\n", "exit()\n", "1/0\n"),
    *("raise KeyboardInterrupt\n", "raise GeneratorExit\n", "raise MemoryError\n", "del f\n"),
    *("x = x\n", "f = f\n", "f = None\n", "f = len\n", "print(4)\n", "input()\n", "yield x\n"),
    *(
        "global f\n",
        "nonlocal f\n",
        "await f\n",
        "@f\n",
        "match x:\n    case _: pass\n",
        "x: int\n",
    ),
    *(
        "0x",
        "1e999",
        "10**10000\n",
        "'\\N{",
        "b'é'",
        "\\u",
        "%s",
        "{}",
        "$",
        "?",
        "`",
        "!",
        "...\n",
    ),
    *("__import__('os')._exit(0)\n", "import sys; sys.setrecursionlimit(10**6)\n"),
    *("def f(x): return f(x)\n", "def f(x): return [f]\n", "def f(x): return x.y\n"),
]
COSTLY = [
    *("while True: pass\n", "def f(x):\n    while True: pass\n", "import time; time.sleep(99)\n"),
    *("x = [0] * 10**9\n", "def f(x): return 'a' * 10**8\n", "x = 9 ** 9 ** 9\n"),
]
REPEATED = [
    " ",
    "\n",
    "\t",
    "(",
    "[",
    "-",
    "not ",
    "~",
    "`",
    "```\n",
    "```python\n",
    "# ",
    "a",
    "1",
]
REPEATED += [
    "x.",
    "x+",
    "x,",
    "if x:\n ",
    "'",
    '"',
    "\\",
    "\\\n",
    "é",
    "\x00",
    "\ud800",
    "@f\n",
    "f(",
]
REPEATED += ["lambda x:", "{", "<think>", "def f(x):\n    pass\n", "x = 1\n", "import f\n", "\r"]


def is_python(text: str) -> bool:
    """Whether a text parses."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


STATEMENTS = [line for line in [*LINES, *COSTLY[:2]] if line.endswith("\n") and is_python(line)]


def program(draw: random.Random) -> str:
    """Return statements that parse, and an answer between them."""
    lines = [draw.choice(STATEMENTS) for _ in range(draw.randrange(5))]
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(RIGHT[::2]))
    if draw.random() < 0.05:
        lines.append(draw.choice(COSTLY))
    return "".join(lines)


def completion(draw: random.Random) -> str:
    """Return one completion."""
    if draw.random() < 0.4:
        return f"```python\n{program(draw)}```" if draw.random() < 0.5 else program(draw)
    pieces: list[str] = []
    for _ in range(draw.choice((1, 2, 3, 5, 12, 40))):
        kind = draw.random()
        if kind < 0.62:
            pieces.append(draw.choice(LINES))
        elif kind < 0.78:
            pieces.append(draw.choice(RIGHT))
        elif kind < 0.785:
            pieces.append(draw.choice(COSTLY))
        elif kind < 0.93:
            count = int(10 ** draw.uniform(0, 3))
            if draw.random() < 0.06:
                count = int(10 ** draw.uniform(3, 6))
            pieces.append(draw.choice(REPEATED) * count)
        else:
            size = int(10 ** draw.uniform(0, 3))
            pieces.append("".join(chr(draw.randrange(0x3000)) for _ in range(size)))
    text = "".join(pieces)
    if draw.random() < 0.3:  # a right answer with a flaw
        text = draw.choice(RIGHT)
        at, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        text = text[:at] + draw.choice(LINES) * draw.choice((1, 1, 2, 500)) + text[end:]
    if draw.random() < 0.3:
        text = f"```python\n{text}\n```"
    return text[:MOST]


@pytest.fixture(params=["bubblewrap", "namespace"])
def reward(request: pytest.FixtureRequest) -> Any:
    try:
        built = build(
            CodeExecution(
                isolation=request.param,
                workers=1,
                cpu_seconds=CPU_SECONDS,
                wall_seconds=WALL_SECONDS,
                memory_mib=256,
            )
        )
    except ValueError as error:
        pytest.skip(f"{request.param} does not work here: {error}")
    yield built
    pool.close(built.pool)


def judged(reward: CodeReward, number: int, text: str) -> str:
    row = ROWS[number]
    columns = {name: [value] for name, value in row.items() if name != "prompt"}
    (score,) = reward([row.get("prompt", "")], [text], [[]], **columns)
    assert score is not None
    assert float(score) == (score.verdict == "correct")  # type: ignore[attr-defined]
    return str(score.verdict)  # type: ignore[attr-defined]


def fuzz(reward: CodeReward, seed: int, count: int) -> None:
    draw = random.Random(seed)
    verdicts: Counter[str] = Counter()
    longest = 0.0
    lane = reward.pool.lanes[0].pid
    for i in range(count):
        text, number = completion(draw), i % len(ROWS)
        start = time.monotonic()
        verdict = judged(reward, number, text)
        seconds = time.monotonic() - start
        longest = max(longest, seconds)
        verdicts[verdict] += 1
        assert verdict in VERDICTS, (seed, i)
        assert seconds < BOUND * len(ROWS[number].get("inputs", "x")), (seed, i, seconds)
        if i % 50 == 0:
            assert [judged(reward, n, RIGHT[n]) for n in range(3)] == ["correct"] * 3, (seed, i)
    assert reward.pool.lanes[0].pid == lane  # no completion ended it
    print(f"{reward.pool.level}: {count} completions, longest {longest:.2f} s, {dict(verdicts)}")


def test_a_few_completions_end_in_verdicts(reward: CodeReward) -> None:
    fuzz(reward, 1, 51)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 14))
def test_many_completions_end_in_verdicts(reward: CodeReward, seed: int) -> None:
    fuzz(reward, seed, 2500)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    "text",
    [
        "```python" + " " * 120_000,
        "```\n" * 200_000,
        "`" * MOST,
        "(" * 200_000 + ")" * 200_000,
        "-" * 100_000 + "1",
        "x = 1\n" * 150_000,
        "x = (\n" * 100_000,
        "1 2\n" * 200_000,
        "\ud800" * 100_000,
        "\x00" * MOST,
        "def f(x):\n" * 80_000,
        "f(" * 50_000 + ")" * 50_000,
        "lambda: " * 50_000 + "1",
        "'" * 100_001,
        "if x:\n" + "".join(" " * i + "if x:\n" for i in range(1, 1000)),
        "x" + "[0]" * 100_000,
        "x = " + " + ".join("1" * 100_000),
        "elif".join("if x: pass\n" for _ in range(20_000)),
    ],
    ids=range(18),
)
def test_the_costliest_texts_end_in_time(number: int, text: str, one_lane: CodeReward) -> None:
    start = time.monotonic()
    assert judged(one_lane, number, text) != "correct"
    assert time.monotonic() - start < BOUND


@pytest.fixture(scope="module")
def one_lane() -> Any:
    built = build(CodeExecution(workers=1, cpu_seconds=CPU_SECONDS, wall_seconds=WALL_SECONDS))
    lane = built.pool.lanes[0].pid
    yield built
    assert built.pool.lanes[0].pid == lane
    pool.close(built.pool)
