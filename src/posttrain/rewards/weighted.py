"""A weighted sum of several rewards, each of which is logged apart.

    sum over the parts that apply of weight * score; None where none applies

which is TRL's nansum with the completions that no reward could score left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, model_validator

from posttrain.rewards.call import Scores, made_from, made_of
from posttrain.rewards.score import Score, verdict_of

if TYPE_CHECKING:
    Part = Any  # set in __init__.py, from the registry


class Weighted(BaseModel, extra="forbid"):
    """Settings of the weighted reward."""

    type: Literal["weighted"] = "weighted"
    rewards: list[Part] = Field(min_length=1)
    """Rewards as they would stand alone, each with `weight` (1.0) and `name` (its type) besides."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Weighted:
        names = [name_of(part) for part in self.rewards]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two parts of the weighted reward are called {name}: give each a name"
                )
        return self


def name_of(part: Any) -> str:
    return str(part.name or part.type)


def build(config: Weighted) -> Callable[..., Any]:
    """The reward function for `config`: the sum, with the parts and the first verdict among them.

    Sync parts run one after another, async ones at the same time.
    """
    from posttrain.rewards import build_reward  # the registry imports this file

    rewards = {name_of(part): build_reward(part) for part in config.rewards}
    weights = {name_of(part): part.weight for part in config.rewards}

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Sequence[list[int]],
        **columns: Any,
    ) -> Any:
        def total(found: dict[str, Scores]) -> Scores:
            return [
                _sum({name: scores[i] for name, scores in found.items()}, weights)
                for i in range(len(completions))
            ]

        return made_from(rewards, prompts, completions, completion_ids, columns, total)

    return made_of(reward, rewards.values())


def _sum(scores: dict[str, float | None], weights: dict[str, float]) -> Score | None:
    known = {name: score for name, score in scores.items() if score is not None}
    if not known:
        return None
    verdicts = [verdict for score in known.values() if (verdict := verdict_of(score)) is not None]
    parts = {name: None if score is None else float(score) for name, score in scores.items()}
    total = sum(weights[name] * score for name, score in known.items())
    return Score(total, verdicts[0] if verdicts else None, parts)
