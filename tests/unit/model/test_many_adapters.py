"""Several adapters in one batch: every row as if its adapter were alone."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import architectures
import peft
import pytest
import test_sampler
import tiny
import torch
from repeats import choice
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.common.batch import Sequence, pack
from posttrain.model.attention import Packed
from posttrain.model.load import prepare_policy
from posttrain.model.many_adapters import BASE, load_adapters, using
from posttrain.rollout.native import engine
from posttrain.rollout.native.sampler import NativeSampler

KINDS = {
    "a": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "b": {"r": 7, "lora_alpha": 5, "target_modules": "all-linear", "use_rslora": True},
    "c": {"r": 2, "target_modules": ["k_proj", "down_proj"], "rank_pattern": {"k_proj": 5}},
    "d": {"r": 3, "target_modules": ["o_proj"], "lora_dropout": 0.5},
}


def base(kind: str = "llama", **changes):
    tinies = kind in ("llama", "qwen2")
    model = tiny.causal_lm(kind, **changes) if tinies else architectures.causal_lm(kind)
    model.name_or_path = "the base"  # which PEFT writes into the adapter's folder
    return model


def save_adapter(folder: Path, seed: int, kind: str = "llama", std: float = 0.2, **keys) -> str:
    torch.manual_seed(seed)
    model = peft.get_peft_model(base(kind), peft.LoraConfig(task_type="CAUSAL_LM", **keys))
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=std)
    model.save_pretrained(folder)
    return str(folder)


def policy_of(kind: str = "llama", model=None, compute=torch.float32):
    model = base(kind) if model is None else model
    return prepare_policy(model, tiny.model_config("tiny"), tiny.CPU, compute, 0).eval()


def alone(folder: str | None, kind: str = "llama", compute=torch.float32):
    """The policy with one adapter, through PEFT's own modules."""
    model = base(kind)
    if folder is not None:
        model = peft.PeftModel.from_pretrained(model, folder)
        for p in model.parameters():
            p.requires_grad_(True)
    return policy_of(kind, model, compute)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(root / name, seed, **keys)
        for seed, (name, keys) in enumerate(KINDS.items())
    }


ROWS = ["a", None, "b", "c", "a", "d", None, "b", "d"]


def packed(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, tiny.VOCAB, (3 + i,), generator=generator) for i in range(count)]


@torch.no_grad()
def states(policy, texts: list[Tensor], rows: Tensor | None) -> tuple[Tensor, ...]:
    batch = pack([Sequence(t, torch.ones(len(t), dtype=torch.bool)) for t in texts])
    layout = Packed(batch.lengths, batch.cu_seqlens)
    with policy.precision(), using(policy, rows, batch.lengths):
        hidden = policy.hidden_states(batch.input_ids[None], batch.position_ids[None], layout)
    return hidden[0].split(batch.lengths)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_rows_have_the_states_of_their_adapters_alone(folders, dtype):
    compute = getattr(torch, dtype)
    policy, texts = policy_of(compute=compute), packed(len(ROWS))
    adapters = load_adapters(policy, folders)
    found = states(policy, texts, adapters.rows(ROWS))
    for name in {None, *folders}:
        wanted = states(alone(folders.get(name), compute=compute), texts, None)
        for i, row in enumerate(ROWS):
            if row == name:
                within = 1e-5 if dtype == "float32" else 0.15
                torch.testing.assert_close(found[i], wanted[i], rtol=within, atol=within)


DECODING = [(True, 0.0), (True, 1.0), (False, 0.0), (False, 1.0)]


@pytest.mark.parametrize(("written_out", "temperature"), choice(DECODING, DECODING[1:3]))
def test_completions_are_those_of_each_adapter_alone(
    folders, written_out, temperature, monkeypatch
):
    """Equal prompts under different adapters, more rows than places; decoding both ways."""
    if not written_out:
        monkeypatch.setattr(engine, "network_of", lambda policy, longest: None)
    policy = policy_of()
    load_adapters(policy, folders)
    prompts = [p for p in test_sampler.prompts(4) for _ in ROWS]
    names = ROWS * 4
    params = test_sampler.params(temperature=temperature)
    seeds = list(range(len(prompts)))
    mixed = NativeSampler(policy, 10).generate(prompts, params, seeds, adapters=names)
    for name in {None, *folders}:
        at = [i for i, row in enumerate(names) if row == name]
        single = NativeSampler(alone(folders.get(name)), 64)
        wanted = single.generate([prompts[i] for i in at], params, [seeds[i] for i in at])
        assert [mixed[i].response_ids for i in at] == [r.response_ids for r in wanted]
        for i, rollout in zip(at, wanted):
            assert mixed[i].logprobs == pytest.approx(rollout.logprobs, abs=2e-4)


