"""The native sampler: batched, KV-cached, token ids in and out.

Prompts are prefilled as one packed row, each distinct prompt once, and their keys and values are
shared out to the completions. The cache is right-aligned, so that every row writes its new token
into the same column. Finished rows leave the batch; waiting ones never pad it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from posttrain.attention import Decode, Packed
from posttrain.batch import Sequence as TokenSequence
from posttrain.batch import pack
from posttrain.forward import LanguageModel

COMPACT_BELOW = 0.8  # share of rows still running at which the cache is copied without the others


@dataclass(frozen=True)
class SamplingParams:
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""


@dataclass
class Rollout:
    prompt_ids: list[int]
    response_ids: list[int]  # with the stop token, where one was sampled
    logprobs: list[float]  # of the distribution each token was drawn from
    finish_reason: Literal["stop", "length"]
    weight_version: int


class Sampler(Protocol):
    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Rollout]:
        """One completion per prompt. Row i draws its noise from seeds[i] alone, so it does not
        depend on the other rows, the batch or the rank."""
        ...

    def update_weights(self, policy: nn.Module) -> None: ...


class NativeSampler:
    """Samples from the policy in place: the weights that train are the weights that sample."""

    def __init__(self, policy: LanguageModel, max_num_seqs: int) -> None:
        self.policy = policy
        self.max_num_seqs = max_num_seqs

    def update_weights(self, policy: nn.Module) -> None:
        assert policy is self.policy, "a sharded policy needs a GatheredSampler"

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
    ) -> list[Rollout]:
        if not all(prompts):
            raise ValueError("a prompt is empty")
        # neighbours of like length waste few columns of the cache; equal prompts stay together
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
        rollouts: dict[int, Rollout] = {}
        was_training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad(), self.policy.precision():
                for start in range(0, len(order), self.max_num_seqs):
                    chunk = order[start : start + self.max_num_seqs]
                    done = _generate(
                        self.policy, [prompts[i] for i in chunk], params, [seeds[i] for i in chunk]
                    )
                    rollouts.update(zip(chunk, done))
        finally:
            self.policy.train(was_training)
        return [rollouts[i] for i in range(len(prompts))]


class KVCache:
    """Keys and values of every layer, [B, H_kv, columns, D], with room for the whole completion.

    Has the methods that transformers' models call on a cache: `update` and `get_seq_length`.
    """

    def __init__(self) -> None:
        self.prefilled: dict[int, tuple[Tensor, Tensor]] = {}  # [1, H_kv, T, D], packed
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.columns = 0  # columns in use, that of the current token included; 0 during prefill

    def update(
        self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.columns == 0:
            self.prefilled[layer] = key, value
            return key, value
        keys, values = self.layers[layer]
        keys[:, :, self.columns - 1 : self.columns] = key
        values[:, :, self.columns - 1 : self.columns] = value
        return keys[:, :, : self.columns], values[:, :, : self.columns]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.columns

    def share_out(self, source: Tensor, room: int) -> None:
        """Lay prefilled columns out by row. source [B, P]: the packed position of each column."""
        rows, width = source.shape
        for layer, (key, value) in self.prefilled.items():
            spread = []
            for packed in (key[0], value[0]):  # [H_kv, T, D]
                laid_out = packed.new_zeros(rows, packed.shape[0], width + room, packed.shape[2])
                laid_out[:, :, :width] = packed[:, source].transpose(0, 1)
                spread.append(laid_out)
            self.layers[layer] = spread[0], spread[1]
        self.prefilled.clear()
        self.columns = width

    def keep(self, rows: Tensor, first_column: int) -> None:
        """Drop the other rows and the columns before `first_column`, which nobody reads."""
        for layer, (key, value) in self.layers.items():
            self.layers[layer] = (
                key[rows, :, first_column:].contiguous(),
                value[rows, :, first_column:].contiguous(),
            )
        self.columns -= first_column


def _generate(
    policy: LanguageModel, prompts: list[list[int]], params: SamplingParams, seeds: list[int]
) -> list[Rollout]:
    device = next(policy.parameters()).device
    rollouts = [Rollout(prompt, [], [], "length", policy.version) for prompt in prompts]
    noise = _noise(seeds, params, device)  # [B, max_new_tokens]
    stops = torch.tensor(params.stop_token_ids, device=device)

    hidden, cache, starts = _prefill(policy, prompts, params.max_new_tokens, device)
    running = torch.arange(len(prompts), device=device)  # rollout of each row of the cache
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    tokens, logprobs = _sample(policy.logits(hidden), params, noise[:, 0])
    history = [(running, tokens, logprobs)]
    alive = ~torch.isin(tokens, stops)
    for step in range(1, params.max_new_tokens):
        num_alive = int(alive.sum())
        if num_alive == 0:
            break
        if num_alive < COMPACT_BELOW * len(running):
            rows = alive.nonzero()[:, 0]
            first = int(starts[rows].min())
            cache.keep(rows, first)
            running, tokens, alive = running[rows], tokens[rows], alive[rows]
            lengths, starts = lengths[rows], starts[rows] - first
        cache.columns += 1
        columns = torch.arange(cache.columns, device=device)
        mask = torch.where(columns >= starts[:, None], 0.0, -torch.inf)[:, None, None]
        positions = (lengths + step - 1)[:, None]
        layout = Decode(mask.to(hidden.dtype))
        hidden = policy.hidden_states(tokens[:, None], positions, layout, cache)[:, 0]
        tokens, logprobs = _sample(policy.logits(hidden), params, noise[running, step])
        history.append((running, tokens, logprobs))
        alive = alive & ~torch.isin(tokens, stops)
    _collect(rollouts, history, set(params.stop_token_ids))
    return rollouts


def _prefill(
    policy: LanguageModel, prompts: list[list[int]], room: int, device: torch.device
) -> tuple[Tensor, KVCache, Tensor]:
    """Last hidden state [B, width] of each prompt, the cache, and each row's first column [B]."""
    distinct = list(dict.fromkeys(tuple(p) for p in prompts))
    index = {p: i for i, p in enumerate(distinct)}
    batch = pack([_no_mask(list(p)) for p in distinct]).to(device)
    cache = KVCache()
    layout = Packed(batch.lengths, batch.cu_seqlens)
    states = policy.hidden_states(batch.input_ids[None], batch.position_ids[None], layout, cache)[0]
    rows = torch.tensor([index[tuple(p)] for p in prompts], device=device)
    ends = batch.cu_seqlens[1:].long()[rows]  # [B], one past the prompt's last packed position
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    width = int(lengths.max())
    # columns before a short prompt repeat its first token; the mask hides them
    columns = ends[:, None] - width + torch.arange(width, device=device)
    source = torch.maximum(columns, (ends - lengths)[:, None])
    cache.share_out(source, room)
    return states[ends - 1], cache, width - lengths


