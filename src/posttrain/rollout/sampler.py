"""What generates completions, whatever engine it is: the interface and its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


class EngineError(ValueError):
    """The engine that generates failed: the weights and the last finished step are unharmed."""

    def __init__(self, message: str, refusal: str | None = None) -> None:
        """`refusal`: what the server wrote if it understood and said no (4xx)."""
        super().__init__(message)
        self.refusal = refusal


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn."""

    max_new_tokens: int
    """Longest completion, the stop token included."""
    stop_token_ids: tuple[int, ...]
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together have this probability; 1 keeps all."""
    top_k: int = 0
    """0 keeps the whole vocabulary."""


@dataclass
class Rollout:
    """A completion as it was sampled."""

    prompt_ids: list[int]
    response_ids: list[int]  # with the stop token, if one was sampled
    logprobs: list[float]  # of the distribution each token was drawn from
    finish_reason: Literal["stop", "length"]
    weight_version: int


Finished = Callable[[int, Rollout], None]
"""Callback(index, rollout), called once when a completion finishes."""


class Sampler(Protocol):
    """The seam between training and whatever generates."""

    policy: Any
    """Whose weights it samples from, as they were at the last update_weights."""

    def update_weights(self) -> None:
        """Take over the policy's weights as they are. A collective: all ranks call it at the same
        point."""
        ...

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
    ) -> list[Rollout]:
        """Return one completion per prompt, in their order.

        Row i draws its noise from seeds[i] alone, so it does not depend on the other rows, the
        batch or the rank. Takes part in no collective.
        """
        ...
