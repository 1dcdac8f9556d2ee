"""The written-out decoding step is the modules' own, and continuous sampling is plain sampling."""

from __future__ import annotations

from itertools import product

import architectures
import peft
import pytest
import test_sampler
import tiny
import torch
from repeats import choice
from torch import Tensor

from posttrain.model.language_model import LanguageModel
from posttrain.model.load import prepare_policy
from posttrain.rollout.native import decode, engine, prefill
from posttrain.rollout.native.cache import KVCache
from posttrain.rollout.native.forms import network_of
from posttrain.rollout.native.prefixes import PrefixCache
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
    config = tiny.model_config("tiny", use_lora=lora)
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


def a_cache(policy: LanguageModel, columns: int, dtype=torch.float32) -> tuple[KVCache, Tensor]:
    """A cache of four rows as the step finds it, with past columns of random numbers."""
    generator = torch.Generator().manual_seed(4)
    config, cache = policy.causal_lm().config, KVCache()
    gpt = config.model_type == "gpt2"  # which has no groups of query heads
    heads = config.num_attention_heads if gpt else config.num_key_value_heads
    shape = 4, heads, columns + 3, 8
    for layer in range(config.num_hidden_layers):
        cache.layers[layer] = tuple(
            torch.randn(shape, generator=generator).to(dtype) for _ in range(2)
        )
    cache.columns, cache.capacity = columns + 1, columns + 3
    return cache, cache.mask(torch.randint(1, columns, (4,), generator=generator))


@torch.no_grad()
def steps(policy: LanguageModel, past: torch.dtype) -> list[tuple[Tensor, dict]]:
    """States, keys and values of the written-out step and of the modules', after the same past,
    rounded to a dtype."""
    network = network_of(policy.eval(), 150)
    assert network is not None
    tokens, positions = torch.tensor([5, 9, 40, 7]), torch.tensor([3, 60, 11, 90])
    found = []
    for step in (decode.written_out(policy, network), decode.by_modules(policy)):
        cache, mask = a_cache(policy, 30, past)
        kept = policy.autocast or torch.float32
        cache.layers = {n: tuple(x.to(kept) for x in pair) for n, pair in cache.layers.items()}
        with policy.precision():
            states = step(tokens, positions, cache, mask)
        found.append((states, cache.layers))
    return found


def assert_steps_agree(policy: LanguageModel, within: float = 1e-5) -> None:
    """The written-out step gives the modules' states, keys and values."""
    found = steps(policy, policy.autocast or torch.float32)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=within, atol=within)
    for layer in found[0][1]:
        for ours, theirs in zip(found[0][1][layer], found[1][1][layer]):
            torch.testing.assert_close(ours, theirs, rtol=within, atol=within)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("qwen2", {}),
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"lora": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("qwen2", {"num_key_value_heads": 4}),
        ("qwen2", {"num_key_value_heads": 1}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    ],
)
def test_the_step_written_out_equals_the_modules(kind, keys):
    assert_steps_agree(policy_of(kind, **keys))


COVERED = {
    *("Apertus", "Arcee", "CWM", "Cohere 2", "ERNIE 4.5", "EXAONE 4", "GPT-2", "Gemma", "Gemma 2"),
    *("Gemma 2 (wide windows)", "Gemma 3", "Granite", "Helium", "Hunyuan", "Llama (yarn)"),
    *("Llama 1, 2", "Llama 3", "Ministral", "Mistral", "Mistral (wide windows)", "Mixtral"),
    *("OLMo 2", "OLMo 3", "Qwen2", "Qwen2 (windows)", "Qwen2-MoE", "Qwen3", "Qwen3-MoE"),
    *("Seed-OSS", "SmolLM3", "StarCoder2", "VaultGemma"),
}


@pytest.mark.parametrize("name", sorted(COVERED))
def test_every_covered_architecture_steps_as_its_modules(name):
    assert_steps_agree(architectures.policy(name))


@pytest.mark.slow
def test_no_other_architecture_is_taken_for_a_covered_one():
    for name in set(architectures.ARCHITECTURES) - COVERED:
        assert network_of(architectures.policy(name), 150) is None, name


WITH_ADAPTER = ("Gemma 3", "GPT-2", "Llama 3", "Mistral", "Qwen3", "SmolLM3", "Cohere 2", "OLMo 2")


def random_adapter(policy: LanguageModel) -> LanguageModel:
    """The policy with an adapter that shows; a fresh one is the identity."""
    generator = torch.Generator().manual_seed(5)
    for name, p in policy.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            with torch.no_grad():
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return policy


