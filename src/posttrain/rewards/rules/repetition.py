"""A penalty for repeated n-grams of tokens (Yeo et al. 2025, arXiv 2502.03373, app. C.2).

    max_penalty * (1 - unique n-grams / all n-grams)

A completion shorter than one n-gram repeats nothing and scores 0. The paper itself uses n-grams of
40 tokens and penalises each repeated token; the share of all n-grams is TRL's definition.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

from pydantic import Field

from posttrain.rewards.base import Reward, RewardConfig, each_row_alone
from posttrain.rewards.rules.length import lengths_of


class Repetition(RewardConfig):
    """Settings of the repetition reward."""

    type: Literal["repetition"] = "repetition"
    ngram_size: int = Field(3, ge=1)
    """Tokens in an n-gram."""
    max_penalty: float = Field(-1.0, le=0)
    """Limit of the score as a completion only repeats itself."""


def repeated_share(ids: Sequence[Hashable], ngram_size: int) -> float:
    """Return the share of a sequence's n-grams that occurred earlier in it, in [0, 1)."""
    ngrams = [tuple(ids[i : i + ngram_size]) for i in range(len(ids) - ngram_size + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def build(config: Repetition) -> Callable[..., list[float | None]]:
    """Return the reward function, whose scores lie between `max_penalty` and 0."""

    @each_row_alone
    def reward(
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Sequence[list[int]],
        **columns: Any,
    ) -> list[float | None]:
        lengths_of(completions, completion_ids)
        return [
            config.max_penalty * repeated_share(ids, config.ngram_size) for ids in completion_ids
        ]

    return reward


REWARD = Reward(Repetition, build)