def _no_mask(ids: list[int]) -> TokenSequence:
    return TokenSequence(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool))


def _noise(seeds: list[int], params: SamplingParams, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), [B, max_new_tokens], row i from its own seed."""
    if params.temperature == 0:
        return torch.zeros(len(seeds), params.max_new_tokens, device=device)
    rows = [
        torch.rand(params.max_new_tokens, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(rows).to(device)


def _sample(logits: Tensor, params: SamplingParams, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probs [B] from logits [B, vocab], by inverting the cdf at noise."""
    if params.temperature == 0:
        best = logits.argmax(-1)
        return best, logits.log_softmax(-1).gather(1, best[:, None])[:, 0]
    logprobs = (logits / params.temperature).log_softmax(-1)
    if params.top_k or params.top_p < 1:
        logprobs = _truncate(logprobs, params).log_softmax(-1)
    cdf = logprobs.exp().cumsum(-1)
    # scaled by the sum, which rounding leaves near 1, so that a tail token is never picked by error
    point = noise[:, None] * cdf[:, -1:]
    token = torch.searchsorted(cdf, point, right=True).clamp_(max=logits.shape[1] - 1)
    return token[:, 0], logprobs.gather(1, token)[:, 0]


def _truncate(logprobs: Tensor, params: SamplingParams) -> Tensor:
    """Keep the top_k likeliest tokens, then the fewest of them that hold top_p of the mass."""
    ordered, index = logprobs.sort(dim=-1, descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if params.top_k:
        keep[:, params.top_k :] = False
    if params.top_p < 1:
        mass = torch.where(keep, ordered.exp(), 0.0)
        before = mass.cumsum(-1) - mass
        keep &= before < params.top_p * mass.sum(-1, keepdim=True)
    ordered = torch.where(keep, ordered, -torch.inf)
    return torch.empty_like(logprobs).scatter_(1, index, ordered)


def _collect(
    rollouts: list[Rollout], history: list[tuple[Tensor, Tensor, Tensor]], stops: set[int]
) -> None:
    """History holds, per step, the rollout of each row, its token and its log-prob. Rows that
    have stopped may stay in the batch for some steps: what they say then does not count."""
    for running, tokens, logprobs in history:
        for i, token, logprob in zip(running.tolist(), tokens.tolist(), logprobs.tolist()):
            rollout = rollouts[i]
            if rollout.finish_reason == "stop":
                continue
            rollout.response_ids.append(token)
            rollout.logprobs.append(logprob)
            if token in stops:
                rollout.finish_reason = "stop"
