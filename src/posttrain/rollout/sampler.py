"""The interface of everything that generates completions, and the types it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


class EngineError(ValueError):
    """The inference engine failed; the weights and the last finished step are not affected."""

    def __init__(self, message: str, refusal: str | None = None) -> None:
        """Take as `refusal` the body of a server's answer of status 4xx."""
        super().__init__(message)
        self.refusal = refusal


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn."""

    max_new_tokens: int
    """Maximum completion length in tokens, including the stop token."""
    stop_token_ids: tuple[int, ...]
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together have this probability; 1 keeps all."""
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the likeliest one's probability; 0 keeps all."""


@dataclass
class Rollout:
    """A completion as it was sampled."""

    prompt_ids: list[int]
    response_ids: list[int]  # including the stop token, if one was sampled
    logprobs: list[float]  # of the distribution each token was drawn from
    finish_reason: Literal["stop", "length"]
    weight_version: int


Finished = Callable[[int, Rollout], None]
"""Callback(index, rollout), called once when a completion finishes."""


class Sampler(Protocol):
    """The interface between training and the engine that generates."""

    policy: Any
    """The policy to sample from, with the weights that it had at the last update_weights."""

    def update_weights(self) -> None:
        """Take over the policy's current weights. A collective: all ranks call it together."""
        ...

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
    ) -> list[Rollout]:
        """Return one completion per prompt, in their order.

        Completion i draws its noise from seeds[i] alone, so that up to rounding it does not depend
        on the other prompts, the batch or the rank. Takes part in no collective.
        """
        ...
