"""Programs that read stdin and write stdout: what runs elsewhere runs in the sandbox."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from posttrain.sandbox import pool, room, stdin_programs
from posttrain.sandbox.stdin_programs import extracted, normalised

LIMITS: dict[str, Any] = {
    "cpu_seconds": 4,
    "wall_seconds": 15.0,
    "memory_mib": 512,
    "processes": 16,
    "file_mib": 1,
    "output_bytes": 1 << 20,
}
INPUT = "3\n1 2 3\n"  # a number n, then n numbers; wanted is their sum
OUTPUT = "6\n"
# Honest programs by the way they read, write or end.
HONEST = {
    "input": "n = int(input())\nprint(sum(map(int, input().split())))",
    "no final newline": "input()\nprint(sum(map(int, input().split())), end='')",
    "readline": """
import sys
input = sys.stdin.readline
input()
print(sum(map(int, input().split())))
""",
    "buffer": "import sys\nn, *a = map(int, sys.stdin.buffer.read().split())\nprint(sum(a))",
    "buffer.readline": """
import sys
readline = sys.stdin.buffer.readline
n = int(readline())
sys.stdout.write(str(sum(map(int, readline().split()))) + "\\n")
""",
    "lines": """
import sys
lines = [l.strip() for l in sys.stdin]
print(sum(map(int, lines[1].split())))
""",
    "readlines": "import sys\na = sys.stdin.readlines()[1:]\nprint(sum(map(int, a[0].split())))",
    "open 0": "a = open(0).read().split()\nprint(sum(map(int, a[1:])))",
    "open 0, bytes": "_, *a = map(int, open(0, 'rb').read().split())\nprint(sum(a))",
    "open 0, with": """
with open(0) as f:
    f.readline()
    print(sum(map(int, f.readline().split())))
""",
    "unpacked": "n, *a = map(int, open(0).read().split())\nprint(sum(a))\nquit()",
    "fdopen": "import os\na = os.fdopen(0).read().split()\nprint(sum(map(int, a[1:])))",
    "/dev/stdin": "a = open('/dev/stdin').read().split()\nprint(sum(map(int, a[1:])))",
    "/dev/stdin by os": """
import os
fd = os.open("/dev/stdin", os.O_RDONLY)
print(sum(map(int, os.read(fd, 1 << 16).split()[1:])))
""",
    "/dev/stdin by pathlib": """
from pathlib import Path
print(sum(map(int, Path("/dev/stdin").read_text().split()[1:])))
""",
    "/dev/fd/0 to /dev/stdout": """
a = open("/dev/fd/0", "rb").read().split()
with open("/dev/stdout", "w") as out:
    print(sum(map(int, a[1:])), file=out)
""",
    "/proc/self/fd/0": """
import io
print(sum(map(int, io.open('/proc/self/fd/0').read().split()[1:])))
""",
    "stdin replaced": """
import sys
sys.stdin = open("/dev/stdin")
input()
print(sum(map(int, input().split())))
""",
    "read of the size": """
import os
data = os.read(0, os.fstat(0).st_size).split()
print(sum(map(int, data[1:])))
""",
    "BytesIO of the size": """
import io, os, sys
class FastIO(io.IOBase):
    newlines = 0
    def __init__(self, file):
        self._fd = file.fileno()
        self.buffer = io.BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
        self.write = self.buffer.write if self.writable else None
    def readline(self):
        while self.newlines == 0:
            b = os.read(self._fd, max(os.fstat(self._fd).st_size, 8192))
            self.newlines = b.count(b"\\n") + (not b)
            ptr = self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
        self.newlines -= 1
        return self.buffer.readline()
    def flush(self):
        if self.writable:
            os.write(self._fd, self.buffer.getvalue())
            self.buffer.truncate(0), self.buffer.seek(0)
class IOWrapper(io.IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)
        self.flush = self.buffer.flush
        self.writable = self.buffer.writable
        self.write = lambda s: self.buffer.write(s.encode("ascii"))
        self.read = lambda: self.buffer.read().decode("ascii")
        self.readline = lambda: self.buffer.readline().decode("ascii")
sys.stdin, sys.stdout = IOWrapper(sys.stdin), IOWrapper(sys.stdout)
input = lambda: sys.stdin.readline().rstrip("\\r\\n")
input()
print(sum(map(int, input().split())))
sys.stdout.flush()
""",
    "mmap": """
import mmap, os
data = mmap.mmap(0, 0, access=mmap.ACCESS_READ)
print(sum(map(int, data.read().split()[1:])))
""",
    "seek": """
