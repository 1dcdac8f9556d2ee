"""Calls rewards, sync or async, checks their results, and names the row that made one fail."""

from __future__ import annotations

import asyncio
import inspect
import math
import sysconfig
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence, Set, Sized
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from posttrain.rewards.base import (
    RESERVED,
    RewardFailure,
    RewardFn,
    Scores,
    columns_of,
    is_row_by_row,
    needs_columns,
    optional_columns,
)
from posttrain.rewards.checks import Checked

Result = TypeVar("Result")

PACKAGE = str(Path(__file__).parents[1])
LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
"""Folders of code that is not a user's."""
THIS = "the reward"
LONGEST_SHOWN = 500  # characters of a value or of an exception's words in a message
Call = tuple[Sequence[Any], Sequence[str], Sequence[list[int]], Sequence[dict[str, Any]]]
"""Prompts, completions, completion ids and rows: sequences of equal length."""


def score(
    reward: RewardFn,
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[list[int]],
    rows: Sequence[dict[str, Any]],
) -> Scores:
    """Return the scores of rows; see `score_each`."""
    if not rows:  # a rank without a share of the batch: there are no columns to pass
        return []
    return score_each(reward, [(prompts, completions, completion_ids, rows)])[0]


def score_each(reward: RewardFn, calls: Sequence[Call]) -> list[Scores]:
    """Return the scores of several calls of a reward, none of which sees the rows of another.

    Calls of an async reward run concurrently. Calls of a reward that scores each row alone are
    merged into one. Raise RewardFailure for a result of the wrong form, for a reward's own
    RewardFailure and, naming the row and the line of the reward's code, for any other exception.
    """
    if is_row_by_row(reward) and len(calls) > 1:
        merged: Any = [[x for call in calls for x in call[i]] for i in range(4)]
        scores = iter(score_each(reward, [merged])[0])
        return [[next(scores) for _ in call[1]] for call in calls]
    results: list[Any] = []
    for call in calls:
        try:
            results.append(_call(reward, call))
        except Exception as error:
            results.append(error)
    waiting = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
    if waiting:
        for i, result in zip(waiting, run(settle([results[i] for i in waiting]))):
            results[i] = result
    # cancelled calls last, so that the failure that cancelled them is the one that is raised
    order = sorted(range(len(calls)), key=lambda i: isinstance(results[i], asyncio.CancelledError))
    validated = {i: _validated(reward, calls[i], results[i]) for i in order}
    return [validated[i] for i in range(len(calls))]


def _call(reward: RewardFn, call: Call) -> Any:
    prompts, completions, completion_ids, rows = call
    wanted = set.intersection(*(set(row) for row in rows))
    # an optional column may be missing in some of the rows
    wanted |= {name for name in optional_columns(reward) if any(name in row for row in rows)}
    columns = {name: [row.get(name) for row in rows] for name in wanted if name not in RESERVED}
    try:
        return start_all({THIS: reward}, prompts, completions, completion_ids, columns)[THIS]
    except SystemExit as error:
        raise _exited(error) from error


def _exited(error: SystemExit) -> RuntimeError:
    """Return what is raised in place of SystemExit, which would end the run without a word."""
    return RuntimeError(f"it called exit with {error.code!r}").with_traceback(error.__traceback__)


def _validated(reward: RewardFn, call: Call, result: Any) -> Scores:
    if isinstance(result, RewardFailure):
        raise result
    if isinstance(result, BaseException):
        raise _name_the_row(reward, call, result) from result
    return validate({THIS: result}, call[1])[THIS]


def _name_the_row(reward: RewardFn, call: Call, error: BaseException) -> RewardFailure:
    """Return an error that names the first row on which the reward fails by itself."""
    _, completions, _, rows = call
    for i in range(len(rows)):
        part = slice(i, i + 1)
        try:
            result = _call(reward, (call[0][part], completions[part], call[2][part], rows[part]))
            if inspect.isawaitable(result):
                result = run(await_all({THIS: result}))[THIS]
            validate({THIS: result}, completions[part])
        except Exception as cause:
            notes = "".join(f", {note}" for note in getattr(cause, "__notes__", []))
            return RewardFailure(
                f"the reward failed on row {i + 1} ({_words(cause)}{notes}{_line_of(cause)}); "
                f"completion {completions[i][:200]!r}, columns {_shown(rows[i])}"
            )
    return RewardFailure(
        f"the reward failed, but not on any single row: {_words(error)}{_line_of(error)}"
    )


def _words(error: BaseException) -> str:
    """Return an exception's type and words on one line."""
    return f"{type(error).__name__}: {_shown(error)}"


def _shown(value: Any, most: int = LONGEST_SHOWN) -> str:
    """Return at most `most` characters of a value, on one line and without control characters."""
    try:
        text = str(value)
    except Exception:  # a value's own code, or an integer of too many digits
        return f"a value of type {type(value).__name__}"
    start = " ".join(text[: 2 * most].split())[:most]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in start)