NAMES = ("GPT-2", "Gemma 3", "Qwen3", "Phi-3", "GPT-J", "Mamba", "BLOOM")


@pytest.mark.parametrize("name", choice(NAMES, set(NAMES) - {"Qwen3", "GPT-J"}))
def test_architectures_with_and_without_packing(name, tmp_path):
    """Written-out steps, modules, and rows that are padded in transformers' own cache."""
    keys = {"target_modules": "all-linear"}
    if name == "Mamba":
        keys = {"target_modules": ["in_proj", "x_proj"]}
    folders = {"a": save_adapter(tmp_path / "a", 1, name, 0.1, r=3, **keys)}
    folders["b"] = save_adapter(tmp_path / "b", 2, name, 0.1, r=5, **keys)
    policy = policy_of(name)
    load_adapters(policy, folders)
    prompts, rows = [[5, 9, 7], [6, 4], [5, 9, 7], [8] * 9, [5, 9, 7]], ["a", "b", None, "a", "b"]
    params = test_sampler.params(temperature=0.0, stop_token_ids=())
    mixed = NativeSampler(policy, 8).generate(prompts, params, [0] * 5, adapters=rows)
    for i, row in enumerate(rows):
        single = NativeSampler(alone(folders.get(row), name), 8)
        (wanted,) = single.generate([prompts[i]], params, [0])
        assert mixed[i].response_ids == wanted.response_ids
        assert mixed[i].logprobs == pytest.approx(wanted.logprobs, abs=1e-3)


def test_neighbours_do_not_matter_even_if_their_adapter_overflows(folders, tmp_path):
    """Its infinite products would make NaN of what is multiplied by 0."""
    policy, texts = policy_of(), packed(3)
    adapters = load_adapters(policy, {"a": folders["a"]})
    before = states(policy, texts, adapters.rows(["a", None, "a"]))
    adapters.add("b", folders["b"])
    for parts in adapters.parts.values():
        if adapters.numbers["b"] in parts:
            parts[adapters.numbers["b"]][0].fill_(3e38)
    for module in adapters.parts:
        adapters._stack(module)
    after = states(policy, [*texts, texts[0]], adapters.rows(["a", None, "a", "b"]))
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_loading_leaves_the_base_as_it_was(folders):
    policy, texts = policy_of(), packed(3)
    model = policy.causal_lm()
    model.start_hash = "abc"
    before = states(policy, texts, None)
    names = [(n, type(m)) for n, m in policy.named_modules()]
    weights = {n: (p.requires_grad, p.clone()) for n, p in policy.named_parameters()}
    adapters = load_adapters(policy, folders)
    assert [(n, type(m)) for n, m in policy.named_modules()] == names
    for n, p in policy.named_parameters():
        assert p.requires_grad == weights[n][0]
        assert torch.equal(p, weights[n][1])
    assert (model.start_hash, hasattr(model, "peft_config")) == ("abc", False)
    for name in folders:
        adapters.remove(name)
    assert not adapters.stacks
    assert not any(m._forward_hooks for m in policy.modules())
    assert all(map(torch.equal, before, states(policy, texts, None)))


