"""Neighbours with one prompt send it through the network once; nothing else changes."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.common.batch import Batch, Sequence, pack
from posttrain.model import shared_prompts
from posttrain.model.forward import forward
from posttrain.model.heads import add_value_head
from posttrain.model.models import Models
from posttrain.model.shared_prompts import share_prompts

MODELS: dict[str, Models] = {}


def models(kind: str) -> Models:
    if kind not in MODELS:
        window = {
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 0,
            "layer_types": ["sliding_attention"] * 2,
        }
        MODELS[kind] = tiny.models(kind) if kind != "window" else _windowed(window)
        add_value_head(MODELS[kind].policy, own_network=kind == "llama")
        torch.nn.init.normal_(MODELS[kind].policy.head.weight)
    return MODELS[kind]


def _windowed(keys: dict) -> Models:
    from posttrain.model.config import ModelConfig
    from posttrain.model.load import prepare_policy

    model = tiny.causal_lm(**keys)
    config = ModelConfig(name="x", use_lora=False)
    policy = prepare_policy(model, config, tiny.CPU, torch.float32, 0)
    return Models(policy, tokenizer=None, stop_token_ids=[tiny.STOP])


@pytest.fixture(autouse=True)
def _no_spare_rows(monkeypatch):
    monkeypatch.setattr(shared_prompts, "ROWS", 1)


def row(prompt: int, length: int, completion: int, seed: int) -> Sequence:
    """`prompt` names one of a few prompts of `length` tokens; the rest is random."""
    fixed = torch.Generator().manual_seed(prompt)
    ids = torch.randint(4, tiny.VOCAB, (length,), generator=fixed)
    free = torch.Generator().manual_seed(seed)
    answer = torch.randint(4, tiny.VOCAB, (completion,), generator=free)
    mask = torch.arange(length + completion) >= length
    if completion > 2:
        mask[length + 1] = False  # a token between two that are trained on
    return Sequence(torch.cat([ids, answer]), mask)


def everything(policy, batch: Batch) -> list[torch.Tensor]:
    out = forward(policy, batch, entropy=True, head=True, temperature=0.7)
    weights = torch.linspace(0.5, 2, batch.num_tokens)
    total = (out.logprobs * weights).sum() + (out.values * weights.flip(0)).sum()
    total = total + 0.3 * out.entropy.sum() + out.last_values.sum()
    gradients = torch.autograd.grad(
        total, [p for p in policy.parameters() if p.requires_grad], allow_unused=True
    )
    found = [out.logprobs, out.entropy, out.values, out.last_values, *gradients]
    return [x.detach() for x in found if x is not None]


rows = st.builds(
    row,
    prompt=st.integers(0, 2),
    length=st.sampled_from([1, 4, 4, 9]),
    completion=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "window"])
@settings(max_examples=25, deadline=None)
@given(batch=st.lists(rows, min_size=1, max_size=7))
def test_what_is_shared_changes_nothing(kind, batch):
    policy = models(kind).policy
    together = pack(batch)
    found = everything(policy, together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "shares_prompt", lambda self, i: False)
        assert share_prompts(together).input_ids.tolist() == together.input_ids.tolist()
        expected = everything(policy, together)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))


def group(prompt: int, length: int, *completions: int) -> list[Sequence]:
    return [row(prompt, length, n, seed) for seed, n in enumerate(completions)]


def test_a_shared_prompt_goes_through_the_network_once():
    batch = pack([*group(0, 9, 3, 5, 2), *group(1, 4, 6), *group(2, 9, 1, 1)])
    rows = share_prompts(batch)
    assert rows.layout.lengths == [9, 3, 5, 2, 10, 9, 1, 1]
    assert rows.layout.prefixes == [None, 0, 0, 0, None, None, 5, 5]
    assert batch.input_ids.tolist() == rows.input_ids[rows.places].tolist()
    assert batch.position_ids.tolist() == rows.position_ids[rows.places].tolist()
    assert rows.layout.cu_seqlens.tolist() == [0, 9, 12, 17, 19, 29, 38, 39, 40]


def test_spare_rows_are_read_by_nobody(monkeypatch):
    policy = models("qwen2").policy
    batch = pack([*group(0, 9, 3, 5, 2), *group(1, 4, 6)])
    expected = everything(policy, batch)
    assert len(share_prompts(batch).input_ids) % 32 != 0
    monkeypatch.setattr(shared_prompts, "ROWS", 32)
    rows = share_prompts(batch)
    assert len(rows.input_ids) == 32
    assert int(rows.places.max()) < sum(rows.layout.lengths[:-1])
    for a, b in zip(everything(policy, batch), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_a_prompt_that_is_little_of_its_sequences_is_not_shared():
    batch = pack(group(0, 1, 12, 12))
    assert batch.prompts[0] == batch.prompts[1] != ()
    assert share_prompts(batch).layout.prefixes is None


def test_a_long_prompt_does_not_hold_keys_without_bound():
    parts = pack(group(0, 9, *[1] * 40)).split(40)
    assert all(part.num_tokens <= 160 for part in parts)
    assert len(parts) == 3


def test_equal_prompts_that_are_no_neighbours_are_not_shared():
    (a, b), (c,) = group(0, 9, 3, 5), group(1, 9, 2)
    assert share_prompts(pack([a, c, b])).layout.prefixes is None


@pytest.mark.parametrize("limit", [1, 20, 30, 50, 10**6])
def test_micro_batches_are_bounded_in_what_goes_through_the_network(limit):
    batch = pack([*group(0, 9, 3, 5, 2, 7), *group(1, 4, 6), *group(2, 9, 1, 1, 4, 8)])
    parts = batch.split(limit)
    sizes = [len(share_prompts(part).input_ids) for part in parts]
    for part, size in zip(parts, sizes):
        assert size <= limit or part.num_sequences == 1
    start = 0
    for part in parts[:-1]:
        one_more = batch.select(range(start, start + part.num_sequences + 1))
        fits = len(share_prompts(one_more).input_ids) <= limit
        assert not fits or one_more.num_tokens > 4 * limit, "there was room for it"
        start += part.num_sequences
    assert torch.cat([part.input_ids for part in parts]).tolist() == batch.input_ids.tolist()


def test_a_sequence_that_is_not_trained_on_shares_nothing():
    ids = torch.tensor([5, 6, 7])
    batch = pack([Sequence(ids, torch.zeros(3, dtype=torch.bool))] * 2)
    assert share_prompts(batch).layout.lengths == [3, 3]
