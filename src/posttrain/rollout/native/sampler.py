"""The native sampler: continuous batching with a KV cache, token ids in and out.

Finished completions leave the batch and waiting ones enter in their place. Prompts are prefilled
packed, each distinct prompt once, and its keys and values are copied to all its completions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from posttrain.common.batch import Sequence as TokenSequence
from posttrain.common.batch import pack
from posttrain.model.attention import Packed
from posttrain.model.language_model import LanguageModel
from posttrain.model.vocabulary import check_ids
from posttrain.rollout.native.alone import agrees, caches_alone, generate_alone
from posttrain.rollout.native.cache import KVCache, Prefill
from posttrain.rollout.native.choose import noise_of, sample
from posttrain.rollout.native.decode import decode_step
from posttrain.rollout.sampler import Finished, Rollout, SamplingParams

log = logging.getLogger(__name__)

COMPACT_BELOW = 0.8  # share of running rows below which rows leave and enter the cache
ROWS = 8  # on a CPU, compaction keeps a multiple of this many rows
GROW_BY = 128  # columns that the cache gains when it is full
PREFILL_TOKENS = 16384  # prompt tokens in one forward pass


class NativeSampler:
    """A sampler that uses the policy's own weights, without a copy."""

    def __init__(self, policy: LanguageModel, max_num_seqs: int) -> None:
        self.policy = policy
        self.max_num_seqs = max_num_seqs
        self.batched: bool | None = None
        """Whether completions share a cache; found out before the first ones are sampled."""
        self.cached = True
        """Whether a completion that is sampled on its own uses the model's cache."""

    def update_weights(self) -> None:
        """Do nothing: the weights that train are the weights that sample."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
    ) -> list[Rollout]:
        """Return one completion per prompt; raise ValueError if a prompt is empty."""
        if not all(prompts):
            raise ValueError("a prompt is empty")
        check_ids(self.policy.causal_lm(), max(map(max, prompts), default=0))
        was_training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad(), self.policy.precision():
                return self._generate(prompts, params, seeds, finished)
        finally:
            self.policy.train(was_training)

    def _generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished,
    ) -> list[Rollout]:
        policy, limit = self.policy, params.max_new_tokens
        if self.batched is None:
            self.batched = policy.unpacked is None and agrees(policy, self._greedy)
            if not self.batched:
                self.cached = caches_alone(policy)
                name = type(policy.causal_lm()).__name__
                log.warning("%s samples one completion at a time: slowly", name)
        rollouts: dict[int, Rollout] = {}
        for i, prompt in enumerate(prompts):
            if not (self.batched and policy.packs([len(prompt) + limit])):
                rollouts[i] = self._alone(prompt, params, seeds[i])
                finished(i, rollouts[i])
        rest = [i for i in range(len(prompts)) if i not in rollouts]
        together = _generate(
            policy,
            [prompts[i] for i in rest],
            params,
            [seeds[i] for i in rest],
            self.max_num_seqs,
            lambda place, rollout: finished(rest[place], rollout),
        )
        rollouts |= dict(zip(rest, together))
        return [rollouts[i] for i in range(len(prompts))]

    def _alone(self, prompt: list[int], params: SamplingParams, seed: int = 0) -> Rollout:
        return generate_alone(self.policy, prompt, params, seed, self.cached)

    def _greedy(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[Rollout]:
        return _generate(
            self.policy, prompts, params, [0] * len(prompts), self.max_num_seqs, lambda *_: None
        )


@dataclass
class Running:
    """The state of the cache's rows, one completion each.

    A finished completion may keep its row for a while; what is sampled after its end is dropped."""

    index: Tensor  # [B] of the completion
    tokens: Tensor  # [B] the newest token, not in the cache yet
    ages: Tensor  # [B] number of tokens sampled so far
    spans: Tensor  # [B] columns of the cache that are the row's own
    alive: Tensor  # [B] bool, False once the completion has finished
    noise: Tensor  # [B, max_new_tokens]

    @classmethod
    def empty(cls, limit: int, device: torch.device) -> Running:
        """Return a state without rows."""
        none = torch.empty(0, dtype=torch.int64, device=device)
        noise = torch.empty(0, limit, dtype=torch.float32, device=device)
        return cls(none, none, none, none, none.bool(), noise)

    def select(self, rows: Tensor) -> Running:
        """Return the state of these rows."""
        return Running(*(getattr(self, f.name)[rows] for f in fields(self)))

    def concat(self, new: Running) -> Running:
        """Return the state with the rows of another below."""
        pairs = ((getattr(self, f.name), getattr(new, f.name)) for f in fields(self))
        return Running(*(torch.cat(pair) for pair in pairs))


@dataclass
class Segment:
    """The tokens of successive steps with the same rows."""

    index: Tensor  # [B] of the completions
    tokens: list[Tensor]  # [B] for each step
    logprobs: list[Tensor]  # [B] for each step


def _generate(
    policy: LanguageModel,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    max_num_seqs: int,
    finished: Finished,
) -> list[Rollout]:
    device = next(policy.parameters()).device
    limit, stops = params.max_new_tokens, torch.tensor(params.stop_token_ids, device=device)
    longest = max(map(len, prompts), default=0) + limit
    step, logits = decode_step(policy, longest), policy.sampling_head()
    waiting = _groups(prompts, max_num_seqs)
    running, cache, mask = Running.empty(limit, device), KVCache(), torch.empty(0)
    rollouts = [Rollout(list(prompt), [], [], "length", policy.version) for prompt in prompts]
    segment = Segment(running.index, [], [])
    while True:
        rows = running.alive.nonzero()[:, 0]
        entering = _next(waiting, len(rows), max_num_seqs)
        if len(rows) == 0 and not entering:
            break
        kept = rows if entering else _with_finished(rows, running.alive)
        num_leaving = len(running.index) - len(kept)
        compact = num_leaving > 0 and len(kept) < COMPACT_BELOW * len(running.index)
        if entering or compact or cache.columns == cache.capacity:
            _add_segment(rollouts, segment, params, finished)
            running = running.select(kept)
            span = int(running.spans.max()) if len(kept) else 0
            prefill, source, hidden = _prefill(policy, [prompts[i] for i in entering], device)
            cache.lay_out(kept, span, prefill, source, room=min(GROW_BY, limit))
            if entering:
                noise = noise_of([seeds[i] for i in entering], params, device)
                tokens, logprobs = sample(logits(hidden), params, noise[:, 0])
                index = torch.tensor(entering, device=device)
                spans = torch.tensor([len(prompts[i]) for i in entering], device=device)
                alive = ~torch.isin(tokens, stops) & (limit > 1)
                new = Running(index, tokens, torch.ones_like(index), spans, alive, noise)
                running = running.concat(new)
                _add_segment(rollouts, Segment(index, [tokens], [logprobs]), params, finished)
            mask = cache.mask(running.spans)
            segment = Segment(running.index, [], [])
            continue  # a completion may have finished with its first token
        for _ in range(min(steps_between_looks(device), cache.capacity - cache.columns)):
            cache.columns += 1
            # clamped, since finished rows may go beyond their last position
            hidden = step(running.tokens, running.spans.clamp(max=longest - 1), cache, mask)
            noise = running.noise.gather(1, running.ages.clamp(max=limit - 1)[:, None])[:, 0]
            tokens, logprobs = sample(logits(hidden), params, noise)
            segment.tokens.append(tokens)
            segment.logprobs.append(logprobs)
            running.tokens = tokens
            running.ages, running.spans = running.ages + 1, running.spans + 1
            running.alive &= ~torch.isin(tokens, stops) & (running.ages < limit)
    _add_segment(rollouts, segment, params, finished)
    return rollouts


def steps_between_looks(device: torch.device) -> int:
    """Return the steps between looks at what has finished; each makes the host wait for a GPU."""
    return 1 if device.type == "cpu" else 16


def _with_finished(rows: Tensor, alive: Tensor) -> Tensor:
    """Return the running rows, padded with finished ones to a multiple of ROWS on a CPU.

    There a matrix product of a known shape needs no new kernel."""
    if alive.device.type != "cpu":
        return rows
    return torch.cat([rows, (~alive).nonzero()[: -len(rows) % ROWS, 0]])


def _groups(prompts: Sequence[list[int]], max_num_seqs: int) -> list[list[int]]:
    """Return the indices of equal prompts in groups, since they are prefilled once.

    The last group enters first. Neighbours have similar lengths, which wastes few columns of the
    cache; long prompts enter first.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
    groups: list[list[int]] = []
    for i in order:
        if groups and prompts[groups[-1][0]] == prompts[i] and len(groups[-1]) < max_num_seqs:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _next(waiting: list[list[int]], num_running: int, max_num_seqs: int) -> list[int]:
    """Remove and return the prompts that enter now: none until a good share of the rows is free."""
    if num_running > COMPACT_BELOW * max_num_seqs:
        return []
    entering: list[int] = []
    while waiting and num_running + len(entering) + len(waiting[-1]) <= max_num_seqs:
        entering += waiting.pop()
    return entering


