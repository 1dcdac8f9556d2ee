"""Calling rewards: sync or async, with their results checked and their columns known beforehand."""

import asyncio
import inspect
import keyword
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

from pydantic import AfterValidator

RewardFn = Callable[..., Any]
"""reward(prompts, completions, completion_ids, **columns) -> list[float | None], sync or async."""

Scores = list[float | None]
Result = TypeVar("Result")

GIVEN = ("prompts", "completions", "completion_ids")
RESERVED = ("prompt", "completion", "messages")  # columns that a reward gets as GIVEN


class RewardFailure(ValueError):
    """A failure whose message says all there is to say; rows are not tried again one by one."""


def begin(
    rewards: Mapping[str, RewardFn],
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[list[int]],
    columns: Mapping[str, list[Any]],
) -> dict[str, Any]:
    """What each reward returns: sync ones in turn, of an async one something to wait for.

    Whatever a reward raises goes through, with a note of the reward's name.
    """
    results: dict[str, Any] = {}
    # async ones last: they wait together
    for name in sorted(rewards, key=lambda name: inspect.iscoroutinefunction(rewards[name])):
        try:
            results[name] = rewards[name](
                prompts=list(prompts),
                completions=list(completions),
                completion_ids=list(completion_ids),
                **columns,
            )
        except Exception as error:
            for result in results.values():
                if inspect.iscoroutine(result):
                    result.close()
            if len(rewards) > 1:
                error.add_note(f"raised by {name}")
            raise
    return {name: results[name] for name in rewards}


async def arrived(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results, once those that had to be waited for are there."""

    async def one(name: str) -> Any:
        try:
            return await results[name]
        except Exception as error:
            if len(results) > 1:
                error.add_note(f"raised by {name}")
            raise

    waiting = [name for name, result in results.items() if inspect.isawaitable(result)]
    return {**results, **dict(zip(waiting, await asyncio.gather(*map(one, waiting))))}


def checked(results: Mapping[str, Any], completions: Sequence[str]) -> dict[str, Scores]:
    """The scores, by name; RewardFailure for a result of the wrong form."""
    return {name: _checked(result, completions, name) for name, result in results.items()}


def made_from(
    rewards: Mapping[str, RewardFn],
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[list[int]],
    columns: Mapping[str, list[Any]],
    combine: Callable[[dict[str, Scores]], Scores],
) -> Any:
    """combine(the scores of several rewards, by name): something to wait for where one of them is
    async."""
    results = begin(rewards, prompts, completions, completion_ids, columns)
    if not any(inspect.isawaitable(result) for result in results.values()):
        return combine(checked(results, completions))

    async def later() -> Scores:
        return combine(checked(await arrived(results), completions))

    return later()


async def settled(waiting: Sequence[Awaitable[Any]]) -> list[Any]:
    """The result of each, or its exception; after the first of these the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in waiting]
    _, late = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in late:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:  # a notebook has a loop of its own
        return pool.submit(asyncio.run, coroutine).result()


def _checked(scores: Any, completions: Sequence[str], name: str) -> Scores:
    if isinstance(scores, (str, bytes, Mapping)) or not isinstance(scores, Iterable):
        raise RewardFailure(
            f"{name} returned {type(scores).__name__}: it must return a list with one float or "
            "None for each completion"
        )
    scores = list(scores)
    if len(scores) != len(completions):
        raise RewardFailure(
            f"{name} returned {len(scores)} scores for {len(completions)} rows: it must return one "
            "float or None for each completion, in their order"
        )
    for i, value in enumerate(scores):
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise RewardFailure(
                f"{name} returned {str(value)[:80]} ({type(value).__name__}) for row {i + 1}: a "
                "score is a finite number, or None where it does not apply; "
                f"completion {completions[i][:200]!r}"
            )
    return [v if v is None or isinstance(v, float) else float(v) for v in scores]


def _column(name: str) -> str:
    if name in RESERVED or name in GIVEN:
        raise ValueError(f"column {name!r} is not passed to a reward: name the reference's column")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(
            f"column {name!r} can not be the name of an argument: rename it with data.columns"
        )
    return name


Column = Annotated[str, AfterValidator(_column)]


def needs_columns(
    reward: RewardFn, columns: Iterable[str], optional: Iterable[str] = ()
) -> RewardFn:
    """`reward`, with a signature that names the columns it can not do without and those it can.

    For a reward that learns its columns' names from its settings and takes them as **columns.
    """
    kinds = inspect.Parameter
    named: Any = reward
    named.__signature__ = inspect.Signature(
        [
            *(kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in GIVEN),
            *(kinds(name, kinds.KEYWORD_ONLY) for name in dict.fromkeys(columns)),
            *(kinds(n, kinds.KEYWORD_ONLY, default=None) for n in set(optional) - set(columns)),
            kinds("columns", kinds.VAR_KEYWORD),
        ]
    )
    return reward


@runtime_checkable
class Checked(Protocol):
    """What a reward may offer besides being called."""

    def check_row(self, row: dict[str, Any]) -> None:
        """Raises ValueError for a row that it can not judge, before any training."""

    def about(self) -> dict[str, Any]:
        """Facts for the run's record."""


def made_of(reward: RewardFn, parts: Iterable[RewardFn]) -> RewardFn:
    """`reward`, which calls `parts`, with the columns, the check and the record of them all."""
    parts = list(parts)
    checked: list[Any] = [part for part in parts if isinstance(part, Checked)]
    whole: Any = reward
    whole.row_by_row = all(map(is_row_by_row, parts))

    def check_row(row: dict[str, Any]) -> None:
        for part in checked:
            part.check_row(row)

    if checked:
        whole.check_row = check_row
        whole.about = lambda: {k: v for part in checked for k, v in part.about().items()}
    return needs_columns(
        reward,
        [column for part in parts for column in columns_of(part)],
        [column for part in parts for column in optional_columns(part)],
    )


def each_row_alone(reward: RewardFn) -> RewardFn:
    """Marks a reward that looks at one row at a time: rows of several groups may go in one call."""
    marked: Any = reward
    marked.row_by_row = True
    return reward


def is_row_by_row(reward: RewardFn) -> bool:
    return bool(getattr(reward, "row_by_row", False))


def columns_of(reward: RewardFn) -> list[str]:
    """The columns that a reward can not do without."""
    return [
        p.name
        for p in inspect.signature(reward).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.default is p.empty
        and p.name not in GIVEN
    ]


def optional_columns(reward: RewardFn) -> list[str]:
    """The columns that a reward names with a default of None."""
    parameters = inspect.signature(reward).parameters.values()
    return [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is None]