def with_adapter(name: str, compute: torch.dtype) -> LanguageModel:
    """An architecture of weights that 16 bits hold, as a policy that computes in a dtype."""
    config = tiny.model_config("tiny", adapter={"type": "lora", "alpha": 8.0})
    model = architectures.causal_lm(name).to(torch.bfloat16).to(compute)
    return random_adapter(prepare_policy(model, config, tiny.CPU, compute, 0))


@pytest.mark.parametrize("name", WITH_ADAPTER)
def test_an_adapter_is_part_of_the_step(name):
    assert_steps_agree(with_adapter(name, torch.float32))


@pytest.mark.parametrize("name", WITH_ADAPTER)
def test_in_16_bits_the_step_with_an_adapter_is_as_near_to_fp32_as_the_modules(name):
    """The two round at other places, so that they are compared with fp32 and not one another."""
    narrow, wide = with_adapter(name, torch.bfloat16), with_adapter(name, torch.float32)
    wide.load_state_dict({key: x.to(torch.float32) for key, x in narrow.state_dict().items()})
    true = steps(wide, torch.bfloat16)[1]
    ours, theirs = (error(found, true) for found in steps(narrow, torch.bfloat16))
    assert ours < min(0.03, 1.5 * theirs)
    assert_steps_agree(narrow, 0.1)


