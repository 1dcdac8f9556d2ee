"""The written-out decoding step is the modules' own, and continuous sampling is plain sampling."""

from __future__ import annotations

from functools import partial

import pytest
import test_sampler
import tiny
import torch

from posttrain.model.config import ModelConfig
from posttrain.model.language_model import LanguageModel
from posttrain.model.load import prepare_policy
from posttrain.rollout.native import decode, engine, prefill
from posttrain.rollout.native.cache import KVCache
from posttrain.rollout.native.sampler import NativeSampler

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def policy_of(kind: str, lora: bool = False, **changes) -> LanguageModel:
    model = tiny.causal_lm(kind, **changes)
    torch.manual_seed(3)
    for name, p in model.named_parameters():
        if "bias" in name or "norm" in name:  # fresh ones are 0 and 1: they would hide themselves
            torch.nn.init.normal_(p, mean=0.5, std=0.3)
    config = ModelConfig(name="tiny", use_lora=lora)
    policy = prepare_policy(model, config, tiny.CPU, torch.float32, 0)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    return policy.eval()


@torch.no_grad()
def in_fp64(rollout) -> list[float]:
    """The log-probs of a completion of `tiny.models()` by transformers, in fp64."""
    ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
    logits = tiny.causal_lm().double().eval()(ids).logits[0, :-1]
    logprobs = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[len(rollout.prompt_ids) - 1 :].tolist()


def a_cache(policy: LanguageModel, rows: int, columns: int) -> tuple[KVCache, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    config, cache = policy.causal_lm().config, KVCache()
    shape = rows, config.num_key_value_heads, columns + 3, 8
    for layer in range(config.num_hidden_layers):
        cache.layers[layer] = (
            torch.randn(shape, generator=generator),
            torch.randn(shape, generator=generator),
        )
    cache.columns, cache.capacity = columns, columns + 3
    return cache, cache.mask(torch.randint(1, columns, (rows,), generator=generator))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("qwen2", {}),
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"lora": True}),
        ("qwen2", {"num_key_value_heads": 4}),
        ("qwen2", {"num_key_value_heads": 1}),
    ],
)
@torch.no_grad()
def test_the_step_written_out_equals_the_modules(kind, keys):
    policy = policy_of(kind, **keys)
    assert decode._is_llama(policy)
    tokens, positions = torch.tensor([5, 9, 40, 7]), torch.tensor([3, 60, 11, 90])
    found = []
    for step in (decode.decode_step(policy, 100), partial(decode._by_modules, policy)):
        cache, mask = a_cache(policy, rows=4, columns=12)
        cache.columns += 1
        found.append((step(tokens, positions, cache, mask), cache.layers))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    for layer in found[0][1]:
        for ours, theirs in zip(found[0][1][layer], found[1][1][layer]):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    ],
)
def test_other_networks_keep_their_modules(kind, keys):
    policy = policy_of(kind, **keys)
    assert not decode._is_llama(policy)
    test_sampler.test_logprobs_are_the_trainers(1.0)


def test_a_hook_is_not_passed_over():
    policy = policy_of("llama")
    policy.backbone().layers[1].register_forward_hook(lambda *args: None)
    assert not decode._is_llama(policy)


@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.parametrize("grow_by", [1, 5, 128])
@pytest.mark.parametrize("prefill_tokens", [1, 30, 16384])
@pytest.mark.parametrize("places", [1, 3, 7, 64])
def test_the_way_of_sampling_does_not_show(
    written_out, grow_by, prefill_tokens, places, monkeypatch
):
    """Small caches that must grow, prompts prefilled in parts, few places that many wait for."""
    policy = tiny.models().policy
    asked = [prompt for prompt in test_sampler.prompts(6) for _ in range(3)]
    params, seeds = test_sampler.params(), list(range(18))
    plain = NativeSampler(policy, 64).generate(asked, params, seeds)
    monkeypatch.setattr(engine, "GROW_BY", grow_by)
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", prefill_tokens)
    if not written_out:
        monkeypatch.setattr(decode, "_is_llama", lambda policy: False)
    found = NativeSampler(policy, places).generate(asked, params, seeds)
    assert [r.response_ids for r in found] == [r.response_ids for r in plain]
    assert [r.finish_reason for r in found] == [r.finish_reason for r in plain]
    for a, b in zip(found, plain):
        # not of one another: the products of 1 row and of 64 may be rounded in opposite directions
        for rollout in (a, b):
            assert rollout.logprobs == pytest.approx(in_fp64(rollout), abs=1e-5)
        assert len(a.logprobs) == len(a.response_ids) <= params.max_new_tokens


def test_rows_enter_while_others_run(monkeypatch):
    """Waiting prompts do not wait for the slowest of those before them, and each is prefilled
    once for its whole group."""
    policy = tiny.models().policy
    widths, prefilled = [], []
    step = decode._written_out

    def counting(policy, longest):
        plain = step(policy, longest)

        def counted(tokens, *rest):
            widths.append(len(tokens))
            return plain(tokens, *rest)

        return counted

    plain_prefill = engine.prefill

    def noting(policy, prompts, *rest):
        prefilled.extend(dict.fromkeys(tuple(p) for p in prompts))
        return plain_prefill(policy, prompts, *rest)

    monkeypatch.setattr(decode, "_written_out", counting)
    monkeypatch.setattr(engine, "prefill", noting)
    asked = [prompt for prompt in test_sampler.prompts(12) for _ in range(2)]
    native = NativeSampler(policy, 6)
    native.batched = True  # without its probe, whose prompts would be counted
    rollouts = native.generate(asked, test_sampler.params(), range(24))
    assert sorted(prefilled) == sorted({tuple(p) for p in asked})
    tokens = sum(len(r.response_ids) for r in rollouts)
    in_turn = 0  # steps where six at a time are run to the end
    order = sorted(range(24), key=lambda i: (-len(asked[i]), asked[i]))
    for start in range(0, 24, 6):
        in_turn += max(len(rollouts[i].response_ids) for i in order[start : start + 6]) - 1
    assert len(widths) < in_turn
    assert tokens - 24 <= sum(widths)


def test_a_limit_of_one_token():
    policy = tiny.models().policy
    params = test_sampler.params(max_new_tokens=1)
    rollouts = NativeSampler(policy, 3).generate(test_sampler.prompts(7), params, range(7))
    assert all(len(r.response_ids) == 1 for r in rollouts)


def test_looking_seldom_for_ended_rows_does_not_show(monkeypatch):
    """As on a GPU, where rows that have ended run on for some steps."""
    policy = tiny.models().policy
    asked, seeds = test_sampler.prompts(12), list(range(12))
    plain = NativeSampler(policy, 5).generate(asked, test_sampler.params(), seeds)
    monkeypatch.setattr(engine, "steps_between_looks", lambda device: 7)
    found = NativeSampler(policy, 5).generate(asked, test_sampler.params(), seeds)
    assert [r.response_ids for r in found] == [r.response_ids for r in plain]
    assert [r.finish_reason for r in found] == [r.finish_reason for r in plain]
