"""Sampling by transformers' `generate`: rows that share a call are as rows on their own."""

from __future__ import annotations

import architectures
import pytest
import torch

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


def test_rows_beyond_the_rotation_limit_share_a_call_if_equally_long():
    """Among shorter ones, which share a cache: each as on its own."""
    policy = architectures.policy("Llama (dynamic rope)").eval()
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(4, architectures.VOCAB, (n,), generator=generator).tolist()
        for n in (60, 5, 60, 70, 9)
    ]
    params = SamplingParams(8, (), 0.0)
    together = NativeSampler(policy, 8).generate(prompts, params, [0] * 5)
    for prompt, rollout in zip(prompts, together):
        (single,) = generate_apart(policy, Way("alone", True), [prompt], params, [0], 1)
        assert rollout.response_ids == single.response_ids
        assert rollout.logprobs == pytest.approx(single.logprobs, abs=2e-4)
