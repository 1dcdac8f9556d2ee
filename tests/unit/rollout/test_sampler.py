"""The sampler: transformers' greedy ids, the trainer's log-probs, the right distribution."""

from __future__ import annotations

import collections

import pytest
import tiny
import torch

from posttrain.common.batch import Sequence, pack
from posttrain.model.forward import forward
from posttrain.rollout.check import LEAST_TEMPERATURE, check_sampling
from posttrain.rollout.native import engine as engine_module
from posttrain.rollout.native.choose import sample
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams


def prompts(n: int = 9) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 12, (n,), generator=generator).tolist()
    return [torch.randint(4, tiny.VOCAB, (k,), generator=generator).tolist() for k in lengths]


def params(**keys) -> SamplingParams:
    return SamplingParams(**({"max_new_tokens": 20, "stop_token_ids": (tiny.STOP, 7)} | keys))


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_greedy_ids_equal_transformers_generate(kind):
    plain = tiny.causal_lm(kind).eval()
    native = NativeSampler(tiny.models(kind).policy, max_num_seqs=4)
    asked = prompts()
    rollouts = native.generate(asked, params(temperature=0), [0] * len(asked))
    for prompt, rollout in zip(asked, rollouts):
        ids = plain.generate(
            torch.tensor([prompt]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=[tiny.STOP, 7],
            pad_token_id=0,
        )
        assert rollout.response_ids == ids[0, len(prompt) :].tolist()
        stopped = rollout.response_ids[-1] in (tiny.STOP, 7)
        assert rollout.finish_reason == ("stop" if stopped else "length")
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}, "only one case is tested"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_are_the_trainers(temperature):
    policy = tiny.models().policy
    asked = prompts(12)
    rollouts = NativeSampler(policy, 5).generate(asked, params(temperature=temperature), range(12))
    rows = []
    for r in rollouts:
        ids = torch.tensor(r.prompt_ids + r.response_ids)
        rows.append(Sequence(ids, torch.arange(len(ids)) >= len(r.prompt_ids)))
    batch = pack(rows)
    ours = forward(policy, batch, temperature=temperature).logprobs[batch.loss_mask]
    sampled = torch.tensor([x for r in rollouts for x in r.logprobs])
    torch.testing.assert_close(sampled, ours, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(monkeypatch):
    """Neither on the others in it, nor on how many run at once, nor on when rows leave it."""
    policy = tiny.models().policy
    asked = prompts(16)
    seeds = list(range(100, 116))
    ids = {}
    for size in (1, 3, 16):
        for compact in (0.0, 0.8, 1.01):
            monkeypatch.setattr(engine_module, "COMPACT_BELOW", compact)
            rollouts = NativeSampler(policy, size).generate(asked, params(), seeds)
            ids[size, compact] = [r.response_ids for r in rollouts]
    assert all(x == ids[1, 0.8] for x in ids.values())
    backwards = NativeSampler(policy, 16).generate(asked[::-1], params(), seeds[::-1])
    assert [r.response_ids for r in backwards[::-1]] == ids[1, 0.8]


def test_completions_of_one_prompt_differ_and_repeat_with_the_seed():
    policy = tiny.models().policy
    first, second = (
        [
            r.response_ids
            for r in NativeSampler(policy, 8).generate([[5, 6]] * 8, params(), range(8))
        ]
        for _ in range(2)
    )
    assert first == second
    assert len({tuple(x) for x in first}) > 4


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"top_k": 12, "top_p": 0.8},
        {"top_p": 0.0},
    ],
)
def test_first_tokens_follow_the_distribution(keys):
    """4,000 draws of the first token against the distribution worked out here."""
    models = tiny.models()
    draws = 4000
    one = SamplingParams(max_new_tokens=1, stop_token_ids=(tiny.STOP,), **keys)
    rollouts = NativeSampler(models.policy, 512).generate([[8, 9, 10]] * draws, one, range(draws))
    logits = tiny.causal_lm()(torch.tensor([[8, 9, 10]]), use_cache=False).logits[0, -1].detach()
    p = (logits / keys.get("temperature", 1.0)).softmax(-1)
    order = p.argsort(descending=True)
    kept = order[: keys.get("top_k", len(p))]
    mass = p[kept] / p[kept].sum()
    if "top_p" in keys:
        needed = int((mass.cumsum(0) < keys["top_p"]).sum()) + 1
        kept = kept[:needed]
    expected = torch.zeros_like(p).index_copy(0, kept, p[kept] / p[kept].sum())
    counts = collections.Counter(r.response_ids[0] for r in rollouts)
    for token, probability in enumerate(expected.tolist()):
        deviation = (probability * (1 - probability) / draws) ** 0.5
        assert abs(counts[token] / draws - probability) <= 5 * deviation + 1e-9
    for r in rollouts[:50]:
        assert r.logprobs[0] == pytest.approx(float(expected[r.response_ids[0]].log()), abs=1e-4)


def test_output_changes_with_the_weights():
    models = tiny.models()
    native = NativeSampler(models.policy, 8)
    before = native.generate(prompts(4), params(temperature=0), [0] * 4)
    trainer = tiny.trainer_of("sft", models)
    trainer.update(pack(tiny.random_sequences()))
    after = native.generate(prompts(4), params(temperature=0), [0] * 4)
    assert [r.response_ids for r in before] != [r.response_ids for r in after]
    assert {r.weight_version for r in before} == {0}
    assert {r.weight_version for r in after} == {1}


def test_sampling_leaves_the_weights_as_they_are():
    policy = tiny.models().policy
    before = {n: p.clone() for n, p in policy.named_parameters()}
    for seed in range(20):
        NativeSampler(policy, 4).generate(prompts(3), params(max_new_tokens=4), [seed] * 3)
    assert all(torch.equal(p, before[n]) for n, p in policy.named_parameters())


def test_an_empty_prompt_is_an_error():
    with pytest.raises(ValueError, match="prompt is empty"):
        NativeSampler(tiny.models().policy, 4).generate([[5], []], params(), [0, 1])


@pytest.mark.parametrize(
    "temperature", [1e-42, 1e-38, 1e-30, 1e-7, -1.0, float("nan"), float("inf")]
)
def test_a_temperature_without_a_distribution_is_refused(temperature):
    with pytest.raises(ValueError, match=r"^temperature: expected 0 \(greedy\) or at least 1e-06"):
        check_sampling(1, temperature, 1.0, 0)


@pytest.mark.parametrize("temperature", [LEAST_TEMPERATURE, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_least_temperature_draws_the_likeliest(temperature, scale):
    check_sampling(1, temperature, 1.0, 0)
    logits = scale * torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(64, generator=torch.Generator().manual_seed(1))
    drawn = sample(logits, SamplingParams(1, (), temperature), noise)
    assert drawn.logprobs.isfinite().all()
    two = logits.topk(2).values
    clear = two[:, 0] - two[:, 1] > 40 * temperature
    assert clear.sum() > 32
    assert (drawn.tokens == logits.argmax(-1))[clear].all()
