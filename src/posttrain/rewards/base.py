"""What a reward is: its settings, its function, and the columns that it reads.

A reward is a plain function

    reward(prompts, completions, completion_ids, **columns) -> list[float | None]

of lists with one entry per completion; `columns` are the data row's other columns. None means
"not applicable". An entry may be a `Score`, a float that carries a verdict to be counted. The
function may be `async`.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import AfterValidator

from posttrain.config.base import StrictConfig

RewardFn = Callable[..., Any]
"""reward(prompts, completions, completion_ids, **columns) -> list[float | None], sync or async."""

Scores = list[float | None]

GIVEN = ("prompts", "completions", "completion_ids")
RESERVED = ("prompt", "completion", "messages")  # columns that a reward gets as GIVEN


class RewardConfig(StrictConfig, allow_inf_nan=False):
    """A reward section; `type` names an entry of REWARDS."""

    type: str
    """The reward."""


@dataclass(frozen=True)
class Reward:
    """An entry of REWARDS."""

    config: type[RewardConfig]
    build: Callable[[Any], RewardFn]
    """Returns the reward function for the settings; raises ValueError if they cannot be met."""


class RewardFailure(ValueError):
    """A failure whose message says all there is to say; rows are not tried again one by one."""


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
