"""The interface of a reward: its settings, its function and the columns that it reads.

A reward is a plain function

    reward(prompts, completions, completion_ids, **columns) -> list[float | None]

Every argument is a list with one entry per completion; `columns` are the other columns of the data
rows. A score of None means "not applicable". A score may be a `Score`, a float with a verdict to be
counted. The function may be `async`.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from posttrain.config.base import StrictConfig

RewardFn = Callable[..., Any]
"""reward(prompts, completions, completion_ids, **columns) -> list[float | None], sync or async."""

Scores = list[float | None]

GIVEN = ("prompts", "completions", "completion_ids")  # the arguments of every reward
RESERVED = ("prompt", "completion", "messages")  # data columns that are passed as GIVEN only


class RewardConfig(StrictConfig, allow_inf_nan=False):
    """The settings of a reward, one section of a recipe; `type` names an entry of REWARDS."""

    type: str
    """Name of the reward."""


@dataclass(frozen=True)
class Reward:
    """An entry of REWARDS: the class of a reward's settings, and how to build its function."""

    config: type[RewardConfig]
    build: Callable[[Any], RewardFn]
    """Return the reward function for the settings; raise ValueError if they cannot be met."""


class RewardFailure(ValueError):
    """A failure with a complete message: rows are not scored again one by one to find the cause."""


def _column(name: str) -> str:
    if name in RESERVED or name in GIVEN:
        raise ValueError(
            f"column {name!r} is not passed to a reward as a column: name the column that holds "
            "the reference"
        )
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(
            f"column {name!r} cannot be the name of an argument: rename it with data.columns"
        )
    return name


Column = Annotated[str, AfterValidator(_column)]
"""The type of a key that names a data column which the reward receives as an argument."""


def needs_columns(
    reward: RewardFn, columns: Iterable[str], optional: Iterable[str] = ()
) -> RewardFn:
    """Return `reward` with a signature that names its required and its optional columns.

    For a reward whose column names come from its settings, so that it takes them as **columns.
    """
    parameter = inspect.Parameter
    named: Any = reward
    named.__signature__ = inspect.Signature(
        [
            *(parameter(n, parameter.POSITIONAL_OR_KEYWORD) for n in GIVEN),
            *(parameter(n, parameter.KEYWORD_ONLY) for n in dict.fromkeys(columns)),
            *(
                parameter(n, parameter.KEYWORD_ONLY, default=None)
                for n in set(optional) - set(columns)
            ),
            parameter("columns", parameter.VAR_KEYWORD),
        ]
    )
    return reward


def each_row_alone(reward: RewardFn) -> RewardFn:
    """Mark a reward as scoring each row alone, so that one call may hold rows of several groups."""
    marked: Any = reward
    marked.row_by_row = True
    return reward


def is_row_by_row(reward: RewardFn) -> bool:
    """Whether a reward is marked as scoring each row alone."""
    return bool(getattr(reward, "row_by_row", False))


def columns_of(reward: RewardFn) -> list[str]:
    """Return the columns that a reward requires: its parameters without a default."""
    return [
        p.name
        for p in inspect.signature(reward).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.default is p.empty
        and p.name not in GIVEN
    ]


def optional_columns(reward: RewardFn) -> list[str]:
    """Return a reward's optional columns: its keyword-only parameters with a default of None."""
    parameters = inspect.signature(reward).parameters.values()
    return [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is None]