def _prefill(
    policy: LanguageModel, prompts: list[list[int]], device: torch.device
) -> tuple[Prefill, Tensor, Tensor]:
    """Return the prompts' keys and values, their columns' packed positions, and last states.

    Positions are [B, P], last hidden states [B, width]."""
    prefill, states = Prefill(), []
    if not prompts:
        return prefill, torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0)
    distinct = [list(p) for p in dict.fromkeys(tuple(p) for p in prompts)]
    packed = pack([_no_mask(p) for p in distinct])
    for batch in packed.split(PREFILL_TOKENS):
        batch = batch.to(device)
        layout = Packed(batch.lengths, batch.cu_seqlens)
        ids, positions = batch.input_ids[None], batch.position_ids[None]
        hidden = policy.hidden_states(ids, positions, layout, prefill)[0]
        states.append(hidden[batch.cu_seqlens[1:].long() - 1])
    number = {tuple(p): i for i, p in enumerate(distinct)}
    which = torch.tensor([number[tuple(p)] for p in prompts], device=device)
    ends = packed.cu_seqlens[1:].to(device).long()[which]  # one past the prompt's last position
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    width = int(lengths.max())
    # columns before a short prompt repeat its first token; the mask hides them
    columns = ends[:, None] - width + torch.arange(width, device=device)
    source = torch.maximum(columns, (ends - lengths)[:, None])
    return prefill, source, torch.cat(states)[which]


def _no_mask(ids: list[int]) -> TokenSequence:
    return TokenSequence(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool))


def _add_segment(
    rollouts: list[Rollout], segment: Segment, params: SamplingParams, finished: Finished
) -> None:
    """Append the segment's tokens to the completions, each up to its end."""
    if not segment.tokens:
        return
    stops = set(params.stop_token_ids)
    tokens = torch.stack(segment.tokens, dim=1).tolist()
    logprobs = torch.stack(segment.logprobs, dim=1).tolist()
    for i, ids, values in zip(segment.index.tolist(), tokens, logprobs):
        rollout = rollouts[i]
        left = params.max_new_tokens - len(rollout.response_ids)
        if rollout.finish_reason == "stop" or left == 0:
            continue
        end = next((n for n, token in enumerate(ids[:left], 1) if token in stops), None)
        rollout.finish_reason = "length" if end is None else "stop"
        rollout.response_ids += ids[: end or left]
        rollout.logprobs += values[: end or left]
        if end is not None or len(ids) >= left:
            finished(i, rollout)