def test_adapters_come_and_go(folders):
    """The numbers of those that stay do not change; a name may return with another folder."""
    policy, texts = policy_of(), packed(4)
    adapters = load_adapters(policy, {"a": folders["a"], "b": folders["b"]})
    kept = adapters.rows(["b", "b", None, "b"])
    before, version = states(policy, texts, kept), adapters.version
    adapters.remove("a")
    adapters.add("a", folders["c"])
    assert adapters.version > version
    assert torch.equal(adapters.rows(["b", "b", None, "b"]), kept)
    for x, y in zip(before, states(policy, texts, kept)):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    found = states(policy, texts, adapters.rows(["a"] * 4))
    wanted = states(alone(folders["c"]), texts, None)
    for x, y in zip(found, wanted):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="already: unload it first"):
        adapters.add("a", folders["a"])
    with pytest.raises(ValueError, match="no adapter is loaded as 'x'; loaded: a, b"):
        adapters.rows(["a", "x"])
    with pytest.raises(ValueError, match="no adapter is loaded as 'x'"):
        adapters.remove("x")


def test_a_pass_of_another_thread_has_no_adapter(folders):
    policy, texts, found = policy_of(), packed(2), []
    adapters = load_adapters(policy, folders)
    plain = states(policy, texts, None)
    with using(policy, adapters.rows(["a"])):
        thread = threading.Thread(target=lambda: found.extend(states(policy, texts, None)))
        thread.start()
        thread.join()
    assert all(map(torch.equal, plain, found))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"use_dora": True, "target_modules": ["q_proj"]}, "has use_dora, which cannot share"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "has lora_bias"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [4]}, "trainable_token"),
        ({"target_modules": ["q_proj", "lm_head"]}, "adapts lm_head, which cannot"),
        ({"target_modules": ["embed_tokens"]}, "adapts model.embed_tokens, which cannot"),
    ],
)
def test_what_cannot_be_mixed_is_refused_and_nothing_is_loaded(keys, message, tmp_path):
    bias = keys.get("lora_bias", False)
    torch.manual_seed(0)
    model = base(attention_bias=bool(bias))
    lora = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **keys))
    lora.save_pretrained(tmp_path)
    policy = policy_of()
    names = [(n, type(m)) for n, m in policy.named_modules()]
    adapters = load_adapters(policy, {})
    with pytest.raises(ValueError, match=message):
        adapters.add("x", str(tmp_path))
    assert [(n, type(m)) for n, m in policy.named_modules()] == names
    assert (adapters.numbers, adapters.stacks) == ({}, {})
    assert all(p.requires_grad for p in policy.parameters())


def _no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _other_width(folder: Path) -> None:
    model = base(hidden_size=64)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    peft.get_peft_model(model, lora).save_pretrained(folder)


def _ia3(folder: Path) -> None:
    keys = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    peft.get_peft_model(base(), peft.IA3Config(**keys)).save_pretrained(folder)


def _nan(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: x * float("nan") for name, x in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _bias(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bias": "all"}))


@pytest.mark.parametrize("damage", [_no_config, _other_width, _ia3, _nan, _cut, _bias])
def test_damaged_folders_are_refused_and_nothing_is_loaded(damage, tmp_path):
    save_adapter(tmp_path, 0, r=2, target_modules=["q_proj"])
    damage(tmp_path)
    policy, texts = policy_of(), packed(2)
    before, adapters = states(policy, texts, None), load_adapters(policy, {})
    with pytest.raises(ValueError, match=r"adapter|weights|finite|IA3|bias") as error:
        adapters.add("x", str(tmp_path))
    assert "\n" not in str(error.value)
    assert all(map(torch.equal, before, states(policy, texts, None)))
    assert (adapters.numbers, adapters.stacks) == ({}, {})


def test_an_adapter_of_a_base_with_another_name_is_noticed(folders, caplog):
    policy = policy_of()
    policy.causal_lm().config._name_or_path = "/models/the base"
    adapters = load_adapters(policy, {"a": folders["a"]})
    assert "was trained on" not in caplog.text
    policy.causal_lm().config._name_or_path = "/models/another"
    adapters.add("b", folders["b"])
    assert "was trained on the base, not on /models/another" in caplog.text


def test_a_policy_with_an_adapter_of_its_own_is_refused(folders):
    with pytest.raises(ValueError, match="need a base without an adapter"):
        load_adapters(alone(folders["a"]), {})


def test_rows_of_the_base_need_no_adapters():
    policy, texts = policy_of(), packed(2)
    with using(policy, torch.tensor([BASE, BASE])):
        pass
    with pytest.raises(AssertionError):
        states(policy, texts, torch.tensor([0, BASE]))
