"""The one layout of a batch: N sequences end to end, without padding.

Tensors are [T] (one value per token) or [N] (one value per sequence). A micro-batch is bounded
in tokens, so the same code serves single rows, preference pairs and rollout groups.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posttrain.common.parts import Group, cut


@dataclass
class Sequence:
    """One prompt with its completion, on the CPU."""

    input_ids: Tensor  # [T] int64
    loss_mask: Tensor  # [T] bool, True where the token is trained on; never at position 0
    per_token: dict[str, Tensor] = field(default_factory=dict)  # [T] each
    per_seq: dict[str, float] = field(default_factory=dict)  # one number each

    def __len__(self) -> int:
        return len(self.input_ids)


Example = tuple[Sequence, ...]
"""What a row of data becomes: a sequence, or several such as the two of a pair."""


def sequences_of(examples: SequenceOf[Example]) -> list[Sequence]:
    """Return the sequences of all examples, in their order."""
    return [sequence for example in examples for sequence in example]


@dataclass
class Batch:
    """N sequences end to end. `lengths` holds the same as `cu_seqlens`, as Python integers."""

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64, 0 at the start of each sequence
    cu_seqlens: Tensor  # [N+1] int32
    loss_mask: Tensor  # [T] bool
    lengths: list[int]  # N
    prompts: list[tuple[int, ...]]  # N, the tokens before the completion
    per_token: dict[str, Tensor] = field(default_factory=dict)  # [T] each
    per_seq: dict[str, Tensor] = field(default_factory=dict)  # [N] each

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def num_sequences(self) -> int:
        """N."""
        return len(self.lengths)

    def sequence_ids(self) -> Tensor:
        """Return the index of the sequence that each token belongs to, [T]."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64, device=self.input_ids.device)
        ids = torch.arange(self.num_sequences, device=self.input_ids.device)
        return ids.repeat_interleave(lengths, output_size=self.num_tokens)

    def sum_per_seq(self, x: Tensor) -> Tensor:
        """Return the sum of x [T] over the trained tokens of each sequence, [N]."""
        zeros = x.new_zeros(self.num_sequences)
        # selects rather than multiplies, since 0 * inf is nan
        return zeros.index_add(0, self.sequence_ids(), torch.where(self.loss_mask, x, 0.0))

    def tokens_per_seq(self) -> Tensor:
        """Return the number of trained tokens of each sequence, [N] float32."""
        return self.sum_per_seq(torch.ones_like(self.input_ids, dtype=torch.float32))

    def last_tokens(self) -> Tensor:
        """Return the index of the last token of each sequence, [N] int64."""
        return self.cu_seqlens[1:].long() - 1

    def expand(self, x: Tensor) -> Tensor:
        """Return x [N] as [T]: every token gets the value of its sequence."""
        return x[self.sequence_ids()]

    def select(self, indices: SequenceOf[int]) -> Batch:
        """Return the batch of the sequences at `indices`, in that order."""
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        spans = [torch.arange(starts[i], starts[i] + self.lengths[i]) for i in indices]
        tokens = torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)
        tokens = tokens.to(self.input_ids.device)
        rows = torch.tensor(list(indices), dtype=torch.int64, device=self.input_ids.device)
        lengths = [self.lengths[i] for i in indices]
        return Batch(
            input_ids=self.input_ids[tokens],
            position_ids=self.position_ids[tokens],
            cu_seqlens=cumulative(lengths).to(self.cu_seqlens.device),
            loss_mask=self.loss_mask[tokens],
            lengths=lengths,
            prompts=[self.prompts[i] for i in indices],
            per_token={name: value[tokens] for name, value in self.per_token.items()},
            per_seq={name: value[rows] for name, value in self.per_seq.items()},
        )

    def split(self, max_tokens: int, group_size: int = 1, workers: int = 1) -> list[Batch]:
        """Return micro-batches of at most `max_tokens` tokens, without cutting a group.

        A prompt that neighbours share counts once; a larger group is a micro-batch of its own.
        `workers` run at the same time, and share `max_tokens` (`parts`).
        """
        assert self.num_sequences % group_size == 0, "a batch holds whole groups"
        groups = []
        for start in range(0, self.num_sequences, group_size):
            members = range(start, start + group_size)
            whole = sum(self.lengths[i] for i in members)
            shared = sum(len(self.prompts[i]) for i in members if self.shares_prompt(i))
            again = len(self.prompts[start]) if self.shares_prompt(start) else 0
            groups.append(Group(whole - shared, whole, again))
        starts = [group_size * first for first in cut(groups, max_tokens, workers)]
        ends = [*starts[1:], self.num_sequences]
        return [self.select(range(start, end)) for start, end in zip(starts, ends)]

    def shares_prompt(self, i: int) -> bool:
        """Return whether sequence i shares the prompt of the one before it.

        A prompt below 1/8 of the sequence is not worth the mask that sharing needs in attention.
        """
        worth_it = len(self.prompts[i]) > 0 and 8 * len(self.prompts[i]) >= self.lengths[i]
        return i > 0 and worth_it and self.prompts[i] == self.prompts[i - 1]

    def runs(self) -> list[tuple[int, int]]:
        """Return the first and last index of each run of neighbours that share a prompt."""
        firsts = [i for i in range(self.num_sequences) if not self.shares_prompt(i)]
        ends = [*firsts[1:], self.num_sequences]
        return [(first, end - 1) for first, end in zip(firsts, ends)]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return Batch(
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            cu_seqlens=self.cu_seqlens.to(device),
            loss_mask=self.loss_mask.to(device),
            lengths=self.lengths,
            prompts=self.prompts,
            per_token={name: value.to(device) for name, value in self.per_token.items()},
            per_seq={name: value.to(device) for name, value in self.per_seq.items()},
        )


def pack(sequences: SequenceOf[Sequence]) -> Batch:
    """Return the batch of sequences, which must have the same names in per_token and per_seq."""
    lengths = [len(sequence) for sequence in sequences]
    first = sequences[0] if sequences else Sequence(_NO_IDS, _NO_IDS.bool())
    return Batch(
        input_ids=torch.cat([_NO_IDS, *(s.input_ids for s in sequences)]),
        position_ids=torch.cat([_NO_IDS, *(torch.arange(length) for length in lengths)]),
        cu_seqlens=cumulative(lengths),
        loss_mask=torch.cat([_NO_IDS.bool(), *(s.loss_mask for s in sequences)]),
        lengths=lengths,
        prompts=[_prompt(sequence) for sequence in sequences],
        per_token={
            name: torch.cat([s.per_token[name] for s in sequences]) for name in first.per_token
        },
        per_seq={
            name: torch.tensor([s.per_seq[name] for s in sequences]) for name in first.per_seq
        },
    )


def pack_share(mine: SequenceOf[Example], examples: SequenceOf[Example]) -> Batch:
    """Return the batch of a rank's share of `examples`, with the same names if it is empty."""
    if mine:
        return pack(sequences_of(mine))
    return pack(sequences_of(examples[:1])).select([])


def _prompt(sequence: Sequence) -> tuple[int, ...]:
    """Return the tokens before the completion; none without a completion.

    It begins where per_token["completion"] says, by default at the first trained token.
    """
    completion = sequence.per_token.get("completion", sequence.loss_mask).nonzero()
    return tuple(sequence.input_ids[: int(completion[0])].tolist()) if len(completion) else ()


_NO_IDS = torch.zeros(0, dtype=torch.int64)


def cumulative(lengths: SequenceOf[int]) -> Tensor:
    """Return 0 and the running sum of the lengths, [N+1] int32."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
