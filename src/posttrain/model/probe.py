"""Checks that a model computes the right log-probs here, before it is trained."""

from __future__ import annotations

import torch

from posttrain.common.batch import Sequence, pack
from posttrain.model.attention import Packed
from posttrain.model.forward import forward
from posttrain.model.language_model import LanguageModel


@torch.no_grad()
def check_packing(policy: LanguageModel, tolerance: float | None = None) -> None:
    """Raise ValueError if packing or our output head changes the model's log-probs.

    Short sequences, two of which share their prompt, must have the same log-probs packed and apart,
    and those of the model's own output head. This fails for an architecture that lets packed rows
    see each other (linear attention, position ids ignored), or whose head does more than ours.
    """
    was_training = policy.training
    policy.eval()
    device = next(policy.parameters()).device
    vocab = policy.causal_lm().config.vocab_size
    texts = [([9], [8, 7, 6, 5, 4]), ([3, 4, 5], [6, 7]), ([3, 4, 5], [8])]
    rows = []
    for prompt, completion in texts:
        ids = torch.tensor(prompt + completion) % vocab
        rows.append(Sequence(ids, torch.arange(len(ids)) >= len(prompt)))
    packed = forward(policy, pack(rows).to(device)).logprobs
    apart = torch.cat([forward(policy, pack([row]).to(device)).logprobs for row in rows])
    if tolerance is None:
        tolerance = 1e-4 if policy.autocast is None else 5e-2
    difference = float((packed - apart).abs().max())
    name = type(policy.causal_lm()).__name__
    if not difference <= tolerance:
        raise ValueError(
            f"{name} gives other log-probs (by {difference:.2g}) if sequences are packed or share "
            "their prompt: this architecture is not supported"
        )
    with policy.precision():
        batch = pack(rows[:1]).to(device)
        layout = Packed(batch.lengths, batch.cu_seqlens)
        logits = policy.causal_lm()(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            layout=layout,
        ).logits[0, :-1]
    expected = logits.float().log_softmax(-1).gather(1, batch.input_ids[1:, None])[:, 0]
    difference = float((expected - apart[1 : len(rows[0])]).abs().max())
    if not difference <= tolerance:
        raise ValueError(
            f"{name} has an output head that is not supported (log-probs differ by "
            f"{difference:.2g} from the model's own)"
        )
    policy.train(was_training)
