"""Sampling one sequence at a time by transformers' `generate`, with the model's own cache.

For architectures whose rows cannot share a batch here: state-space models, attention of their own,
rotations that depend on the length. Slow, and right by construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.common.batch import Sequence as TokenSequence
from posttrain.common.batch import pack
from posttrain.model import windows
from posttrain.model.forward import forward
from posttrain.model.language_model import LanguageModel
from posttrain.model.probe import CODE_FAILS, gap, probe_rows
from posttrain.model.quirks import forget_lengths
from posttrain.model.suited import positions
from posttrain.rollout.native.choose import noise_of, sample
from posttrain.rollout.sampler import Rollout, SamplingParams

PROBED = 6
"""Tokens that `agrees` samples."""


def generate_alone(
    policy: LanguageModel, prompt: list[int], params: SamplingParams, seed: int, cached: bool
) -> Rollout:
    """Return the completion of one prompt, with the model's cache or by running all of it again."""
    import transformers

    model: Any = policy.causal_lm()
    device = next(policy.parameters()).device
    noise = noise_of([seed], params, device)
    ids: list[int] = []
    logprobs: list[float] = []

    def draw(input_ids: Tensor, scores: Tensor) -> Tensor:
        """Choose the next token, and leave `generate` no other choice."""
        token, logprob = sample(scores.float(), params, noise[:, len(ids)])
        ids.append(int(token))
        logprobs.append(float(logprob))
        return torch.full_like(scores, -torch.inf).index_fill_(1, token, 0.0)

    inputs = torch.tensor([prompt], device=device)
    config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=params.max_new_tokens,
        eos_token_id=list(params.stop_token_ids) or None,
        pad_token_id=0,
        use_cache=cached,
    )
    with _as_loaded(policy):
        forget_lengths(policy.backbone(), inputs)
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            logits_processor=transformers.LogitsProcessorList([draw]),
        )
    stopped = ids[-1] in params.stop_token_ids
    reason: Literal["stop", "length"] = "stop" if stopped else "length"
    return Rollout(prompt, ids, logprobs, reason, policy.version)


@contextmanager
def _as_loaded(policy: LanguageModel) -> Iterator[None]:
    """Give the model its own attention back, and no settings of generation, inside a with block."""
    import transformers

    model: Any = policy.causal_lm()
    settings, attention = model.generation_config, model.config._attn_implementation
    model.generation_config = transformers.GenerationConfig()
    if policy.own_attention is not None:
        model.set_attn_implementation(policy.own_attention)
    try:
        yield
    finally:
        model.generation_config = settings
        model.set_attn_implementation(attention)


def caches_alone(policy: LanguageModel) -> bool:
    """Return whether the model's own cache gives the log-probs of a forward pass.

    Raises ValueError if sampling does not give them without a cache either."""
    for cached in (True, False):

        def generate(
            prompts: list[list[int]], params: SamplingParams, cached: bool = cached
        ) -> list[Rollout]:
            return [generate_alone(policy, prompt, params, 0, cached) for prompt in prompts]

        if agrees(policy, generate):
            return cached
    raise ValueError(
        f"{type(policy.causal_lm()).__name__} cannot be sampled: transformers' generate gives "
        "other log-probs than a forward pass, with its cache and without it"
    )


def agrees(policy: LanguageModel, generate: Any) -> bool:
    """Return whether `generate`, a way to sample, has the log-probs of a forward pass.

    Greedy completions of the probe's rows, two of which are equal, so that some are copied and
    some cross a short window."""
    config = policy.causal_lm().config
    room = positions(config) - PROBED - 1
    rows = [row.input_ids[: max(1, room)].tolist() for row in probe_rows(config)]
    prompts = [*rows[:2], rows[1], rows[-1]]
    if policy.rope_limit is not None:
        prompts = [row for row in prompts if len(row) + PROBED <= policy.rope_limit]
    params = SamplingParams(max_new_tokens=PROBED, temperature=0.0, stop_token_ids=())
    try:
        with windows.short(policy):
            rollouts = generate(prompts, params)
    except torch.OutOfMemoryError:  # says nothing about the architecture
        raise
    except CODE_FAILS:
        return False  # it reads something of a cache that ours does not have
    texts = [torch.tensor(p + r.response_ids) for p, r in zip(prompts, rollouts)]
    batch = pack([TokenSequence(t, torch.arange(len(t)) >= len(t) - PROBED) for t in texts])
    with windows.short(policy):
        wanted = forward(policy, batch.to(next(policy.parameters()).device)).logprobs.cpu()
    values = [value for rollout in rollouts for value in rollout.logprobs]
    sampled = torch.tensor(values, dtype=torch.float32)  # the default may differ meanwhile
    lengths = [PROBED] * len(texts)
    return gap(policy, sampled, wanted[batch.loss_mask], lengths) <= policy.tolerance
