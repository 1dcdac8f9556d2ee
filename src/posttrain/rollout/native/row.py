"""A completion on its way through the engine, and the log-probs of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from posttrain.rollout.native.prefill import Seen
from posttrain.rollout.sampler import Rollout, SamplingParams

POSITIONS = 256  # positions of a prompt whose logits exist at once

Alternative = tuple[int, float]
"""A token and its log-prob."""


@dataclass(eq=False)
class Row:
    """A completion: what is asked for, and what has been sampled of it."""

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    adapter: str | None = None
    """One of the policy's `adapters`; None is the policy itself."""
    top: int = 0
    """How many of the likeliest tokens are noted with each token."""
    scored: bool = False
    """Whether log-probs of the prompt are noted."""
    response_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[Alternative]] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    """Of the prompt's tokens from the second on, at temperature 1."""
    prompt_tops: list[list[Alternative]] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "cancelled"] | None = None
    """None until it has finished."""

    def __post_init__(self) -> None:
        self.stops = frozenset(self.params.stop_token_ids)

    @property
    def ids(self) -> list[int]:
        """The prompt and what has been sampled."""
        return self.prompt_ids + self.response_ids

    def note(self, ids: list[int], logprobs: list[float]) -> int:
        """Append tokens up to the completion's end, and return how many these are."""
        left = self.params.max_new_tokens - len(self.response_ids)
        end = next((n for n, token in enumerate(ids[:left], 1) if token in self.stops), None)
        if end is not None or len(ids) >= left:
            self.finish_reason = "length" if end is None else "stop"
        taken = end or min(len(ids), left)
        self.response_ids += ids[:taken]
        self.logprobs += logprobs[:taken]
        return taken

    def rollout(self, version: int) -> Rollout:
        """Return the finished completion."""
        assert self.finish_reason in ("stop", "length"), "the completion has not finished"
        return Rollout(
            self.prompt_ids, self.response_ids, self.logprobs, self.finish_reason, version
        )


def scoring(rows: list[Row], logits: Callable[[Tensor], Tensor]) -> Seen | None:
    """Return what notes log-probs of the prompts that rows want scored; None if none does."""
    wanted: dict[Hashable, list[Row]] = {}
    for row in rows:
        group = wanted.setdefault((row.adapter, tuple(row.ids)), [])
        if row.scored and not row.response_ids:
            group.append(row)
    groups = list(wanted.values())
    if not any(groups):
        return None

    def seen(number: int, states: Tensor) -> None:
        if not (group := groups[number]):
            return
        targets = torch.tensor(group[0].prompt_ids[1:], device=states.device)
        top = max(row.top for row in group)
        values: list[float] = []
        tops: list[list[Alternative]] = []
        for part, ids in zip(states[:-1].split(POSITIONS), targets.split(POSITIONS)):
            logprobs = logits(part).log_softmax(-1)
            values += logprobs.gather(1, ids[:, None])[:, 0].tolist()
            tops += alternatives(*logprobs.topk(top))
        for row in group:
            row.prompt_logprobs = values
            row.prompt_tops = [best[: row.top] for best in tops]

    return seen


def alternatives(logprobs: Tensor, tokens: Tensor) -> list[list[Alternative]]:
    """Return tokens [B, K] with their log-probs, the likeliest first."""
    return [list(zip(*pair)) for pair in zip(tokens.tolist(), logprobs.tolist())]
