"""Sampling by transformers' `generate`: rows that share a call are as rows on their own."""

from __future__ import annotations

import architectures
import pytest
import torch
from repeats import choice

from posttrain.common.batch import Sequence, pack
from posttrain.model.forward import forward
from posttrain.rollout.native import alone
from posttrain.rollout.native.alone import Way, generate_apart, way_of
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams

PROMPTS = [[5, 9, 7], [6] * 11, [8], [5, 9, 7], [12, 4, 31, 7, 9], [20] * 11, [44, 5]]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("GPT-Neo", "padded"),
        ("GPT-J", "padded"),
        ("BLOOM", "padded"),
        ("Falcon (alibi)", "padded"),
        ("Mamba", "padded"),
        ("LFM2", "padded"),
        ("MiniMax", "padded"),
        ("RecurrentGemma", "joined"),
        ("RWKV", "joined"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_row_has_the_log_probs_of_a_forward_pass(name, batches, temperature):
    policy = architectures.policy(name).eval()
    way = way_of(policy)
    assert way == Way(batches, True, generated=False)
    params = SamplingParams(12, tuple(range(3, architectures.VOCAB, 5)), temperature)
    rollouts = generate_apart(policy, way, PROMPTS, params, range(7), 4)
    assert [r.prompt_ids for r in rollouts] == PROMPTS
    texts = [torch.tensor(r.prompt_ids + r.response_ids) for r in rollouts]
    masks = [torch.arange(len(t)) >= len(p) for t, p in zip(texts, PROMPTS)]
    batch = pack([Sequence(text, mask) for text, mask in zip(texts, masks)])
    wanted = forward(policy, batch).logprobs[batch.loss_mask]
    found = torch.tensor([value for r in rollouts for value in r.logprobs])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-4)
    for r in rollouts:
        stopped = [i for i, token in enumerate(r.response_ids) if token in params.stop_token_ids]
        ended = len(r.response_ids) - 1
        assert stopped == ([ended] if r.finish_reason == "stop" else [])
        assert r.finish_reason == "stop" or ended == 11


@pytest.mark.parametrize("name", ["GPT-J", "Mamba", "MiniMax", "RecurrentGemma", "RWKV"])
def test_a_row_does_not_depend_on_the_call_that_it_is_in(name):
    policy = architectures.policy(name).eval()
    way, params = way_of(policy), SamplingParams(10, (architectures.STOP,), 1.0)
    plain = generate_apart(policy, Way("alone", True), PROMPTS, params, range(7), 1)
    for rows in (1, 2, 3, 64):
        found = generate_apart(policy, way, PROMPTS, params, range(7), rows)
        assert [r.response_ids for r in found] == [r.response_ids for r in plain]
    part = generate_apart(policy, way, PROMPTS[2:5], params, range(2, 5), 8)
    assert [r.response_ids for r in part] == [r.response_ids for r in plain[2:5]]


@pytest.mark.parametrize("batches", ["padded", "joined", "equal", "alone"])
@pytest.mark.parametrize("lengths", [[], [3], [5, 1, 5, 2, 2, 5, 9], [4] * 9])
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_every_prompt_is_in_one_call(batches, lengths, rows):
    calls = alone._calls(Way(batches, True), lengths, rows)
    assert sorted(i for call in calls for i in call) == list(range(len(lengths)))
    for call in calls:
        assert len(call) <= (1 if batches == "alone" else rows)
        assert batches != "equal" or len({lengths[i] for i in call}) == 1
    if batches in ("padded", "joined"):
        assert len(calls) == -(-len(lengths) // rows)


def test_completions_are_reported_once_with_their_place():
    policy, seen = architectures.policy("GPT-J"), {}
    sampler = NativeSampler(policy, 3)
    params = SamplingParams(6, (architectures.STOP,), 1.0)

    def finished(place, rollout):
        assert place not in seen
        seen[place] = rollout

    rollouts = sampler.generate(PROMPTS, params, range(7), finished)
    assert sampler.batched is False
    assert [seen[i] for i in range(7)] == rollouts


ROTATED = [
    (name, temperature)
    for name in ("Llama (dynamic rope)", "Phi-3 (longrope)")
    for temperature in (0.0, 1.0)
]


@pytest.mark.parametrize(("name", "temperature"), choice(ROTATED, [ROTATED[0], ROTATED[3]]))
def test_rows_on_both_sides_of_a_change_of_the_rotation_share_a_batch(name, temperature):
    """Each as on its own: short ones, long ones, and those that cross the length."""
    policy = architectures.policy(name).eval()
    generator = torch.Generator().manual_seed(1)
    lengths = (60, 5, 60, 70, 9, 1, *range(46, 51), *range(61, 66), 40)
    prompts = [torch.randint(4, architectures.VOCAB, (n,), generator=generator) for n in lengths]
    texts = [prompt.tolist() for prompt in prompts]
    params = SamplingParams(20, (), temperature)
    rotary = policy.backbone().rotary_emb
    sampler = NativeSampler(policy, 8)
    together = sampler.generate(texts, params, range(len(texts)))
    assert sampler.batched
    assert "forward" not in vars(rotary), "the rotation stayed replaced"
    for i, (text, rollout) in enumerate(zip(texts, together)):
        (single,) = generate_apart(policy, Way("alone", True), [text], params, [i], 1)
        assert rollout.prompt_ids == text
        assert rollout.response_ids == single.response_ids
        assert rollout.logprobs == pytest.approx(single.logprobs, abs=2e-4)


def test_rows_that_cross_a_change_of_the_rotation_finish_once():
    policy, seen = architectures.policy("Phi-3 (longrope)").eval(), []
    prompts = [[5 + i] * n for i, n in enumerate((44, 45, 3, 60, 47))]
    params = SamplingParams(12, tuple(range(3, architectures.VOCAB, 9)), 1.0)

    def finished(place, rollout):
        seen.append((place, rollout))

    rollouts = NativeSampler(policy, 2).generate(prompts, params, range(5), finished)
    assert sorted(place for place, _ in seen) == list(range(5))
    assert all(rollouts[place] == rollout for place, rollout in seen)
    for rollout in rollouts:
        stopped = [i for i, t in enumerate(rollout.response_ids) if t in params.stop_token_ids]
        ended = len(rollout.response_ids) - 1
        assert stopped == ([ended] if rollout.finish_reason == "stop" else [])
        assert rollout.finish_reason == "stop" or ended == 11


@pytest.mark.parametrize("name", ["RecurrentGemma", "RWKV"])
def test_what_a_model_remembers_of_other_rows_is_forgotten(name):
    """Of earlier calls as well: a prompt of one token begins from nothing."""
    policy = architectures.policy(name).eval()
    params = SamplingParams(6, (), 0.0)
    (fresh,) = NativeSampler(policy, 4).generate([[8]], params, [0])
    for way in (Way("joined", True, False), Way("alone", True), Way("joined", True, False)):
        generate_apart(policy, way, PROMPTS, params, range(7), 4)
        (again,) = generate_apart(policy, way, [[8]], params, [0], 1)
        assert again.response_ids == fresh.response_ids
        assert again.logprobs == pytest.approx(fresh.logprobs, abs=2e-4)