import sys
sys.stdin.read()
sys.stdin.seek(0)
print(sum(map(int, sys.stdin.read().split()[1:])))
""",
    "fileinput": """
import fileinput
lines = list(fileinput.input())
print(sum(map(int, lines[1].split())))
""",
    "end of input": """
numbers = []
while True:
    try:
        numbers += map(int, input().split())
    except EOFError:
        break
print(sum(numbers[1:]))
""",
    "iter": """
import sys
print(sum(int(x) for l in iter(sys.stdin.readline, '') for x in l.split()) - 3)
""",
    "csv": """
import csv, sys
rows = list(csv.reader(sys.stdin, delimiter=' '))
print(sum(map(int, rows[1])))
""",
    "select": """
import select, sys
if select.select([sys.stdin], [], [], 1)[0]:
    print(sum(map(int, sys.stdin.read().split()[1:])))
""",
    "exit": "input()\nprint(sum(map(int, input().split())))\nexit()",
    "exit within": "def main():\n    input()\n    print(6)\n    exit(0)\nmain()\nprint('no')",
    "quit": "input()\nprint(sum(map(int, input().split())))\nquit(0)",
    "sys.exit": "import sys\nprint(sum(map(int, sys.stdin.read().split()[1:])))\nsys.exit()",
    "sys.exit of main": """
import sys
def main():
    print(sum(map(int, sys.stdin.read().split()[1:])))
if __name__ == "__main__":
    sys.exit(main())
""",
    "SystemExit": "print(sum(map(int, open(0).read().split()[1:])))\nraise SystemExit",
    "os._exit": """
import os
print(sum(map(int, open(0).read().split()[1:])), flush=True)
os._exit(0)
""",
    "SystemExit caught": "try:\n    exit(1)\nexcept SystemExit:\n    print(6)",
    "atexit": "import atexit\natexit.register(lambda: print(6))",
    "buffered output": """
import atexit, io, sys
buffer = io.StringIO()
sys.stdout, out = buffer, sys.stdout
atexit.register(lambda: out.write(buffer.getvalue()))
print(sum(map(int, sys.stdin.read().split()[1:])))
""",
    "argv": "import sys\nassert sys.argv[0] and not sys.argv[1:]\nprint(6)",
    "input.txt": """
import os, sys
if os.path.exists(os.path.join(os.path.dirname(os.path.abspath(__file__)), "input.txt")):
    sys.stdin = open("input.txt")
print(sum(map(int, sys.stdin.read().split()[1:])))
""",
    "input.txt, try": """
import sys
try:
    sys.stdin = open("input.txt", "r")
    sys.stdout = open("output.txt", "w")
except OSError:
    pass
print(sum(map(int, sys.stdin.read().split()[1:])))
""",
    "thread": """
import sys, threading
sys.setrecursionlimit(1 << 25)
threading.stack_size(512 * 1024 * 1024)
def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)
def main():
    assert depth(50000) == 50000
    print(sum(map(int, sys.stdin.read().split()[1:])))
thread = threading.Thread(target=main)
thread.start()
thread.join()
""",
    "thread, not joined": """
import threading
threading.stack_size(1 << 27)
threading.Thread(target=lambda: print(sum(map(int, open(0).read().split()[1:])))).start()
""",
    "stack": """
import resource, sys
resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sys.setrecursionlimit(10**6)
def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)
assert depth(100000) == 100000
print(sum(map(int, sys.stdin.read().split()[1:])))
""",
    "bootstrap": """
from types import GeneratorType
def bootstrap(f, stack=[]):
    def wrapped(*args, **kwargs):
        if stack:
            return f(*args, **kwargs)
        to = f(*args, **kwargs)
        while True:
            if type(to) is GeneratorType:
                stack.append(to)
                to = next(to)
            else:
                stack.pop()
                if not stack:
                    break
                to = stack[-1].send(to)
        return to
    return wrapped
@bootstrap
def depth(n):
    yield 0 if n == 0 else 1 + (yield depth(n - 1))
assert depth(20000) == 20000
print(6)
""",
    "dataclass": """
from dataclasses import dataclass, field
@dataclass(order=True)
class Item:
    value: int
    rest: list["Item"] = field(default_factory=list, compare=False)
print(max(Item(1), Item(6)).value)
""",
    "pickle": """
import copy, pickle
class Point:
    def __init__(self, x):
        self.x = x
print(copy.deepcopy(pickle.loads(pickle.dumps(Point(6)))).x)
""",
    "main module": """
