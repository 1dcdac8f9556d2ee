"""Quantised weights: the numbers of the definition, the same ones everywhere, and refusals."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from tiny import CPU
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
)

from posttrain.common.batch import pack
from posttrain.evaluation.loading import weights_hash as hash_of_all
from posttrain.model import quantized
from posttrain.model.adapters import ADAPTERS
from posttrain.model.config import ModelConfig, QuantizationConfig
from posttrain.model.folder import saved_head
from posttrain.model.forward import forward
from posttrain.model.heads import add_scoring_head
from posttrain.model.kernels import quantized as kernels
from posttrain.model.load import load_policy, load_reference, prepare_policy
from posttrain.model.loaded import weights_hash
from posttrain.model.models import Models
from posttrain.model.quantized import quantise, quantization_of, with_quantization
from posttrain.model.save import gather_weights, save_model
from posttrain.rewards import classifier_scores
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams

pytest.importorskip("bitsandbytes")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
TYPES = ("nf4", "fp4", "int8")
# Dettmers et al. 2023, appendix E, and the sixteen values of a float with 2 exponent bits
NF4 = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
FP4 = [0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12]
CODES = {"nf4": NF4, "fp4": [*FP4, *(-x for x in FP4)]}


def section(kind: str, **keys) -> QuantizationConfig:
    return QuantizationConfig.model_validate({"type": kind, **keys})


def policy_of(kind: str, dtype=torch.float32, model=None, adapter="lora", **keys):
    model = model or tiny.causal_lm("llama", **WIDE)
    quantise(model, section(kind, **keys), CPU, dtype)
    config = tiny.model_config("tiny", adapter=adapter)
    return prepare_policy(model, config, CPU, dtype, 0)


def defined(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """The weight rounded as the definition says, written out."""
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True)
        return (weight / scale * 127).round() * scale / 127
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    code = torch.tensor(CODES[kind])
    nearest = (blocks / scale)[..., None].sub(code).abs().argmin(-1)
    return (code[nearest] * scale).view_as(weight)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(3, 64), (64, 128), (33, 192), (1, 576)])
def test_weights_are_those_of_the_definition(kind, shape):
    weight = torch.randn(shape)
    layer = nn.Linear(shape[1], shape[0])
    layer.weight.data = weight.clone()
    stored = quantized._stored(
        layer,
        section(kind, **{} if kind == "int8" else {"double_quant": False}),
        CPU,
        torch.float32,
    )
    found = kernels.dequantise(stored.weight, torch.float32)
    wanted = defined(weight, kind)
    # int8 scales are read in fp16, and a weight between two values may go to either
    off = (found - wanted).abs() > 1e-3 * weight.abs().max()
    assert off.float().mean() < 0.01
    assert (found - weight).norm() / weight.norm() < {"nf4": 0.11, "fp4": 0.13, "int8": 0.01}[kind]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_those_of_a_plain_model_with_the_rounded_weights(kind, dtype):
    policy = policy_of(kind, dtype)
    plain = tiny.causal_lm("llama", **WIDE).to(dtype)
    inner = dict(policy.causal_lm().named_modules())
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            stored = inner[name].base_layer.weight
            module.weight.data = kernels.dequantise(stored, dtype)
    rows = tiny.random_sequences()
    found = forward(policy.eval(), pack(rows)).logprobs.split([len(r) for r in rows])
    for row, ours in zip(rows, found):
        logits = plain(input_ids=row.input_ids[None]).logits[0].float()
        wanted = logits[:-1].log_softmax(-1).gather(1, row.input_ids[1:, None])[:, 0]
        gap = (ours[1:] - wanted)[row.loss_mask[1:]].abs()
        assert gap.max() < (1e-4 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("kind", TYPES)
def test_training_and_evaluation_have_the_same_bits_and_leave_the_weights_alone(kind):
    policy = policy_of(kind)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    batch = pack(tiny.random_sequences())
    trained = forward(policy.train(), batch).logprobs
    with torch.no_grad():
        evaluated = forward(policy.eval(), batch).logprobs
        again = forward(policy.train(), batch).logprobs
    assert torch.equal(trained, evaluated)
    assert torch.equal(trained, again)
    after = policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_are_those_of_the_rounded_weight(kind):
    layer = nn.Linear(64, 48)
    stored = quantized._stored(layer, section(kind), CPU, torch.float32)
    weight = kernels.dequantise(stored.weight, torch.float32)
    x = torch.randn(2, 5, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out, wanted = stored(x), torch.nn.functional.linear(y, weight, layer.bias)
    assert torch.allclose(out, wanted, atol=1e-6)
    (out * out.detach().cos()).sum().backward()
    (wanted * wanted.detach().cos()).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_does_not_depend_on_the_others(kind):
    """bitsandbytes' int8 layer treats columns apart in which any row has a large number."""
    stored = quantized._stored(nn.Linear(64, 32), section(kind), CPU, torch.float32)
    rows = torch.randn(5, 64)
    outlier = torch.cat([rows, 100 * torch.ones(1, 64)])
    with torch.no_grad():
        assert torch.allclose(stored(rows), stored(outlier)[:5], atol=1e-6)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantised_once_per_generation_gives_the_same_bits(kind, dtype, monkeypatch):
    policy = policy_of(kind, dtype).eval()
    batch = pack(tiny.random_sequences())
    with torch.no_grad():
        apart = forward(policy, batch).logprobs
        with kernels.dense(policy, dtype):
            assert all(m.dense is not None for m in kernels.quantised_layers(policy))
            together = forward(policy, batch).logprobs
            with kernels.dense(policy, dtype):  # nested
                pass
            assert kernels.quantised_layers(policy)[0].dense is not None
    assert torch.equal(apart, together)
    assert all(m.dense is None for m in kernels.quantised_layers(policy))
    monkeypatch.setattr(kernels, "free_memory", lambda device: 1000)
    with kernels.dense(policy, dtype):
        assert all(m.dense is None for m in kernels.quantised_layers(policy))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("memory", [10**12, 0])
