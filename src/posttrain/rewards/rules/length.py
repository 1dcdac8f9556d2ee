"""Rewards that depend on length: a penalty for overlong completions, or a scale on correctness.

A length is a number of completion tokens, the stop token included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, model_validator

from posttrain.config.base import ByType
from posttrain.rewards import REWARDS
from posttrain.rewards.base import Reward, RewardConfig, RewardFailure, Scores, each_row_alone
from posttrain.rewards.build import build_reward, config_of
from posttrain.rewards.score import Score, is_correct, verdict_of
from posttrain.rewards.scoring import combine_scores, delegate

INNER = {name: entry for name, entry in REWARDS.items() if name not in ("length", "weighted")}


class Length(RewardConfig):
    """Settings of the length reward. `kind` decides which keys after `max_length` apply."""

    type: Literal["length"] = "length"
    kind: Literal["penalty", "cosine"]
    """penalty: a penalty for overlong completions; cosine: a scale on correctness."""
    max_length: int = Field(ge=1)
    """Maximum length L_max, in tokens."""
    cache_length: int | None = Field(None, ge=0)
    """penalty: L_cache, the number of tokens below L_max over which the penalty grows."""
    reward: Annotated[SerializeAsAny[RewardConfig], ByType(INNER, config_of)] | None = None
    """cosine: the reward that decides whether a completion is correct."""
    correct: tuple[float, float] | None = None
    """cosine: scores of a correct completion at length 0 and at max_length; by default [1.0, 0.5].
    """
    wrong: tuple[float, float] | None = None
    """cosine: the same for a wrong completion; by default [-1.0, -0.5], which favours long wrong
    answers over short ones."""
    overlong: float | None = None
    """cosine: score at max_length and beyond, correct or not; by default that of `correct` or
    `wrong` at max_length."""

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> Length:
        keys = {"penalty": ("cache_length",), "cosine": ("reward", "correct", "wrong", "overlong")}
        other = "cosine" if self.kind == "penalty" else "penalty"
        for key in keys[other]:
            if getattr(self, key) is not None:
                raise ValueError(f"{key} is a key of kind: {other}, not of kind: {self.kind}")
        needed = keys[self.kind][0]
        if getattr(self, needed) is None:
            raise ValueError(f"a length reward of kind: {self.kind} needs {needed}")
        if self.cache_length is not None and self.cache_length > self.max_length:
            raise ValueError(
                f"cache_length {self.cache_length} is more than max_length {self.max_length}"
            )
        if self.kind == "cosine":
            self.correct = self.correct or (1.0, 0.5)
            self.wrong = self.wrong or (-1.0, -0.5)
        return self


def soft_overlong(length: int, max_length: int, cache_length: int) -> float:
    """Return DAPO's soft overlong punishment (Yu et al. 2025, arXiv 2503.14476, eq. 13).

    0                                     length <= L_max - L_cache
    ((L_max - L_cache) - length) / L_cache    in between
    -1                                    L_max < length
    """
    free = max_length - cache_length
    if length <= free:
        return 0.0
    return -1.0 if length > max_length else (free - length) / cache_length


def cosine(length: int, max_length: int, first: float, last: float) -> float:
    """Return the score on half a cosine from `first` at length 0 to `last` at max_length.

    It stays at `last` beyond (Yeo et al. 2025, arXiv 2502.03373, app. C.1).

        last + (first - last) / 2 * (1 + cos(pi * length / max_length))
    """
    progress = min(length / max_length, 1.0)  # beyond it the cosine would turn back
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress))


def lengths_of(completions: Sequence[str], completion_ids: Sequence[list[int]]) -> list[int]:
    """Return each completion's length in tokens; raise RewardFailure if only a text is known."""
    for i, (text, ids) in enumerate(zip(completions, completion_ids, strict=True)):
        if text and not ids:
            raise RewardFailure(
                f"row {i + 1} has text but no token ids, and this reward counts tokens: it works "
                "in training and evaluation, not in posttrain score"
            )
    return [len(ids) for ids in completion_ids]


def build(config: Length) -> Callable[..., list[float | None]]:
    """Return the reward function; cosine keeps the verdicts and Nones of its inner reward."""
    return _penalty(config) if config.kind == "penalty" else _cosine(config)


def _penalty(config: Length) -> Callable[..., list[float | None]]:
    cache_length = config.cache_length
    assert cache_length is not None

    @each_row_alone
    def reward(
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Sequence[list[int]],
        **columns: Any,
    ) -> list[float | None]:
        lengths = lengths_of(completions, completion_ids)
        return [soft_overlong(length, config.max_length, cache_length) for length in lengths]

    return reward


def _cosine(config: Length) -> Callable[..., Any]:
    assert config.reward is not None
    inner = build_reward(config.reward)
    name = config.reward.type
    assert config.correct is not None
    assert config.wrong is not None
    bounds = {True: config.correct, False: config.wrong}

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Sequence[list[int]],
        **columns: Any,
    ) -> Any:
        lengths = lengths_of(completions, completion_ids)

        def scale(scores: dict[str, Scores]) -> Scores:
            return [scaled(score, length) for score, length in zip(scores[name], lengths)]

        return combine_scores({name: inner}, prompts, completions, completion_ids, columns, scale)

    def scaled(score: float | None, length: int) -> Score | None:
        if score is None:
            return None
        value = cosine(length, config.max_length, *bounds[is_correct(score)])
        if config.overlong is not None and length >= config.max_length:
            value = config.overlong
        return Score(value, verdict_of(score))

    return delegate(reward, [inner])


REWARD = Reward(Length, build)
