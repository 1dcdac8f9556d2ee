"""Generated word problems with solutions in steps, half of them with a fault, each step labelled.

The problems and splits are those of `word_problems`. In a solution with a fault one step is wrong:
its calculation (a slip in the result, a number misread, another operation), or the answer in the
last line. Later steps use the wrong number. A step is labelled right if it and all steps before it
are, as in Uesato et al. 2022 (arXiv 2211.14275): the steps before the fault are right, and all from
there on are wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from posttrain.data.generated import word_problems
from posttrain.data.generated.word_problems import OPERATIONS
from posttrain.data.origin import generated
from posttrain.data.rows import Row

CALCULATION = re.compile(r"(\d+)([-+*/])(\d+) = <<.*?>>(\d+)")
ANSWER = "#### "
SLIPS = (-10, -2, -1, 1, 2, 10)
ORIGIN = generated(word_problems.SPLITS, ("process reward",))


def load(
    split: str, *, num_rows: int = 1000, families: str | Sequence[str] = "all", seed: int = 0
) -> list[Row]:
    """Return rows with prompt, completions (a solution's lines), labels, answer and family.

    `labels` has true or false for each line. The arguments are those of word_problems.load; fewer
    rows are the first of more.
    """
    problems = word_problems.load(split, num_rows=num_rows, families=families, seed=seed)
    return [_row(problem, random.Random(f"steps {seed} {i}")) for i, problem in enumerate(problems)]


def _row(problem: Row, rng: random.Random) -> Row:
    right = problem["completion"].split("\n")
    steps, fault = right, len(right)
    if rng.random() < 0.5:
        wrong = None
        # drawn again if a number falls below 1, or if later steps cancel the fault
        while wrong is None or wrong[-1] == right[-1]:
            fault = rng.randrange(len(right))
            wrong = with_fault(right, fault, rng)
        steps = wrong
    labels = [i < fault for i in range(len(right))]
    rest = {k: v for k, v in problem.items() if k != "completion"}
    return rest | {"completions": steps, "labels": labels}


def with_fault(right: list[str], fault: int, rng: random.Random) -> list[str] | None:
    """Return the solution with a wrong number in line `fault`, and the numbers that follow from it.

    None if the calculation still gives the right number, or one below 1.
    """
    # right result of a step -> its wrong one; an equal number from the question is replaced too,
    # but only in steps that are wrong already
    wrong_results: dict[int, int] = {}
    steps = []
    for i, line in enumerate(right):
        match = CALCULATION.search(line)
        if match is None:
            answer = int(line.removeprefix(ANSWER))
            shown = _near(answer, rng) if i == fault else wrong_results.get(answer, answer)
            steps.append(f"{ANSWER}{shown}")
            continue
        a, sign, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
        if i == fault:
            a, sign, b, value = _faulty(a, sign, b, rng)
        else:
            a, b = wrong_results.get(a, a), wrong_results.get(b, b)
            value = OPERATIONS[sign](a, b)
        if value < 1 or (i == fault and value == result):
            return None
        if value != result:
            wrong_results[result] = value
        calculation = f"{a}{sign}{b} = <<{a}{sign}{b}={value}>>{value}"
        steps.append(line[: match.start()] + calculation + line[match.end() :])
    return steps


def _faulty(a: int, sign: str, b: int, rng: random.Random) -> tuple[int, str, int, int]:
    """Return a calculation a, sign, b with its result, in which one of the four was changed."""
    kind = rng.choice(("slip", "misread", "operation"))
    if kind == "slip":
        return a, sign, b, _near(OPERATIONS[sign](a, b), rng)
    if kind == "operation":
        sign = rng.choice([other for other in "+-*" if other != sign])
    elif rng.random() < 0.5:
        a = _near(a, rng)
    else:
        b = _near(b, rng)
    return a, sign, b, OPERATIONS[sign](a, b)


def _near(number: int, rng: random.Random) -> int:
    """Draw another number near this one, above 0."""
    return rng.choice([number + slip for slip in SLIPS if number + slip > 0])
