"""Forward passes over packed batches, with the same number of passes on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from posttrain.common import distributed
from posttrain.common.batch import Batch
from posttrain.model.language_model import LanguageModel


@dataclass
class Output:
    """What a loss reads. Positions outside the loss mask hold 0, except in `scores`."""

    logprobs: Tensor  # [T] log p(token t | earlier tokens of its sequence)
    entropy: Tensor | None = None  # [T] of the distribution that predicts token t, in nats
    values: Tensor | None = None  # [T] of the state before token t
    last_values: Tensor | None = None  # [N] of the state after the last token of each sequence
    scores: Tensor | None = None  # [T] of the text up to and including token t
    logits: Tensor | None = None  # [N, K] of the labels, after the last token of each sequence


def forward(
    policy: LanguageModel,
    batch: Batch,
    *,
    entropy: bool = False,
    head: bool = False,
    temperature: float = 1.0,
) -> Output:
    """Return log-probs of a packed batch, and entropy and the head's outputs if requested."""
    logprobs, ent, outputs = policy(batch, entropy=entropy, head=head, temperature=temperature)
    zeros = logprobs.new_zeros(batch.num_tokens)
    positions = batch.loss_mask.nonzero()[:, 0]
    out = Output(
        logprobs=zeros.index_copy(0, positions, logprobs),
        entropy=None if ent is None else zeros.index_copy(0, positions, ent),
    )
    if not head:
        return out
    if policy.head_kind == "value":
        # token t is the action taken in the state after token t - 1 of the same sequence
        out.values = zeros.index_copy(0, positions, outputs[positions - 1])
        out.last_values = outputs[batch.last_tokens()]
    elif policy.head_kind == "score":
        out.scores = outputs
    else:
        out.logits = outputs[batch.last_tokens()]
    return out


def in_lockstep(
    policy: LanguageModel, parts: Sequence[Batch], filler: Batch | None
) -> Iterator[tuple[Batch, float]]:
    """Yield micro-batches with weight 1, then `filler` with weight 0 while other ranks have more.

    Sharded layers wait for every rank in every pass, so all ranks must run the same number of
    passes. A rank that has no filler takes another's. A collective if the policy is sharded.
    """
    missing = 0
    if distributed.is_sharded(policy):
        # gathered before the first pass, so that no two ranks wait in different collectives
        ranks = distributed.all_gather((len(parts), filler is None))
        most = max(number for number, _ in ranks)
        missing = most - len(parts)
        if any(number < most and lacks for number, lacks in ranks):
            fillers = distributed.all_gather(None if filler is None else filler.to("cpu"))
            filler = next(x for x in fillers if x is not None).to(policy.device)
    for part in parts:
        yield part, 1.0
    for _ in range(missing):
        assert filler is not None
        yield filler, 0.0
