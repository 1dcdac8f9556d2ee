"""pass@k, confidence intervals and the paired test.

The unit is the problem throughout, since completions of one problem depend on one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import fmean, pvariance
from typing import Any

import numpy

Z = 1.959964  # normal quantile of a two-sided 95 % interval

Figures = dict[str, Any]
"""Figures of a result by name; the 95 % interval of NAME is NAME_ci95."""


def pass_at(k: int, n: int, num_correct: int) -> float:
    """Return the unbiased estimate of pass@k from n completions.

    It is the probability that at least one of k of them is right (Chen et al. 2021, arXiv
    2107.03374, eq. 1).
    """
    return 1 - math.comb(n - num_correct, k) / math.comb(n, k)


def wilson(successes: int, n: int) -> list[float]:
    """Return the 95 % interval of a share (Wilson 1927), which also holds near 0 and 1."""
    return _wilson(successes / n, n) if n else [0.0, 1.0]


def _wilson(share: float, n: float, z: float = Z) -> list[float]:
    if share in (0, 1):  # exact there; the formula is off by rounding
        bound = z * z / (n + z * z)
        return [0.0, bound] if share == 0 else [1.0 - bound, 1.0]
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def interval(means: Sequence[float], each: int = 1) -> list[float]:
    """Return the 95 % interval of the mean of values in [0, 1], one per problem.

    A value is itself the mean over `each` completions. The interval is Wilson's, with the effective
    number of completions: so many independent ones would leave the mean as uncertain as the spread
    of the problems does (Dean and Pagano 2015, J. Survey Statistics and Methodology 3). It is at
    least the number of problems, reached if every value is 0 or 1, and at most that of all
    completions.
    """
    if not means:
        return [0.0, 1.0]
    share, n = fmean(means), len(means)
    spread = pvariance(means, share)
    most = n * each
    effective = most if spread == 0 else min(most, n * share * (1 - share) / spread)
    return _wilson(share, n if share in (0, 1) else effective)


def sign_flip_test(differences: Sequence[Fraction]) -> float:
    """Return the two-sided p-value of the hypothesis that signs of the differences are random.

    It is the share of all 2^n ways to choose the signs of the problems' differences whose sum is at
    least as far from 0 as the observed one. Exact: the distribution of the sum is built by adding
    one problem after the other. If every difference is -1, 0 or 1, this is the exact McNemar test
    (binomial of the discordant pairs).
    """
    scale = math.lcm(*(d.denominator for d in differences), 1)
    steps = [abs(int(d * scale)) for d in differences if d]
    if not steps:
        return 1.0
    observed, total = abs(int(sum(differences) * scale)), sum(steps)
    # entry i: probability that the sum so far is i - total
    chances = numpy.zeros(2 * total + 1)
    chances[total] = 1.0
    reach = 0
    for step in steps:
        reach += step
        low, high = total - reach, total + reach + 1
        before = chances[low:high].copy()
        chances[low:high] = 0.0
        width = high - low
        chances[low : high - step] += before[step:] / 2
        chances[low + step : high] += before[: width - step] / 2
    sums = numpy.abs(numpy.arange(-total, total + 1))
    return min(1.0, float(chances[sums >= observed].sum()))


def share(flags: Sequence[bool]) -> float:
    """Return the share of flags that are true; NaN if there are none."""
    return sum(flags) / len(flags) if flags else math.nan


def share_with_interval(name: str, flags: Sequence[bool]) -> Figures:
    """Return the share of flags that are true, with its 95 % interval; NaN if there are none."""
    n, num_true = len(flags), sum(flags)
    return {name: num_true / n if n else math.nan, f"{name}_ci95": wilson(num_true, n)}
