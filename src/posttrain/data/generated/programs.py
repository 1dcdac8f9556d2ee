"""Generated one-function Python tasks for `code_execution`: seeded, endless, and offline.

A row has the task ("prompt"), a program that solves it ("completion"), asserts that the prompt
does not show ("test_list"), and the kind of task ("family"):

    Write f(x): multiply x by 3, then subtract 4 from it.

    def f(x):
        return x * 3 - 4

    assert f(71) == 209

A family is one step or two, such as multiply+subtract. The expected values come from the steps'
own rules, not from the program. Inputs are drawn until the asserts fail every constant and every
program whose task differs in one number or letter or lacks one step.

The families are meant for supervised training on some of them (SEEN_FAMILIES), followed by
reinforcement learning from verdicts on all of them. RL_FAMILIES combine the same steps in ways
that the seen families do not.

Splits: "train" and "test" share no task, whatever the seed (`families.side`).
"""

import ast
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.generated.families import chosen, distinct, in_turn, side
from posttrain.data.origin import generated
from posttrain.data.rows import Row

NAMES = ("f", "g", "h", "run", "solve", "work", "make", "change", "compute", "convert")
ARGUMENTS = {
    "number": ("x", "n", "k", "number"),
    "text": ("s", "t", "text", "word"),
    "list": ("xs", "items", "values", "numbers"),
}
ALPHABET = "abcdefghij"  # as many as digits: a small model learns to copy these in a minute
PAIRS = tuple(a + b for a in ALPHABET for b in ALPHABET)
NUM_TESTS = 4

Drawn = list[int | str]
"""The numbers and letters of a task."""


@dataclass(frozen=True)
class Step:
    """What a program does to its value: in words, in Python, and as a function to check it by."""

    takes: str  # a key of ARGUMENTS
    gives: str  # a key of ARGUMENTS
    words: str  # {v} is the value, {0} and {1} are what is drawn
    code: str
    rule: Callable[..., Any]
    draws: tuple[Sequence[int | str], ...] = ()  # what {0} and {1} are drawn from


ANY, COUNT, DIVISOR = range(2, 100), range(2, 6), range(2, 13)

STEPS = {
    "add": Step("number", "number", "add {0} to {v}", "{v} + {0}", lambda x, n: x + n, (ANY,)),
    "subtract": Step(
        "number", "number", "subtract {0} from {v}", "{v} - {0}", lambda x, n: x - n, (ANY,)
    ),
    "multiply": Step(
        "number", "number", "multiply {v} by {0}", "{v} * {0}", lambda x, n: x * n, (ANY,)
    ),
    "divide": Step(
        "number",
        "number",
        "divide {v} by {0} and round down",
        "{v} // {0}",
        lambda x, n: x // n,
        (DIVISOR,),
    ),
    "remainder": Step(
        "number",
        "number",
        "take the remainder of {v} by {0}",
        "{v} % {0}",
        lambda x, n: x % n,
        (ANY,),
    ),
    "square": Step("number", "number", "square {v}", "{v} ** 2", lambda x: x * x),
    "upper": Step("text", "text", "put {v} in upper case", "{v}.upper()", str.upper),
    "reverse": Step("text", "text", "reverse {v}", "{v}[::-1]", lambda s: s[::-1]),
    "first": Step(
        "text",
        "text",
        "keep the first {0} letters of {v}",
        "{v}[:{0}]",
        lambda s, n: s[:n],
        (COUNT,),
    ),
    "repeat": Step(
        "text", "text", "repeat {v} {0} times", "{v} * {0}", lambda s, n: s * n, (COUNT,)
    ),
    "append": Step(
        "text", "text", "put {0} after {v}", "{v} + {0}", lambda s, ab: s + ab, (PAIRS,)
    ),
    "prepend": Step(
        "text", "text", "put {0} before {v}", "{0} + {v}", lambda s, ab: ab + s, (PAIRS,)
    ),
    "replace": Step(
        "text",
        "text",
        "replace {0} by {1} in {v}",
        "{v}.replace({0}, {1})",
        str.replace,
        (ALPHABET, ALPHABET),
    ),
    "count": Step(
        "text", "number", "count the {0} in {v}", "{v}.count({0})", str.count, (ALPHABET,)
    ),
    "increase": Step(
        "list",
        "list",
        "add {0} to each number in {v}",
        "[x + {0} for x in {v}]",
        lambda xs, n: [x + n for x in xs],
        (ANY,),
    ),
    "scale": Step(
        "list",
        "list",
        "multiply each number in {v} by {0}",
        "[x * {0} for x in {v}]",
        lambda xs, n: [x * n for x in xs],
        (ANY,),
    ),
    "above": Step(
        "list",
        "list",
        "keep the numbers above {0} in {v}",
        "[x for x in {v} if x > {0}]",
        lambda xs, n: [x for x in xs if x > n],
        (ANY,),
    ),
    "below": Step(
        "list",
        "list",
        "keep the numbers below {0} in {v}",
        "[x for x in {v} if x < {0}]",
        lambda xs, n: [x for x in xs if x < n],
        (ANY,),
    ),
    "multiples": Step(
        "list",
        "list",
        "keep the multiples of {0} in {v}",
        "[x for x in {v} if x % {0} == 0]",
        lambda xs, n: [x for x in xs if x % n == 0],
        (DIVISOR,),
    ),
    "sort": Step("list", "list", "sort {v}", "sorted({v})", sorted),
    "sum": Step("list", "number", "take the sum of {v}", "sum({v})", sum),
}

