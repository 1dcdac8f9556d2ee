"""Completions of prompts, rendered with the template that the model was trained with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.common.errors import SettingError
from posttrain.common.seeds import mix
from posttrain.evaluation.loading import as_trained, load_for_sampling
from posttrain.rollout.check import check_at_least, check_sampling
from posttrain.rollout.sampler import SamplingParams


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt. `str(completion)` is its text."""

    prompt: Any
    """The prompt as it was given."""
    text: str
    """The completion without its stop token."""
    finish_reason: Literal["stop", "length"]
    """stop: it ended with a stop token; length: it was cut at max_new_tokens."""
    token_ids: list[int] = field(repr=False)
    """Its tokens, including the stop token."""
    logprobs: list[float] = field(repr=False)
    """Log-prob of each token under the distribution that it was drawn from, in nats."""

    def __str__(self) -> str:
        return self.text


def generate(
    model: str | os.PathLike[str],
    prompts: str | Sequence[Any],
    /,
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    num_samples: int = 1,
    template: str = "auto",
    system_prompt: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    max_num_seqs: int = 256,
    seed: int = 0,
) -> list[Completion]:
    """Return `num_samples` completions of each prompt, in the order of the prompts.

    `model` is a hub name, a folder or a Run; a prompt is a text or a list of messages. By default
    the template, the system prompt and the quantisation (`model.quantization`, by name) are those
    of the model's training. Raises ValueError for a
    model that generates no text, and SettingError for a setting out of range or if a prompt and
    `max_new_tokens` together are longer than the model takes.
    """
    check_sampling(max_new_tokens, temperature, top_p, top_k)
    check_at_least(1, num_samples=num_samples, max_num_seqs=max_num_seqs)
    inputs = [prompts] if isinstance(prompts, str) else list(prompts)
    name = os.fspath(model)
    template, system_prompt = as_trained(name, template, system_prompt)
    renderer, sampler, limit = load_for_sampling(
        name, template, device, dtype, system_prompt, max_num_seqs, quantization
    )
    ids = [renderer.prompt_ids({"prompt": p}) for p in inputs for _ in range(num_samples)]
    longest = max(map(len, ids), default=0)
    if longest + max_new_tokens > limit:
        raise SettingError(
            "max_new_tokens",
            f"{max_new_tokens} after a prompt of {longest} tokens is more than the {limit} tokens "
            "that the model takes",
        )
    params = SamplingParams(max_new_tokens, renderer.stop_token_ids, temperature, top_p, top_k)
    rollouts = sampler.generate(ids, params, [mix(seed, i) for i in range(len(ids))])
    return [
        Completion(
            inputs[i // num_samples],
            renderer.decode(rollout.response_ids),
            rollout.finish_reason,
            rollout.response_ids,
            rollout.logprobs,
        )
        for i, rollout in enumerate(rollouts)
    ]