def test_sampled_logprobs_are_those_of_a_forward_pass(kind, memory, monkeypatch):
    monkeypatch.setattr(kernels, "free_memory", lambda device: memory)
    policy = policy_of(kind)
    torch.manual_seed(3)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            p.data = 0.1 * torch.randn_like(p)
    params = SamplingParams(max_new_tokens=8, stop_token_ids=())
    prompts = [[4, 5, 6], [7, 8], [4, 5, 6]]
    kept: list[bool] = []

    def finished(place, rollout):
        kept.append(kernels.quantised_layers(policy)[0].dense is not None)

    rollouts = NativeSampler(policy, 8).generate(prompts, params, [0, 1, 2], finished)
    assert kept == [memory > 0] * 3
    rows = [
        tiny.Sequence(torch.tensor(p + r.response_ids), torch.arange(len(p) + 8) >= len(p))
        for p, r in zip(prompts, rollouts)
    ]
    batch = pack(rows)
    wanted = forward(policy.eval(), batch).logprobs[batch.loss_mask]
    found = torch.tensor([x for r in rollouts for x in r.logprobs])
    assert (found - wanted).abs().max() < 1e-4


FAST = ("lora", "dora", "vera", "ia3", "loreft", "road", "trainable_tokens")
# settings that fit the tiny model
KEYS = {"c3a": {"block_size": 32}, "shira": {"r": 4}, "vblora": {"vector_length": 32}}
KEYS |= {
    "road": {"group_size": 8},
    "waveft": {"n_frequency": 20},
    "trainable_tokens": {"token_indices": [5, 6, 11]},
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "name",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in quantized.BESIDE],
)
def test_adapters_compute_as_beside_the_rounded_weights(name, kind):
    """Some of PEFT's take the bytes of a quantised weight for its numbers."""
    model = tiny.causal_lm("llama", **WIDE)
    plain = copy.deepcopy(model).requires_grad_(False)
    quantise(model, section(kind), CPU, torch.float32)
    for path, module in model.named_modules():
        if kernels.is_quantised(module):
            whole = kernels.dequantise(module.weight, torch.float32)
            plain.get_submodule(path).weight.data = whole
    config = tiny.model_config("tiny", adapter={"type": name, **KEYS.get(name, {})})
    ours, theirs = (prepare_policy(m, config, CPU, torch.float32, 0) for m in (model, plain))
    pairs = [dict(p.named_parameters()) for p in (ours, theirs)]
    trained = [n for n, p in pairs[0].items() if p.requires_grad]
    assert trained
    generator = torch.Generator().manual_seed(3)
    for n in trained:
        moved = pairs[1][n].data + 0.05 * torch.randn(pairs[1][n].shape, generator=generator)
        pairs[0][n].data, pairs[1][n].data = moved.clone(), moved.clone()
    batch = pack(tiny.random_sequences())
    a, b = forward(ours, batch).logprobs, forward(theirs, batch).logprobs
    assert (a - b).abs().max() < 1e-4
    for logprobs in (a, b):
        logprobs.sum().backward()
    grads = [{n: p[n].grad for n in trained if p[n].grad is not None} for p in pairs]
    tiny.assert_same(grads[0], grads[1], rtol=1e-3)