SEEN_FAMILIES = (
    "add",
    "subtract",
    "multiply",
    "append",
    "prepend",
    "replace",
    "above",
    "add+multiply",
    "add+square",
    "subtract+divide",
    "subtract+remainder",
    "multiply+add",
    "multiply+subtract",
    "multiply+remainder",
    "divide+add",
    "divide+multiply",
    "remainder+subtract",
    "remainder+multiply",
    "square+add",
    "square+remainder",
    "upper+append",
    "upper+prepend",
    "reverse+append",
    "first+prepend",
    "repeat+append",
    "repeat+prepend",
    "replace+append",
    "append+reverse",
    "append+replace",
    "prepend+upper",
    "prepend+reverse",
    "prepend+repeat",
    "append+count",
    "replace+count",
    "above+sum",
    "above+increase",
    "below+sort",
    "below+scale",
    "increase+sum",
    "increase+above",
    "multiples+scale",
    "increase+multiples",
    "scale+sort",
    "scale+sum",
)
RL_FAMILIES = (
    "subtract+multiply",
    "add+remainder",
    "add+divide",
    "remainder+add",
    "square+subtract",
    "append+upper",
    "append+repeat",
    "reverse+prepend",
    "first+append",
    "replace+prepend",
    "below+sum",
    "above+sort",
    "above+scale",
    "below+increase",
    "increase+sort",
)
FAMILIES = SEEN_FAMILIES + RL_FAMILIES

SPLITS = ("train", "test")
ORIGIN = generated(SPLITS)