import __main__, sys
x = 6
assert sys.modules['__main__'] is __main__
print(__main__.x)
""",
    "names of the module": "assert __name__ == '__main__' and __doc__ is None\nprint(6)",
    "future": """
from __future__ import annotations
def f(x: Later) -> Later:
    return 6
print(f(1))
""",
    "enum, typing": """
from enum import Enum
from typing import NamedTuple
class Colour(Enum):
    RED = 6
class Pair(NamedTuple):
    a: int
print(Pair(Colour.RED.value).a)
""",
    "modules": """
import heapq, bisect, collections, itertools, functools, math, string, random, time, decimal
print(functools.reduce(int.__add__, [1, 2, 3]))
""",
    "global statement": """
total = 0
def add(x):
    global total
    total += x
[add(x) for x in (1, 2, 3)]
print(total)
""",
    "stderr": "import sys\nprint('debug', file=sys.stderr)\nsys.stderr.flush()\nprint(6)",
    "traceback": """
import traceback
try:
    1 / 0
except ZeroDivisionError:
    traceback.print_exc()
    print(6)
""",
    "print to a file": "import sys\nprint(6, file=sys.stdout, flush=True)\nsys.stdout.close()",
    "bytes": "import sys\nsys.stdout.buffer.write(b'6\\n')",
    "os.write": "import os\nos.write(1, b'6\\n')",
    "print replaced": """
import sys
print = lambda *a: sys.stdout.write(' '.join(map(str, a)) + '\\n')
print(6)
""",
    "rebound open": """
class Reader:
    opener = open
print(sum(map(int, Reader().opener(0).read().split()[1:])))
""",
    "recursion caught": """
def down():
    return down()
try:
    down()
except RecursionError:
    print(6)
""",
    "cached recursion": """
import sys
from functools import lru_cache
sys.setrecursionlimit(10**5)
@lru_cache(None)
def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)
print(6 if depth(5000) == 5000 else 0)
""",
    "cached recursion in a thread": """
import sys, threading
from functools import cache
sys.setrecursionlimit(10**6)
threading.stack_size(1 << 28)
@cache
def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)
thread = threading.Thread(target=lambda: print(6 if depth(100000) == 100000 else 0))
thread.start()
thread.join()
""",
    "asyncio": """
import asyncio
async def main():
    await asyncio.sleep(0.001)
    print(6)
asyncio.run(main())
""",
    "executor": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(abs, [-1, 2, -3])))
""",
    "arguments": "import argparse\nargparse.ArgumentParser().parse_args()\nprint(6)",
    "unittest": """
import unittest
class Test(unittest.TestCase):
    def test(self):
        print(6)
unittest.main()
""",
    "signal": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nprint(6)",
    "warnings": "x = 6\nprint(6 if x is 6 else 0)\nassert '\\d' == chr(92) + 'd'",
    "carriage returns": "n = input()\r\nprint(6)\r\n",
    "fenced": """
The sum:
```python
n, *a = map(int, open(0).read().split())
print(sum(a))
```
Done.
""",
    "fenced in a list": """
1. Read.
   ```python
   n, *a = map(int, open(0).read().split())
   print(sum(a))
   ```
""",
    "output block last": """
```
input()
print(sum(map(int, input().split())))
```
Output:
```
6
```
""",
    "use block last": """
```python
import sys
def total(a):
    return sum(a)
n, *numbers = map(int, sys.stdin.read().split())
print(total(numbers))
```
For example:
```python
print(total([1, 2]))
```
""",
    "blocks that build on one another": """
```python
def total(a):
    return sum(a)
```
```python
n = input()
print(total(map(int, input().split())))
```
""",
    "main called in a block of its own": """
```python
def main():
    n = input()
    print(sum(map(int, input().split())))
```
Then call it:
```python
main()
```
""",
    "prose after the program": """
input()
print(sum(map(int, input().split())))

It adds the numbers.
""",
}
# Programs that are no right answer, and the verdict on each.
FAULTY = {
    "status": ("print(6)\nexit(3)", "died"),
    "status 1": ("print(6)\nexit(1)", "error"),
    "text": ("print(6)\nexit('done')", "error"),
    "sys.exit of text": ("import sys\nprint(6)\nsys.exit('done')", "error"),
    "True": ("print(6)\nquit(True)", "error"),
    "exception": ("print(6)\n1 / 0", "error"),
    "exception at exit": ("import os\nprint(6, flush=True)\nos.abort()", "died"),
    "killed": ("import os\nprint(6, flush=True)\nos.kill(os.getpid(), 9)", "died"),
    "end of input": ("while True:\n    input()", "error"),
    "wrong": ("print(7)", "wrong"),
    "nothing": ("pass", "wrong"),
    "stdin is not to be written": ("import os\nos.write(0, b'6')", "error"),
    "prose": ("The answer is six.", "no_code"),
    "syntax": ("```python\nprint(6\n```", "no_code"),
    "empty": ("```python\n```", "no_code"),
    "NUL": ("print(6)\0", "no_code"),
    "nested": ("(" * 100_000, "no_code"),
    "too long": ("print(6)\n" + "#" * 200_000, "no_code"),
    "other lines": ("print('6\\f')", "correct"),
    "separators": ("print('6\\x0b7')", "wrong"),
}