def _line_of(error: BaseException) -> str:
    """Return the last line of the user's own code that an error came through, in words."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [x for x in frames if not x.filename.startswith((PACKAGE, *LIBRARIES, "<"))]
    return f"; {own[-1].filename}, line {own[-1].lineno}: {own[-1].line}" if own else ""


def start_all(
    rewards: Mapping[str, RewardFn],
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[list[int]],
    columns: Mapping[str, list[Any]],
) -> dict[str, Any]:
    """Return the result of each reward: scores, or an awaitable of them for an async reward.

    An exception of a reward is raised unchanged, with a note of the reward's name.
    """
    results: dict[str, Any] = {}
    # async rewards last: a sync one that fails before them leaves no coroutine to close
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


async def await_all(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results with every awaitable replaced by its result."""

    async def awaited(name: str) -> Any:
        try:
            return await _guarded(results[name])
        except Exception as error:
            if len(results) > 1:
                error.add_note(f"raised by {name}")
            raise

    waiting = [name for name, result in results.items() if inspect.isawaitable(result)]
    return {**results, **dict(zip(waiting, await asyncio.gather(*map(awaited, waiting))))}


def validate(results: Mapping[str, Any], completions: Sequence[str]) -> dict[str, Scores]:
    """Return the scores by name; raise RewardFailure for a result of the wrong form."""
    return {name: _validate_one(result, completions, name) for name, result in results.items()}


def combine_scores(
    rewards: Mapping[str, RewardFn],
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[list[int]],
    columns: Mapping[str, list[Any]],
    combine: Callable[[dict[str, Scores]], Scores],
) -> Any:
    """Return `combine` of the rewards' scores by name; an awaitable of it if a reward is async."""
    results = start_all(rewards, prompts, completions, completion_ids, columns)
    if not any(inspect.isawaitable(result) for result in results.values()):
        return combine(validate(results, completions))

    async def later() -> Scores:
        return combine(validate(await await_all(results), completions))

    return later()


async def settle(waiting: Sequence[Awaitable[Any]]) -> list[Any]:
    """Return the result or the exception of each; the first exception cancels the others."""
    tasks = [asyncio.ensure_future(_guarded(awaitable)) for awaitable in waiting]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in pending:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def _guarded(awaitable: Awaitable[Any]) -> Any:
    """Return the result; raise RuntimeError if an async reward exits or cancels itself."""
    try:
        return await awaitable
    except SystemExit as error:
        raise _exited(error) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # by `settle`, after another's failure
            raise
        raise RuntimeError("it was cancelled") from error


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a coroutine, also if an event loop already runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:  # as in a notebook
        return pool.submit(asyncio.run, coroutine).result()


def _validate_one(scores: Any, completions: Sequence[str], name: str) -> Scores:
    # a set has no order, and the items of bytes are numbers
    no_list = isinstance(scores, (str, bytes, bytearray, memoryview, Mapping, Set))
    if no_list or not isinstance(scores, Iterable):
        raise RewardFailure(
            f"{name} returned {type(scores).__name__}: it must return a list with one float or "
            "None for each completion"
        )
    try:  # an iterator runs code of the reward, and may have no end
        scores = list(scores if isinstance(scores, Sized) else islice(scores, len(completions) + 1))
    except Exception as error:
        raise RewardFailure(
            f"{name} returned {type(scores).__name__}, which cannot be read as a list "
            f"({_words(error)}{_line_of(error)})"
        ) from error
    if len(scores) != len(completions):
        raise RewardFailure(
            f"{name} returned {len(scores)} scores for {len(completions)} rows: it must return one "
            "float or None for each completion, in order"
        )
    for i, value in enumerate(scores):
        if value is not None and not _is_finite(value):
            raise RewardFailure(
                f"{name} returned {_shown(value, 80)} ({type(value).__name__}) for row {i + 1}: a "
                "score is a finite number, or None if it does not apply; "
                f"completion {completions[i][:200]!r}"
            )
    return [v if v is None or isinstance(v, float) else float(v) for v in scores]


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer or fraction beyond all floats
        return False


def delegate(reward: RewardFn, parts: Iterable[RewardFn]) -> RewardFn:
    """Return `reward`, which calls `parts`, with the columns, checks and facts of all the parts."""
    parts = list(parts)
    checked: list[Any] = [part for part in parts if isinstance(part, Checked)]
    whole: Any = reward
    whole.row_by_row = all(map(is_row_by_row, parts))

    def check_rows(rows: Sequence[dict[str, Any]]) -> None:
        for part in checked:
            part.check_rows(rows)

    if checked:
        whole.check_rows = check_rows
        whole.about = lambda: {k: v for part in checked for k, v in part.about().items()}
    return needs_columns(
        reward,
        [column for part in parts for column in columns_of(part)],
        [column for part in parts for column in optional_columns(part)],
    )
