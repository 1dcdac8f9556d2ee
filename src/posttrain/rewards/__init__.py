"""The registry of rewards. To add one: a file with a config and a `build`, and a line below.

A reward is a plain function

    reward(prompts, completions, completion_ids, **columns) -> list[float | None]

of lists with one entry per completion; `columns` are the data row's other columns. None means
"not applicable". An entry may be a `Score`, a float that carries a verdict to be counted.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from posttrain.rewards import code, custom, math
from posttrain.rewards.score import Score

RewardFn = Callable[..., list[float | None]]

REWARDS: dict[str, tuple[type[BaseModel], Callable[[Any], RewardFn]]] = {
    "math_correctness": (math.MathCorrectness, math.build),
    "code_execution": (code.CodeExecution, code.build),
    "custom": (custom.Custom, custom.build),
}


@runtime_checkable
class Checked(Protocol):
    """What a reward may offer besides being called."""

    def check_row(self, row: dict[str, Any]) -> None:
        """Raises ValueError for a row that it can not judge, before any training."""

    def about(self) -> dict[str, Any]:
        """Facts for the run's record."""


def build_reward(config: Any) -> RewardFn:
    return REWARDS[config.type][1](config)


def check_columns(reward: RewardFn, rows: Sequence[dict[str, Any]], source: str) -> None:
    """Raises ValueError for the first row without a column that the reward can not do without, or
    with content that it can not judge."""
    given = ("prompts", "completions", "completion_ids")
    needed = [
        p.name
        for p in inspect.signature(reward).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.default is p.empty
        and p.name not in given
    ]
    for number, row in enumerate(rows, 1):
        for column in needed:
            if column not in row:
                raise ValueError(
                    f"{source}, row {number}: the reward needs the column {column}; "
                    f"found {', '.join(row)} (map it with data.columns)"
                )
        if isinstance(reward, Checked):
            try:
                reward.check_row(row)
            except ValueError as error:
                raise ValueError(f"{source}, row {number}: {error}") from None


def score(
    reward: RewardFn,
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[list[int]],
    rows: Sequence[dict[str, Any]],
) -> list[float | None]:
    """Call a reward on rows; a failure names the row that broke it, or the form that was wrong."""
    try:
        scores = _call(reward, prompts, completions, completion_ids, rows)
    except Exception as error:
        for i in range(len(rows)):
            one = slice(i, i + 1)
            try:
                _call(reward, prompts[one], completions[one], completion_ids[one], rows[one])
            except Exception as cause:
                raise RuntimeError(
                    f"the reward failed on row {i + 1} ({type(cause).__name__}: {cause}); "
                    f"completion {completions[i][:200]!r}, columns {rows[i]!r}"
                ) from cause
        raise RuntimeError(f"the reward failed, though on no single row: {error}") from error
    if len(scores) != len(completions):
        raise RuntimeError(f"the reward returned {len(scores)} scores for {len(completions)} rows")
    return scores


def _call(
    reward: RewardFn,
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[list[int]],
    rows: Sequence[dict[str, Any]],
) -> list[float | None]:
    reserved = ("prompt", "completion", "messages")
    shared = set.intersection(*(set(row) for row in rows)) if rows else set()
    parameters = inspect.signature(reward).parameters.values()
    # a column that the reward names with a default of None may be missing in some of the rows
    optional = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is None}
    wanted = {name for name in optional if any(name in row for row in rows)} | shared
    columns = {name: [row.get(name) for row in rows] for name in wanted if name not in reserved}
    return list(
        reward(
            prompts=list(prompts),
            completions=list(completions),
            completion_ids=list(completion_ids),
            **columns,
        )
    )


def verdict_of(value: float | None) -> str | None:
    return value.verdict if isinstance(value, Score) else None
