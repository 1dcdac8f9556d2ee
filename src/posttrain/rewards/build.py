"""Builds a reward function from a reward section, and checks the data for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import SerializeAsAny

from posttrain.common.registry import look_up
from posttrain.config.base import ByType
from posttrain.rewards import REWARDS
from posttrain.rewards.base import Reward, RewardConfig, RewardFn, columns_of
from posttrain.rewards.checks import Checked, RowFault


def reward_named(name: str) -> Reward:
    """Return the entry of REWARDS; raise ValueError with the nearest name if there is none."""
    entry: Reward = look_up(REWARDS, name, f"no reward {name!r}")
    return entry


def config_of(name: str) -> type[RewardConfig]:
    """Return the settings class of a reward."""
    return reward_named(name).config


RewardSection = Annotated[SerializeAsAny[RewardConfig], ByType(REWARDS, config_of)]
"""The type of a key that holds any reward."""


def build_reward(config: RewardConfig) -> RewardFn:
    """Return the reward function for the settings."""
    return reward_named(config.type).build(config)


def check_columns(
    reward: RewardFn,
    rows: Sequence[dict[str, Any]],
    source: str | Sequence[str],
    fix: str = "map it with data.columns",
) -> None:
    """Raise ValueError for the first row that lacks a required column or cannot be judged.

    `source` names the rows, or the place of each one, and `fix` says how to supply a column.
    """
    needed = columns_of(reward)
    for index, row in enumerate(rows):
        for column in needed:
            if column not in row:
                raise ValueError(
                    f"{_place(source, index)}: the reward needs the column {column}; found "
                    f"{', '.join(row)} ({fix})"
                )
    if isinstance(reward, Checked):
        try:
            reward.check_rows(rows)
        except RowFault as fault:
            raise ValueError(f"{_place(source, fault.index)}: {fault}") from None


def _place(source: str | Sequence[str], index: int) -> str:
    return f"{source}, row {index + 1}" if isinstance(source, str) else source[index]