def load(
    split: str,
    *,
    num_rows: int = 1000,
    families: str | Sequence[str] = "all",
    seed: int = 0,
) -> list[Row]:
    """Generate num_rows tasks, in turn from each of the families.

    families is "all", "seen", "rl_only" or a list of names. The same arguments give the same
    rows, and fewer rows are the first of more.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    groups = {"all": list(FAMILIES), "seen": list(SEEN_FAMILIES), "rl_only": list(RL_FAMILIES)}
    names = chosen(families, groups, split)
    return in_turn([distinct(name, split, _draws(name, split, seed)) for name in names], num_rows)


def _draws(family: str, split: str, seed: int) -> Callable[[], Row | None]:
    """Return a function that draws the next task of a family.

    It returns None for a task of the other split, or if the asserts would pass a wrong program.
    """
    steps = [STEPS[name] for name in family.split("+")]
    rng = random.Random(f"{family} {split} {seed}")

    def draw() -> Row | None:
        name, argument = rng.choice(NAMES), rng.choice(ARGUMENTS[steps[0].takes])
        drawn: Drawn = [rng.choice(pool) for step in steps for pool in step.draws]
        inputs = [_input(steps[0].takes, drawn, rng) for _ in range(NUM_TESTS)]
        style = rng.choice((expression, lines))
        if side(family, drawn) != split or not telling(steps, drawn, inputs):
            return None
        return {
            "prompt": f"Write {name}({argument}): {task(steps, drawn, argument)}.",
            "completion": f"def {name}({argument}):\n" + style(steps, drawn, argument),
            "test_list": [f"assert {name}({x!r}) == {run(steps, drawn, x)!r}" for x in inputs],
            "family": family,
        }

    return draw


def _shares(steps: Sequence[Step], drawn: Drawn) -> Iterator[tuple[Step, Drawn]]:
    """Yield each step with its own part of what is drawn."""
    rest = iter(drawn)
    for step in steps:
        yield step, [next(rest) for _ in step.draws]


def task(steps: Sequence[Step], drawn: Drawn, argument: str) -> str:
    """Return the steps in words."""
    values = [argument] + ["it"] * len(steps)
    return ", then ".join(
        step.words.format(*map(repr, share), v=value)
        for value, (step, share) in zip(values, _shares(steps, drawn))
    )


def expression(steps: Sequence[Step], drawn: Drawn, argument: str) -> str:
    """Return the body of the program as one expression."""
    value = argument
    for step, share in _shares(steps, drawn):
        inner = value if value == argument else f"({value})"
        value = step.code.format(*map(repr, share), v=inner)
    return f"    return {ast.unparse(ast.parse(value, mode='eval'))}"  # without needless brackets


def lines(steps: Sequence[Step], drawn: Drawn, argument: str) -> str:
    """Return the body of the program with one line per step."""
    value, body = argument, []
    for step, share in _shares(steps, drawn):
        code = step.code.format(*map(repr, share), v=value)
        value = argument if step.gives == steps[0].takes else "result"
        body.append(f"    {value} = {code}")
    return "\n".join([*body[:-1], f"    return {code}"])


def run(steps: Sequence[Step], drawn: Drawn, value: Any) -> Any:
    """Return what a correct program returns for `value`."""
    for step, share in _shares(steps, drawn):
        value = step.rule(value, *share)
    return value


def telling(steps: Sequence[Step], drawn: Drawn, inputs: Sequence[Any]) -> bool:
    """Whether these inputs tell a correct program from a constant and from all `variants`."""
    expected = [run(steps, drawn, x) for x in inputs]
    return any(value != expected[0] for value in expected) and all(
        [run(other, changed, x) for x in inputs] != expected
        for other, changed in variants(steps, drawn)
    )


def variants(steps: Sequence[Step], drawn: Drawn) -> Iterator[tuple[Sequence[Step], Drawn]]:
    """Yield tasks close to this one: a number one off, another letter, or a step left out."""
    for i, value in enumerate(drawn):
        for d in (-1, 1):
            if isinstance(value, int):
                near: int | str = value + d
            else:
                near = value[:-1] + ALPHABET[(ALPHABET.index(value[-1]) + d) % len(ALPHABET)]
            yield steps, [*drawn[:i], near, *drawn[i + 1 :]]
    for i, step in enumerate(steps):
        if step.takes == step.gives:
            kept = [pair for j, pair in enumerate(_shares(steps, drawn)) if j != i]
            yield [other for other, _ in kept], [x for _, share in kept for x in share]


def _input(kind: str, drawn: Drawn, rng: random.Random) -> Any:
    """Draw a value to call the program with, near the task's numbers so that they matter."""
    if kind == "number":
        return rng.randrange(100)
    if kind == "text":
        letters = [a for x in drawn if isinstance(x, str) for a in x] + rng.sample(ALPHABET, 4)
        return "".join(rng.choices(letters, k=rng.randint(6, 9)))
    numbers = [x for x in drawn if isinstance(x, int)]
    edges = [*numbers, numbers[-1] - numbers[0]]  # the last: a limit after an increase
    near = [x + d for x in edges for d in (-1, 0, 1)]
    return [rng.choice(near) if rng.random() < 0.4 else rng.randrange(100) for _ in range(6)]