@pytest.mark.parametrize("name", sorted({*ADAPTERS} - {*quantized.BESIDE, "none"}))
def test_other_adapters_are_refused(name):
    with pytest.raises(ValueError, match=f"an adapter of the type {name} reads the weights"):
        quantized.check_beside(name, section("nf4"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"nf4"',
        "null",
        "{}",
        '{"double_quant": true}',
        '{"type": "int3"}',
        '{"type": "nf4", "more": 1}',
    ],
)
def test_a_damaged_record_is_refused_in_one_line(text, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "_in_file", lambda name: None)
    (tmp_path / "quantization.json").write_text(text)
    with pytest.raises(ValueError, match=r"quantization\.json") as error:
        quantization_of(None, str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, -1.0])
def test_strange_weights_are_read(kind, value):
    model = tiny.causal_lm("llama", **WIDE)
    model.model.layers[0].mlp.up_proj.weight.data.fill_(value)
    model.model.layers[1].mlp.up_proj.weight.data[3] = 0
    policy = policy_of(kind, model=model)
    assert forward(policy, pack(tiny.random_sequences())).logprobs.isfinite().all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(kind, value):
    model = tiny.causal_lm("llama", **WIDE)
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(ValueError, match="not finite"):
        policy_of(kind, model=model)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(0, 64), (64,), (2, 1, 3, 64)])
def test_inputs_of_any_shape(kind, shape):
    stored = quantized._stored(nn.Linear(64, 7), section(kind), CPU, torch.float32)
    assert stored(torch.randn(shape)).shape == (*shape[:-1], 7)


def test_layers_that_do_not_fill_blocks_stay_whole():
    model = tiny.causal_lm("llama", hidden_size=64, intermediate_size=96)
    quantise(model, section("nf4"), CPU, torch.float32)
    names = {n for n, m in model.named_modules() if kernels.is_quantised(m)}
    assert not any("down_proj" in name for name in names)
    assert len(names) == 12
    assert not kernels.is_quantised(model.lm_head)
    with pytest.raises(ValueError, match="no layer of LlamaForCausalLM can be stored as nf4"):
        quantise(tiny.causal_lm("llama"), section("nf4"), CPU, torch.float32)
    small = tiny.causal_lm("llama")
    quantise(small, section("int8"), CPU, torch.float32)
    assert len(kernels.quantised_layers(small)) == 14


