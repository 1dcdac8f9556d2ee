"""Prompts through the network, packed: their keys and values, and the state after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.common.batch import Sequence as TokenSequence
from posttrain.common.batch import cumulative, pack
from posttrain.model.attention import Packed
from posttrain.model.language_model import LanguageModel
from posttrain.rollout.native.cache import Prefill
from posttrain.rollout.native.decode import packed_states
from posttrain.rollout.native.forms import Network
from posttrain.rollout.native.prefixes import Block, Continued, PrefixCache

PREFILL_TOKENS = 16384  # prompt tokens in one forward pass

Seen = Callable[[int, Tensor], None]
"""Callback(index, states [L, width]), called with all states of a distinct prompt."""


@dataclass
class Prefilled:
    """What prompts leave behind."""

    past: Prefill
    source: Tensor  # [B, P] packed position of each of the prompts' columns, right-aligned
    hidden: Tensor  # [B, width] state after each prompt


def prefill(
    policy: LanguageModel,
    prompts: list[list[int]],
    adapters: list[str | None],
    prefixes: PrefixCache | None = None,
    seen: Seen | None = None,
    network: Network | None = None,
) -> Prefilled:
    """Run prompts through the network, each distinct one once for each adapter that reads it.

    They go through the policy's modules without `network`, its written-out layers (`forms`).
    Those that begin as earlier prompts did continue from what `prefixes` holds of these, unless all
    their states are to be `seen`.
    """
    device = policy.device
    past, states = Prefill(), []
    if policy.edited is not None:
        prefixes = None  # what is edited depends on where a prompt ends
    if not prompts:
        return Prefilled(past, torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0))
    pairs = list(zip(adapters, map(tuple, prompts)))
    number = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    distinct = list(number)
    known: list[list[Block]] = [[] for _ in distinct]
    if prefixes is not None and seen is None:
        known = [prefixes.find(pair, policy.version) for pair in distinct]
    skipped = [sum(block.length for block in blocks) for blocks in known]
    packed = pack([_no_mask(ids[n:]) for (_, ids), n in zip(distinct, skipped)])
    first = 0
    for batch in packed.split(PREFILL_TOKENS):
        batch = batch.to(device)
        mine = slice(first, first + batch.num_sequences)
        layout, positions = Packed(batch.lengths, batch.cu_seqlens), batch.position_ids
        cache: Prefill | Continued = past
        if any(skipped[mine]):
            before = torch.tensor(skipped[mine], device=device)
            positions = positions + batch.expand(before)
            layout.cached = skipped[mine]
            whole = [n + m for n, m in zip(batch.lengths, layout.cached)]
            layout.cu_keys = cumulative(whole).to(device)
            cache = Continued(past, known[mine], batch.lengths)
        rows = rows_of(policy, [adapter for adapter, _ in distinct[mine]])
        hidden = packed_states(policy, network, batch.input_ids, positions, layout, cache, rows)
        states.append(hidden[batch.cu_seqlens[1:].long() - 1])
        if prefixes is not None:
            prefixes.keep(distinct[mine], past, policy.version)
        if seen is not None:
            for i, part in enumerate(hidden.split(batch.lengths), first):
                seen(i, part)
        first = mine.stop
    which = torch.tensor([number[pair] for pair in pairs], device=device)
    # one past the prompt's last position
    ends = cumulative([len(ids) for _, ids in distinct])[1:].to(device).long()[which]
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    width = int(lengths.max())
    # columns before a short prompt repeat its first token; the mask hides them
    columns = ends[:, None] - width + torch.arange(width, device=device)
    source = torch.maximum(columns, (ends - lengths)[:, None])
    return Prefilled(past, source, torch.cat(states)[which])


def rows_of(policy: LanguageModel, adapters: list[str | None]) -> Tensor | None:
    """Return the number of each row's adapter, [B]; None if the policy has no adapters."""
    return None if policy.adapters is None else policy.adapters.rows(adapters)


def _no_mask(ids: Sequence[int]) -> TokenSequence:
    return TokenSequence(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool))