@pytest.fixture(scope="module", params=pool.STRONG)
def lanes(request: pytest.FixtureRequest) -> Iterator[pool.Pool]:
    try:
        opened = pool.open_pool(request.param, LIMITS, workers=2)
    except ValueError as error:
        pytest.skip(f"{request.param} does not work here: {error}")
    yield opened
    pool.close(opened)


def job(completion: str, *cases: tuple[str, str]) -> dict[str, Any]:
    return {
        "form": "program",
        "completion": completion,
        "inputs": [case[0] for case in cases],
        "outputs": [case[1] for case in cases],
        "partial": False,
    }


def verdict_on(opened: pool.Pool, completion: str, *cases: tuple[str, str]) -> str:
    (verdict,) = pool.judge(opened, [job(completion, *cases)])
    return verdict.verdict


def judged(opened: pool.Pool, programs: dict[str, str]) -> dict[str, str]:
    """The verdicts on programs, two at a time."""
    results = pool.judge(opened, [job(program, (INPUT, OUTPUT)) for program in programs.values()])
    return {way: result.verdict for way, result in zip(programs, results)}


FEW = [*HONEST][::5]


def test_honest_programs_are_right(lanes: pool.Pool) -> None:
    assert judged(lanes, {way: HONEST[way] for way in FEW}) == dict.fromkeys(FEW, "correct")


@pytest.mark.slow
def test_all_honest_programs_are_right(lanes: pool.Pool) -> None:
    assert judged(lanes, HONEST) == dict.fromkeys(HONEST, "correct")


def test_other_programs_are_not(lanes: pool.Pool) -> None:
    programs = {way: program for way, (program, _) in FAULTY.items()}
    assert judged(lanes, programs) == {way: verdict for way, (_, verdict) in FAULTY.items()}


def test_inputs_of_any_text(lanes: pool.Pool) -> None:
    """Empty, without a newline at the end, with other line ends, large, and not quite text."""
    count = "import sys\nprint(len(sys.stdin.buffer.read()))"
    texts = ["", "a", "a\r\nb", "é\u2028", "x" * 3_000_000, "\udc80"]
    sizes = [len(text.encode(errors="surrogatepass")) for text in texts]
    cases = [(text, str(size)) for text, size in zip(texts, sizes)]
    assert verdict_on(lanes, count, *cases) == "correct"


def test_output_that_is_written_last_is_not_lost(lanes: pool.Pool) -> None:
    program = "import os\nos.write(1, b'x' * 60000)\nos._exit(0)"
    assert verdict_on(lanes, program, *[("", "x" * 60000)] * 8) == "correct"


def test_lines_are_compared_without_white_space_at_their_ends() -> None:
    assert normalised("1 \n2\r\n\n") == normalised("1\n2") == ["1", "2"]
    assert normalised("") == normalised("\n\n") == [""]
    for other in ("1\n\n2", "\n1\n2", "12", " 1\n2", "1\f2", "1\u20282"):
        assert normalised(other) != ["1", "2"]


def test_what_breaks_the_parser_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it crashes, or takes longer than the limits allow."""
    limits = LIMITS | {"wall_seconds": 0.3}
    place = room.Room(os.getpid(), False, (), None, False)
    outcomes = {
        "crash": (lambda: os.kill(os.getpid(), signal.SIGKILL), "died"),
        "loop": (lambda: time.sleep(9), "timeout"),
        "exception": (lambda: 1 / 0, "memory"),
    }
    for action, verdict in outcomes.values():
        monkeypatch.setattr(stdin_programs, "script_of", lambda _, act=action: act())
        assert extracted("x = 1", limits, place) == (verdict, "")
    monkeypatch.setattr(stdin_programs, "script_of", lambda text: text * 100_000)
    assert extracted("\ud800", LIMITS, place) == ("", "\ud800" * 100_000)