@pytest.mark.parametrize("kind", TYPES)
def test_transposed_layers_and_biases(kind):
    config = GPT2Config(vocab_size=61, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    for p in model.parameters():
        p.data = 0.3 * torch.randn_like(p)
    ids = torch.arange(4, 24)[None]
    row = tiny.Sequence(ids[0], torch.arange(20) > 0)
    before = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    biases = {n: p.clone() for n, p in model.named_parameters() if n.endswith("attn.bias")}
    policy = policy_of(kind, model=model)
    after = forward(policy, pack([row])).logprobs[1:]
    assert len(kernels.quantised_layers(policy)) == 8
    assert 0 < (after - before).norm() / before.norm() < 0.3
    kept = dict(policy.named_parameters())
    names = {n: f"model.base_model.model.{n.replace('.bias', '.base_layer.bias')}" for n in biases}
    assert biases
    assert all(torch.equal(p, kept[names[n]]) for n, p in biases.items())


def test_a_weight_that_the_models_code_reads_is_left_whole():
    model = tiny.causal_lm("llama", **WIDE)
    attention = type(model.model.layers[0].self_attn)

    class Reads(attention):
        def forward(self, hidden_states, *args, **keys):
            hidden_states = hidden_states.to(self.o_proj.weight.dtype)
            return super().forward(hidden_states, *args, **keys)

    model.model.layers[1].self_attn.__class__ = Reads
    quantise(model, section("nf4"), CPU, torch.float32)
    names = {n for n, m in model.named_modules() if kernels.is_quantised(m)}
    assert "model.layers.1.self_attn.o_proj" not in names
    assert "model.layers.0.self_attn.o_proj" in names
    assert type(model.model.layers[1].self_attn.o_proj) is nn.Linear


@pytest.mark.parametrize("kind", TYPES)
def test_copies_are_equal_and_independent(kind):
    policy = policy_of(kind)
    copied = copy.deepcopy(policy)
    batch = pack(tiny.random_sequences())
    assert torch.equal(forward(policy, batch).logprobs, forward(copied, batch).logprobs)
    layer, other = kernels.quantised_layers(policy)[0], kernels.quantised_layers(copied)[0]
    assert layer is not other
    assert layer.weight.data_ptr() != other.weight.data_ptr()
    assert hash_of_all(policy) == hash_of_all(copied)


def test_sizes_and_hashes():
    plain = tiny.causal_lm("llama", **WIDE)
    total, read = sum(p.numel() for p in plain.parameters()), weights_hash(plain)
    for kind, bits in (("nf4", 4.127), ("fp4", 4.127), ("int8", 8.5)):
        model = copy.deepcopy(plain)
        quantise(model, section(kind), CPU, torch.float32)
        assert kernels.num_parameters(model) == total
        count = sum(kernels.num_weights(m.weight) for m in kernels.quantised_layers(model))
        rest = 4 * (total - count)
        assert abs(8 * (kernels.stored_bytes(model) - rest) / count - bits) < 0.15
        assert weights_hash(model) != read
        (line,) = quantized.describe_quantised(model)
        assert line.startswith(f"quantised: 14 linear layers, {kind}")
    assert quantized.describe_quantised(plain) == []
    assert kernels.stored_as(plain) is None


def test_a_weight_too_large_for_int8_is_refused():
    model = tiny.causal_lm("llama", **WIDE)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] *= 1e6
    with pytest.raises(ValueError, match=r"128 x 64 has a weight that is not finite in fp16"):
        quantise(model, section("int8"), CPU, torch.float32)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("int4", "model.quantization.type"),
        ("NF4", "model.quantization.type"),
        (4, "model.quantization"),
        (True, "model.quantization"),
        ({"type": "int8", "double_quant": True}, "is for nf4 and fp4, not int8"),
        ({"type": "none", "double_quant": False}, "is for nf4 and fp4, not none"),
        ({"kind": "nf4"}, "kind is not a key of model.quantization"),
    ],
)
def test_wrong_settings(value, problem, tmp_path):
    from posttrain.runs.config import parse_config

    tree = tiny.run_config(tmp_path)
    tree["model"] = {"name": "x", "quantization": value}
    with pytest.raises(ValueError, match=problem) as error:
        parse_config(tree, "test")
    assert "\n" not in str(error.value)


def test_random_weights_are_not_quantised(tmp_path):
    tree = tiny.run_config(tmp_path)
    tree["model"]["quantization"] = "nf4"
    from posttrain.runs.config import parse_config

    with pytest.raises(ValueError, match="needs a pre-trained model"):
        parse_config(tree, "test")


def test_other_frameworks_names_are_answered(tmp_path):
    from posttrain.runs.config import parse_config

    tree = tiny.run_config(tmp_path)
    tree["model"] = {"name": "x", "load_in_4bit": True}
    with pytest.raises(ValueError, match=r"model\.quantization: nf4"):
        parse_config(tree, "test")


def test_a_machine_that_cannot_is_refused_in_one_line(monkeypatch):
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(quantized, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"pip install 'posttrain\[quantization\]'"):
            policy_of("nf4")
    assert find("bitsandbytes") is not None
    import bitsandbytes

    with monkeypatch.context() as patch:
        patch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
        with pytest.raises(ValueError, match="has no kernels for this machine's cpu") as error:
            policy_of("int8")
        assert "\n" not in str(error.value)
    from bitsandbytes import cextension

    with monkeypatch.context() as patch:
        patch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary("no library"))
        with pytest.raises(ValueError, match="has no kernels"):
            policy_of("nf4")


def test_a_library_that_gives_other_numbers_is_refused(monkeypatch):
    honest = torch.ops.bitsandbytes.dequantize_4bit
    ops = SimpleNamespace(dequantize_4bit=lambda *args: honest(*args) * 1.01)
    monkeypatch.setattr(kernels, "torch", SimpleNamespace(ops=SimpleNamespace(bitsandbytes=ops)))
    with pytest.raises(ValueError, match="de-quantises a layer of 32 x 64 wrongly here"):
        quantized._stored(nn.Linear(64, 32), section("nf4"), CPU, torch.float32)


