"""A weighted sum of several rewards, each of which is also logged separately.

    sum of weight * score over the parts whose score is not None; None if every score is None

This is TRL's nansum, with the completions that no reward could score left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Field, SerializeAsAny, create_model, model_validator

from posttrain.config.base import ByType
from posttrain.rewards import REWARDS
from posttrain.rewards.base import Reward, RewardConfig, Scores
from posttrain.rewards.build import build_reward, config_of
from posttrain.rewards.score import Score, verdict_of
from posttrain.rewards.scoring import combine_scores, delegate


class PartConfig(RewardConfig):
    """The keys that a part of a weighted reward has in addition to its own."""

    weight: float = 1.0
    """Factor of the part's score."""
    name: str | None = Field(None, pattern=r"^[\w.-]+$")
    """Name in the log; by default the part's type."""


PARTS = {name: entry for name, entry in REWARDS.items() if name != "weighted"}


@functools.cache
def part_config(name: str) -> type[PartConfig]:
    """Return a reward's settings class with the keys of a part added: weight and name."""
    config = config_of(name)
    bases: Any = (config, PartConfig)
    return cast("type[PartConfig]", create_model(config.__name__, __base__=bases))


Part = Annotated[SerializeAsAny[PartConfig], ByType(PARTS, part_config)]


class Weighted(RewardConfig):
    """Settings of the weighted reward."""

    type: Literal["weighted"] = "weighted"
    rewards: list[Part] = Field(min_length=1)
    """Reward sections, each also with `weight` (1.0) and `name` (by default its type)."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Weighted:
        names = [name_of(part) for part in self.rewards]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two parts of the weighted reward are called {name}: give each its own name"
                )
        return self


def name_of(part: PartConfig) -> str:
    """Return the name under which a part is logged."""
    return str(part.name or part.type)


def build(config: Weighted) -> Callable[..., Any]:
    """Return the reward function: the sum, with the scores of the parts and their first verdict.

    Sync parts run one after another, async parts concurrently.
    """
    rewards = {name_of(part): build_reward(part) for part in config.rewards}
    weights = {name_of(part): part.weight for part in config.rewards}

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Sequence[list[int]],
        **columns: Any,
    ) -> Any:
        def total(scores: dict[str, Scores]) -> Scores:
            return [
                _sum({name: of_part[i] for name, of_part in scores.items()}, weights)
                for i in range(len(completions))
            ]

        return combine_scores(rewards, prompts, completions, completion_ids, columns, total)

    return delegate(reward, rewards.values())


def _sum(scores: dict[str, float | None], weights: dict[str, float]) -> Score | None:
    known = {name: score for name, score in scores.items() if score is not None}
    if not known:
        return None
    verdicts = [verdict for score in known.values() if (verdict := verdict_of(score)) is not None]
    parts = {name: None if score is None else float(score) for name, score in scores.items()}
    total = sum(weights[name] * score for name, score in known.items())
    return Score(total, verdicts[0] if verdicts else None, parts)


REWARD = Reward(Weighted, build)