def error(found: tuple[Tensor, dict], true: tuple[Tensor, dict]) -> float:
    """The largest error of states, keys and values, relative to their norm."""
    pairs = [(found[0], true[0])]
    pairs += [p for layer in true[1] for p in zip(found[1][layer], true[1][layer])]
    return max(float((a.float() - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("name", ["Llama 3", "Gemma 2", "Qwen3", "GPT-2"])
def test_autocast_rounds_as_in_the_modules(name):
    config = tiny.model_config("tiny")
    policy = prepare_policy(architectures.causal_lm(name), config, tiny.CPU, torch.bfloat16, 0)
    assert policy.autocast == torch.bfloat16
    assert_steps_agree(policy)


def read(
    policy: LanguageModel, written_out: bool, prefixes: PrefixCache | None = None
) -> tuple[Tensor, ...]:
    """What prompts leave behind, read by the written-out layers or by the modules."""
    network = network_of(policy.eval(), 150)
    assert network is not None
    rows = [row.input_ids.tolist() for row in architectures.rows()]
    names: list[None] = [None] * len(rows)
    with torch.no_grad(), policy.precision():
        found = prefill.prefill(
            policy, rows, names, prefixes, network=network if written_out else None
        )
    past = [found.past.take(layer) for layer in list(found.past.layers)]
    return found.hidden, *(x for pair in past for x in pair)


@pytest.mark.parametrize("name", sorted(COVERED))
def test_prompts_through_the_written_out_layers_are_as_through_the_modules(name):
    """Ragged prompts, beyond windows, in packs, and such that continue from kept blocks."""
    policy = architectures.policy(name)
    wanted, prefixes = read(policy, False), PrefixCache(2**30)
    for kept in (None, prefixes, prefixes):
        for ours, theirs in zip(read(policy, True, kept), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    assert prefixes.found > 0


@pytest.mark.parametrize("name", WITH_ADAPTER)
def test_an_adapter_is_part_of_the_prompts(name):
    policy = with_adapter(name, torch.float32)
    for ours, theirs in zip(read(policy, True), read(policy, False), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WITH_ADAPTER)
def test_in_16_bits_the_prompts_are_as_near_to_fp32_as_through_the_modules(name):
    """The two round at other places, so that they are compared with fp32 and not one another."""
    narrow, wide = with_adapter(name, torch.bfloat16), with_adapter(name, torch.float32)
    wide.load_state_dict({key: x.to(torch.float32) for key, x in narrow.state_dict().items()})
    true = read(wide, False)
    for ours, theirs, exact in zip(read(narrow, True), read(narrow, False), true, strict=True):
        errors = [float((x.float() - exact).norm() / exact.norm()) for x in (ours, theirs)]
        assert errors[0] < min(0.06, 1.2 * errors[1])  # at most 1.05 times, measured


def test_prompts_go_through_the_written_out_layers(monkeypatch):
    policy = random_adapter(policy_of("llama", lora=True))
    native = NativeSampler(policy, 4)
    native.batched = True  # without its probe, which calls the modules
    monkeypatch.setattr(LanguageModel, "hidden_states", None)
    assert native.generate(test_sampler.prompts(3), test_sampler.params(), range(3))


VARIANTS = {
    "rslora": {"type": "rslora", "r": 4},
    "some layers": {"type": "lora", "target_modules": ["q_proj", "down_proj"], "r": 3},
    "keys alone": {"type": "lora", "target_modules": ["k_proj"], "layers_to_transform": [1]},
    "patterns": {"type": "lora", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "dropout": {"type": "lora", "dropout": 0.3},
    "dora": {"type": "dora", "r": 4},
    "pissa": {"type": "pissa", "r": 4},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_lora_is_in_the_step(variant):
    model = architectures.causal_lm("Llama 3")
    config = tiny.model_config("tiny", adapter=variant)
    policy = random_adapter(prepare_policy(model, config, tiny.CPU, torch.float32, 0))
    assert_steps_agree(policy.train(), 1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": [5, 9]},
        {"target_modules": ["q_proj"], "lora_bias": True},
        {"target_modules": ["q_proj", "up_proj"], "bias": "all"},
        {"target_modules": ["v_proj"], "modules_to_save": ["o_proj"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_what_an_adapter_changes_beside_its_products(kind, settings):
    """Embeddings (of Qwen2 tied to the head), whole layers, biases; by PEFT, as it would load."""
    torch.manual_seed(2)
    keys = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
    lora = peft.LoraConfig(**({"target_modules": ["k_proj"]} | settings))
    model = peft.get_peft_model(tiny.causal_lm(kind, **keys), lora)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    policy = prepare_policy(model, tiny.model_config("tiny"), tiny.CPU, torch.float32, 0)
    assert_steps_agree(policy)


def test_an_adapter_that_is_switched_off_or_merged_is_not_added():
    policy = random_adapter(policy_of("llama", lora=True))
    with policy.model.disable_adapter():
        assert_steps_agree(policy)
    policy.model.merge_adapter()
    assert_steps_agree(policy)
    policy.model.unmerge_adapter()
    assert_steps_agree(policy)


def test_two_active_adapters_add_up():
    policy = random_adapter(policy_of("llama", lora=True))
    policy.model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"]))
    random_adapter(policy)
    policy.model.base_model.set_adapter(["default", "other"])
    assert_steps_agree(policy)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_layers_keep_their_product(kind, tmp_path):
    pytest.importorskip("bitsandbytes")
    from posttrain.model.load import load_policy

    tiny.causal_lm("llama", hidden_size=64, intermediate_size=96).save_pretrained(tmp_path)
    config = tiny.model_config(str(tmp_path), adapter="lora", quantization=kind, dtype="float32")
    policy = random_adapter(load_policy(config, str(tmp_path), tiny.CPU, 0)).eval()
    network, wide = network_of(policy, 150), []
    assert network is not None
    for step in (decode.written_out(policy, network), decode.by_modules(policy)):
        cache = KVCache()
        cache.columns, cache.capacity = 3, 8
        for layer in range(2):
            cache.layers[layer] = torch.ones(4, 2, 8, 16), torch.ones(4, 2, 8, 16)
        with torch.no_grad():
            states = step(torch.arange(4), torch.arange(4), cache, torch.zeros(4, 8))
        wide.append(states)
    torch.testing.assert_close(*wide, rtol=1e-4, atol=1e-4)


def test_a_rotation_that_depends_on_the_length_keeps_its_modules():
    changes = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert network_of(policy_of("llama", rope_parameters=changes), 100) is None


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_a_hook_is_not_passed_over(kind):
    policy = policy_of("llama")
    layer = policy.backbone().layers[1]
    getattr(layer, f"register_{kind}_hook")(lambda *args: None)
    assert network_of(policy, 100) is None


def test_a_hook_that_says_so_is():
    def hook(*args):
        return None

    hook.decode_safe = True
    policy = policy_of("llama")
    policy.backbone().layers[1].register_forward_hook(hook)
    assert network_of(policy, 100) is not None


def test_a_layer_of_another_class_keeps_its_modules():
    """Named as transformers' layer is, but not transformers'."""
    policy = policy_of("llama")
    layer = policy.backbone().layers[1]
    layer.__class__ = type("LlamaDecoderLayer", (type(layer),), {"__module__": "elsewhere"})
    assert network_of(policy, 100) is None


WAYS = list(product((1, 3, 7, 64), (1, 30, 16384), (1, 5, 128), (True, False)))
# a quarter that has every pair of values of any two
FAST_WAYS = [way for n, way in enumerate(WAYS) if n % 4 == (n // 6) % 4]


@pytest.mark.parametrize(
    ("places", "prefill_tokens", "grow_by", "written_out"), choice(WAYS, FAST_WAYS)
)
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
        monkeypatch.setattr(engine, "network_of", lambda policy, longest: None)
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
    step = decode.written_out

    def counting(policy, network):
        plain = step(policy, network)

        def counted(tokens, *rest):
            widths.append(len(tokens))
            return plain(tokens, *rest)

        return counted

    plain_prefill = engine.prefill

    def noting(policy, prompts, *rest):
        prefilled.extend(dict.fromkeys(tuple(p) for p in prompts))
        return plain_prefill(policy, prompts, *rest)

    monkeypatch.setattr(decode, "written_out", counting)
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