def test_no_adapter_means_no_training():
    config = ModelConfig.model_validate({"name": "x", "adapter": "none", "quantization": "nf4"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, "quantization_of", lambda section, name: section)
        with pytest.raises(
            ValueError, match=r"weights in nf4 are frozen, but model\.adapter is none"
        ):
            with_quantization(config, "x")
        off = config.model_copy(update={"quantization": section("none")})
        assert with_quantization(off, "x").quantization == section("none")


def test_a_separate_reference_in_bf16_keeps_its_rotations(tmp_path, monkeypatch):
    """Rounded to bf16, the frequencies turn a token at 1,000 by more than a radian."""
    tiny.causal_lm("llama", **WIDE).save_pretrained(tmp_path)
    config = ModelConfig.model_validate({"name": "x", "dtype": "bfloat16", "adapter": "lora"})
    policy = load_policy(config, str(tmp_path), CPU, 0)
    fake = SimpleNamespace(get_vocab=dict)
    monkeypatch.setattr("posttrain.model.load.load_tokenizer", lambda name: fake)
    reference = load_reference(config, str(tmp_path), policy, fake)
    assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}
    batch = pack(tiny.random_sequences())
    wanted = forward(policy.eval(), batch).logprobs
    assert torch.equal(forward(reference, batch).logprobs, wanted)


def saved(folder: Path, kind: str) -> Path:
    """A model folder, or one that transformers and bitsandbytes have quantised."""
    model = tiny.causal_lm("llama", **WIDE)
    plain = folder / "plain"
    model.save_pretrained(plain)
    if kind == "none":
        return plain
    keys = {"load_in_8bit": True}
    if kind != "int8":
        keys = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": True,
        }
    stored = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**keys)
    )
    stored.save_pretrained(folder / kind)
    return folder / kind


@pytest.mark.parametrize("kind", TYPES)
def test_a_folder_that_is_quantised_already_is_read_as_it_is(kind, tmp_path):
    folder = str(saved(tmp_path, kind))
    config = ModelConfig.model_validate({"name": folder, "dtype": "float32", "adapter": "lora"})
    assert quantization_of(None, folder) == section(kind)
    read = load_policy(config, folder, CPU, 0)
    ours = config.model_copy(update={"quantization": section(kind)})
    made = load_policy(ours, str(tmp_path / "plain"), CPU, 0)
    batch = pack(tiny.random_sequences())
    gap = (forward(read, batch).logprobs - forward(made, batch).logprobs).abs().max()
    assert gap < 1e-4
    assert copy.deepcopy(read) is not read
    other = "int8" if kind != "int8" else "nf4"
    with pytest.raises(ValueError, match=rf"model\.quantization is {other}, but the files of"):
        quantization_of(section(other), folder)
    with pytest.raises(ValueError, match=r"are frozen, but model\.adapter is none"):
        with_quantization(ModelConfig.model_validate({"name": folder, "adapter": "none"}), folder)


def test_four_bits_stored_as_the_bytes_of_another_dtype(tmp_path):
    plain = str(saved(tmp_path, "none"))
    keys = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    stored = AutoModelForCausalLM.from_pretrained(
        plain,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(bnb_4bit_quant_storage=torch.bfloat16, **keys),
    )
    stored.save_pretrained(tmp_path / "bytes")
    folder = str(tmp_path / "bytes")
    config = tiny.model_config(folder, adapter="lora", dtype="float32")
    read = load_policy(config, folder, CPU, 0)
    how = {"type": "nf4", "double_quant": False}
    made = load_policy(
        tiny.model_config(plain, adapter="lora", dtype="float32", quantization=how), plain, CPU, 0
    )
    batch = pack(tiny.random_sequences())
    assert (forward(read, batch).logprobs - forward(made, batch).logprobs).abs().max() < 1e-4


