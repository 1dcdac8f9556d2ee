"""Objects and exceptions of a candidate that would judge themselves: none earns credit."""

from posttrain.rewards.code import CodeExecution, build, job_of
from posttrain.sandbox import pool

# Answers each question of a test as if it were near zero, equal to all, or nothing at all.
OBJECTS = """class Evil:
    def __init__(self, *a): self.x = self.y = 0
    def _s(self, *a): return self
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _s
    __rtruediv__ = __pow__ = __isub__ = __iadd__ = __neg__ = __mod__ = __floordiv__ = _s
    def _z(self, *a): return 0
    __int__ = __index__ = __len__ = __hash__ = _z
    def __float__(self): return 0.0
    def __abs__(self): return 0.0
    def __round__(self, *a): return 0
    def __bool__(self): return False
    def __str__(self): return '0'
    __repr__ = __str__
    def __format__(self, s): return '0.00'
    def __eq__(self, o): return True
    def __lt__(self, o): return True
    __gt__ = __le__ = __ge__ = __lt__
    def __contains__(self, o): return True
    def __iter__(self): return iter(())
    def total_seconds(self): return 0.0
    real = imag = 0.0
    days = 0
    def is_integer(self): return True

class Average(Evil): pass
class Point(Evil): pass
def f(*a): return Evil()
"""
# Tests of a row each; the candidate is OBJECTS.
TESTS = """
assert abs(Average([1,2]) - 1.5) < 1e-6
assert not (Average(3) - 7)
assert float(Average(3) - 7) == 0
assert round(Average(3) - 7, 3) == 0
assert str(Average(3) - 7) == '0'
assert f'{Average(3) - 7:.2f}' == '0.00'
assert int(Average(3) - 7) == 0
assert (Average(3) - 7).real == 0
assert abs((Average(3) - 2j).real) < 1e-6
assert max(abs(Average(3) - 7), 0) == 0
assert bool(Average(3) - 7) is False
assert -1 < Average(3) - 7 < 1
import math; assert math.isclose(Average(3) - 7, 0)
import math; assert math.fabs(Average(3) - 7) < 1e-9
r = Average(3); r -= 7; assert abs(r) < 1
r = Average(3); r -= 7; assert not r
assert abs(f(2) - 3) < 1
assert Average(3) == 7
assert 7 == Average(3)
assert Average(3) in (7, 8)
assert (Average(3) - 7) ** 2 < 1e-6
assert sum([Average(3), -7]) == 0
import datetime; assert (Average(3) - datetime.timedelta(days=7)).days == 0
import datetime; assert (Average(3) - datetime.timedelta(days=7)).total_seconds() == 0
import numpy as np; assert np.allclose(Average(3) - 7, 0)
import numpy as np; assert abs(np.float64(7) - Average(3)) < 1e-6
assert 7 - Average(3) == 0
assert len(Average(3) - 7) == 0
from pytest import approx; assert Average(3) == approx(7)
import unittest; unittest.TestCase().assertAlmostEqual(Average(3), 7)
assert type(f(2)) is int
assert type(f(2)) == int
assert f(2).__class__ == int
assert isinstance(f(2), int)
assert float(f(2)) == 7
assert int(f(2)) == 7
assert all(x == 1 for x in f(2)); assert 7 in f(2)
assert 7 in f(2) and 8 in f(2)
import copy; assert copy.deepcopy(f(2)) == 7
"""
# Programs, each with its test.
PROGRAMS = """
def f(x): raise StopIteration
---
assert all(map(f, [1]))
===
class Bad(Exception): pass
def f(x): raise Bad
---
try:
    f(1)
    ok = True
except ValueError:
    ok = True
assert ok
===
class Bad(AssertionError): pass
def f(x): raise Bad
---
try:
    f(1)
except ValueError:
    pass
===
Bad = Exception
def f(x): return 0
---
try:
    f(1)
    assert False
except Bad:
    pass
===
Bad = AssertionError
def f(x): return 0
---
try:
    f(1)
    assert False
except Bad:
    pass
===
class Bad(Exception):
    pass
def f(x): raise Bad
---
import unittest
t=unittest.TestCase()
with t.assertRaises(ValueError):
    f(1)
===
def f(g):
    try:
        g(1)
    except BaseException:
        pass
---
def g(x):
    assert x == 2
f(g)
===
def f(g):
    try:
        g(1)
    except BaseException as e:
        raise StopIteration
---
def g(x):
    raise KeyError
assert all(map(f, [g]))
===
import types
def f(x): raise ExceptionGroup('x', [KeyError(1)])
---
try:
    f(1)
except* ValueError:
    pass
===
import types
def f(x): raise ExceptionGroup('x', [ValueError(1), KeyError(2)])
---
try:
    f(1)
except* ValueError:
    pass
===
def f(): 
    raise SystemExit(0)
---
f()
===
def g(m):
    m.assert_called_once_with = lambda *a: None
    return 0
---
from unittest.mock import Mock
m = Mock()
g(m)
m.assert_called_once_with(3)
===
def g(m):
    m.configure_mock(assert_called_once_with=None)
    return 0
---
from unittest.mock import Mock
m = Mock()
g(m)
m.assert_called_once_with(3)
===
def g(m):
    m.reset_mock
    return 0
---
from unittest.mock import Mock
m = Mock()
g(m)
m.assert_called_once_with(3)
===
def mean(x): return 0
def h(x): return 0
---
assert mean([1, 2]) == mean([h(1)]) == 1.5
===
def mean(x): return 1.5
def h(x): return 0
---
assert mean([1, 2]) == 1.5
assert h([1,2]) == mean([3, 5])
===
def f(d):
    d.clear()
    d.update(x=1)
    return d
---
d = {'x': 2, 'y': 3}
assert f(d) == dict(d, z=1)
===
def f(ns):
    ns.a = 5
    return 5
---
from types import SimpleNamespace
ns = SimpleNamespace(a=1)
assert f(ns) == ns.a
===
def f(s):
    s.truncate(0); s.seek(0); s.write('x')
    return 'x'
---
import io
s = io.StringIO('abc')
assert f(s) == s.getvalue()
===
import random
def f(r):
    r.seed(1)
    return random.Random(1).random()
---
import random
r = random.Random(7)
assert f(r) == r.random()
===
class P:
    def __init__(self): self.v = 0
    def __deepcopy__(self, m): return 7
def f(): return P()
---
import copy
assert copy.deepcopy(f()) == 7
"""


def test_no_object_or_exception_of_a_candidate_judges_itself():
    rows = [(OBJECTS, line) for line in TESTS.strip().splitlines()]
    rows += [tuple(block.split("\n---\n")) for block in PROGRAMS.split("===\n")]
    built = build(CodeExecution(workers=2))
    jobs = [
        job_of({"test_list": [test]}) | {"completion": program, "partial": False}
        for program, test in rows
    ]
    verdicts = pool.judge(built.pool, jobs)
    pool.close(built.pool)
    credited = [row for row, v in zip(rows, verdicts, strict=True) if v.verdict == "correct"]
    assert credited == []
    assert not {v.verdict for v in verdicts} & {"bad_test", "timeout"}