def test_other_quantised_folders_are_refused_by_name(tmp_path):
    folder = saved(tmp_path, "none")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has quantised weights \(gptq"):
        load_policy(ModelConfig(name=str(folder)), str(folder), CPU, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_of_the_files_does_not_matter_and_the_reference_is_quantised_too(
    dtype, tmp_path, monkeypatch
):
    model = tiny.causal_lm("llama", **WIDE).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "narrow")
    model.float().save_pretrained(tmp_path / "wide")
    keys = {"dtype": dtype, "quantization": "nf4", "adapter": "lora"}
    config = ModelConfig.model_validate({"name": "x", **keys})
    narrow = load_policy(config, str(tmp_path / "narrow"), CPU, 0)
    wide = load_policy(config, str(tmp_path / "wide"), CPU, 0)
    assert hash_of_all(narrow) == hash_of_all(wide)
    kept = {p.dtype for n, p in narrow.named_parameters() if "norm" in n or "embed" in n}
    assert kept == {torch.float32 if dtype == "float32" else torch.bfloat16}
    fake = SimpleNamespace(get_vocab=dict)
    monkeypatch.setattr("posttrain.model.load.load_tokenizer", lambda name: fake)
    reference = load_reference(config, str(tmp_path / "wide"), narrow, fake)
    assert kernels.quantised(reference)
    assert not any(p.requires_grad for p in reference.parameters())
    batch = pack(tiny.random_sequences())
    wanted = forward(narrow.eval(), batch).logprobs
    assert (forward(reference, batch).logprobs - wanted).abs().max() < 1e-4


def classifier_folder(folder: Path, kind: str, **skips) -> str:
    """A reward model that transformers saved in few bits."""
    config = tiny.causal_lm("llama", **WIDE).config
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder / "whole")
    how = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True}
    if kind != "int8":
        how["bnb_4bit_quant_type"] = kind
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "whole",
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(**how, **skips),
    )
    model.save_pretrained(folder / "stored")
    return str(folder / "stored")


@pytest.mark.parametrize("kind", TYPES)
def test_a_score_of_a_quantised_classifier_does_not_depend_on_other_rows(kind, tmp_path):
    folder = classifier_folder(tmp_path, kind)
    model = classifier_scores.load(folder, CPU, torch.float32)
    layers = kernels.quantised_layers(model)
    assert len(layers) == 14
    assert {type(layer) for layer in layers} <= set(kernels.layer_classes())
    rows = [list(range(1, 10)), list(range(5, 14)), [60, 2, 50, 4, 7, 7, 7, 9, 30]]
    together = classifier_scores.score_ids(model, rows, 1000)
    alone = [classifier_scores.score_ids(model, [row], 1000)[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_a_quantised_classifier_is_trained_further(kind, tmp_path):
    folder = classifier_folder(tmp_path, kind)
    config = tiny.model_config(folder, adapter="lora", dtype="float32")
    policy = load_policy(config, folder, CPU, 0, scores=True)
    add_scoring_head(policy, folder)
    row = tiny.random_sequences()[0]
    ours = forward(policy.eval(), pack([row]), head=True).scores[-1]
    model = classifier_scores.load(folder, CPU, torch.float32)
    (theirs,) = classifier_scores.score_ids(model, [row.input_ids.tolist()], 1000)
    assert float(ours.detach()) == pytest.approx(theirs, abs=1e-5)


def test_a_head_in_few_bits_is_refused(tmp_path):
    folder = classifier_folder(tmp_path, "int8", llm_int8_skip_modules=["none"])
    with pytest.raises(ValueError, match=r"holds score\.weight in few bits"):
        saved_head(Path(folder))


@pytest.mark.parametrize("trained", ["none", *TYPES])
@pytest.mark.parametrize("read", ["none", *TYPES])
def test_edits_are_read_on_weights_that_are_stored_otherwise(trained, read, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "edits"
    tiny.causal_lm("llama", **WIDE).save_pretrained(base)
    folder.mkdir()
    adapter = {"type": "loreft", "rank": 2, "positions": "f1+l1"}
    keys = {"adapter": adapter, "quantization": trained, "dtype": "float32"}
    policy = load_policy(tiny.model_config(str(base), **keys), str(base), CPU, 0)
    tokenizer = SimpleNamespace(pad_token_id=0, save_pretrained=lambda folder: None)
    models = Models(policy, tokenizer, [3])
    save_model(folder, models, gather_weights(models))
    keys = {"adapter": "loreft", "quantization": read, "dtype": "float32"}
    again = load_policy(tiny.model_config(str(folder), **keys), str(folder), CPU, 0)
    assert (kernels.stored_as(again) or {"type": "none"})["type"] == read
