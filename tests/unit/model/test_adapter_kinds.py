"""Every adapter that comes through PEFT, held to the promises that a LoRA keeps."""

from __future__ import annotations

import copy
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf_models
import peft
import pytest
import tiny
import torch
from conftest import ROOT
from damage import save_model_folder
from repeats import choice
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.common.batch import Sequence, pack
from posttrain.model.adapters import ADAPTERS, LORA, PEFT, REFUSED, starts
from posttrain.model.adapters.lora import MUTATING
from posttrain.model.adapters.peft import KINDS, load_adapter
from posttrain.model.adapters.peft_kinds import NOT_OFFERED, STARTS_ELSEWHERE, fields_of
from posttrain.model.adapters.saved import check_plain, saved_section, with_adapter
from posttrain.model.config import ModelConfig
from posttrain.model.forward import forward
from posttrain.model.kernels.quantized import dequantise, is_quantised
from posttrain.model.load import load_policy, load_tokenizer
from posttrain.model.models import Models
from posttrain.model.quantized import BESIDE, with_quantization
from posttrain.model.save import gather_weights, restore_weights, save_model
from posttrain.model.trial import check_saving

SMALL: dict[str, dict[str, Any]] = {
    "adamss": {"r": 4, "num_subspaces": 2},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 20},
    "loha": {"r": 2},
    "lokr": {"r": 2},
    "oft": {"oft_block_size": 8},
    "road": {"group_size": 8},
    "tinylora": {"u": 6},
    "trainable_tokens": {"token_indices": [5, 6, 11]},
    "unilora": {"theta_d_length": 32},
    "vblora": {"num_vectors": 16, "vector_length": 8},
    "vera": {"r": 8},
    "waveft": {"n_frequency": 20},
}
"""Settings that fit a width of 32; of others a rank of 4, if they have one."""
RANKED = ("deft", "delora", "glora", "gralora", "hira", "hra", "lora", "rslora", "dora", "pissa")
RANKED += ("olora", "miss", "peanut", "randlora", "shira")
FAST = ("lora", "dora", "pissa", "vera", "ia3", "oft", "ln_tuning", "trainable_tokens", "vblora")
"""Each differs from the others in how it is stored; the rest take their turn in make test-slow."""
OFFERED = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name, entry in ADAPTERS.items()
    if entry in (LORA, PEFT)
]
CHANGES = {"unilora": (1e-6, 1e-3), "vblora": (1e-4, 1e-2)}
"""Nats by which the two that begin elsewhere change the model at their start."""
ROWS = [
    Sequence((torch.arange(n) * step + n) % 250, torch.arange(n) > 2)
    for n, step in ((24, 11), (9, 7), (17, 3))
]


def settings(kind: str) -> dict[str, Any]:
    rank = {"r": 4} if kind in RANKED else {}
    return {"type": kind} | rank | SMALL.get(kind, {})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_folder(tmp_path_factory.mktemp("base") / "model")


def load(folder: Path, adapter: Any = None, dtype: str = "float32") -> Models:
    keys = {} if adapter is None else {"adapter": adapter}
    config = ModelConfig(name=str(folder), dtype=dtype, device="cpu", **keys)
    config = with_adapter(config, str(folder))
    policy = load_policy(config, str(folder), tiny.CPU, seed=0)
    return Models(policy, load_tokenizer(str(folder)), [3])


@cache
def plain_logprobs(base: Path) -> torch.Tensor:
    return logprobs(load(base, "none"))


@torch.no_grad()
def logprobs(models: Models, rows: list[Sequence] = ROWS) -> torch.Tensor:
    models.policy.eval()
    return forward(models.policy, pack(rows)).logprobs


@torch.no_grad()
def peft_logprobs(base: Path, folder: Path) -> torch.Tensor:
    """What PEFT and transformers compute from a folder, each row on its own."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers_logprobs(peft.PeftModel.from_pretrained(model, folder).eval())


@torch.no_grad()
def transformers_logprobs(model: Any) -> torch.Tensor:
    parts = []
    for row in ROWS:
        logits = model(input_ids=row.input_ids[None]).logits[0, :-1]
        picked = logits.log_softmax(-1).gather(1, row.input_ids[1:, None])[:, 0]
        parts.append(torch.cat([torch.zeros(1), picked]) * row.loss_mask)
    return torch.cat(parts)


def gradients(models: Models, batches: list[list[Sequence]]) -> dict[str, torch.Tensor]:
    models.policy.train()
    for rows in batches:
        (-forward(models.policy, pack(rows)).logprobs.sum()).backward()
    taken = {}
    for name, parameter in models.trainable().items():
        assert parameter.grad is not None, name
        taken[name], parameter.grad = parameter.grad, None
    return taken


def move(models: Models) -> None:
    """Change every trained tensor, as steps would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in models.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))


@dataclass
class Trained:
    """A policy after a step, what it computed before, and its checkpoint."""

    kind: str
    models: Models
    start: torch.Tensor
    folder: Path


@pytest.fixture(scope="module", params=OFFERED)
def trained(request: Any, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Tests of one kind follow one another, since its scope is the module."""
    kind = request.param
    models = load(base, settings(kind))
    models.keep_reference()
    check_saving(models)
    start = logprobs(models)
    move(models)
    folder = tmp_path_factory.mktemp(kind)
    save_model(folder, models, gather_weights(models))
    return Trained(kind, models, start, folder)


def test_it_begins_as_the_base_and_has_gradients_everywhere(base, trained):
    change = float((trained.start - plain_logprobs(base)).abs().max())
    assert set(CHANGES) == set(STARTS_ELSEWHERE)
    if trained.kind in CHANGES:
        low, high = CHANGES[trained.kind]
        assert low < change < high
    else:
        assert torch.allclose(trained.start, plain_logprobs(base), atol=1e-5)
    assert (logprobs(trained.models) - trained.start).abs().max() > 1e-4, "nothing was learnt"
    for name, gradient in gradients(trained.models, [ROWS]).items():
        assert gradient.any(), name


def test_neither_packing_nor_micro_batches_matter(trained):
    models = trained.models
    alone = torch.cat([logprobs(models, [row]) for row in ROWS])
    torch.testing.assert_close(logprobs(models), alone, atol=1e-5, rtol=1e-5)
    one, several = gradients(models, [ROWS]), gradients(models, [[row] for row in ROWS])
    tiny.assert_same(one, several, rtol=1e-4)
    models.policy.train()
    assert torch.equal(forward(models.policy, pack(ROWS)).logprobs, logprobs(models))


def test_its_checkpoint_is_what_was_trained(base, trained):
    kind, expected = trained.kind, logprobs(trained.models)
    alone = peft_logprobs(base, trained.folder)
    torch.testing.assert_close(alone, expected, atol=2e-5, rtol=1e-4)
    resumed = load(base, settings(kind))
    restore_weights(resumed, trained.folder)
    assert torch.equal(logprobs(resumed), expected)
    further = load(trained.folder)
    torch.testing.assert_close(logprobs(further), expected, atol=1e-5, rtol=1e-5)
    check_saving(further)


def test_it_merges_into_the_base(base, trained):
    if trained.kind == "beft":
        pytest.skip("adds a bias, for which a layer without one has no place")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = load_adapter(model, str(trained.folder)).merge_and_unload().eval()
    torch.testing.assert_close(
        transformers_logprobs(model), logprobs(trained.models), atol=2e-5, rtol=1e-4
    )
    assert (
        model.state_dict().keys() == AutoModelForCausalLM.from_pretrained(base).state_dict().keys()
    )


def test_the_reference_is_the_start(trained):
    now = logprobs(trained.models)
    with trained.models.reference():
        assert torch.equal(logprobs(trained.models), trained.start)
    assert torch.equal(logprobs(trained.models), now)


def test_a_run_on_its_checkpoint_can_repeat_its_recipe(trained):
    kind, folder = trained.kind, str(trained.folder)
    if kind in ("pissa", "olora"):  # what changed the base has become a plain LoRA
        assert saved_section(folder).type == "lora"
        with pytest.raises(ValueError, match=f"model.adapter is {kind}, but .* type lora"):
            with_adapter(ModelConfig(name=folder, adapter=settings(kind)), folder)
        return
    config = with_adapter(ModelConfig(name=folder, adapter=settings(kind)), folder)
    assert config.adapter.type == kind
    again = ModelConfig.model_validate(config.model_dump())
    assert with_adapter(again, folder).model_dump() == config.model_dump()


SHORT: list[dict[str, Any]] = [{"use_lora": True}, {"lora": {"r": 4}}, {"lora": {"lr_ratio": 16}}]
SHORT += [{"use_lora": True, "lora": {"r": 4}}, {"lora": {"type": "lora"}}]


@pytest.mark.parametrize("keys", SHORT, ids=str)
@pytest.mark.parametrize(
    "kind", choice(("vera", "loreft", "miss", "lora", "rslora", "dora"), ("loreft", "lora", "dora"))
)
def test_short_forms_ask_for_a_lora(base, keys, kind, tmp_path):
    adapter = {"rank": 2, "type": kind} if kind == "loreft" else settings(kind)
    models = load(base, adapter)
    save_model(tmp_path, models, gather_weights(models))
    config = ModelConfig.model_validate({"name": str(tmp_path), **keys})
    short = "lora" if "lora" in keys else "use_lora"
    untyped = "type" not in keys.get("lora", {})
    if kind == "lora" or (untyped and kind in ("rslora", "dora")):
        found = with_adapter(config, str(tmp_path)).adapter
        assert found.type == kind
        assert found.lr_ratio == keys.get("lora", {}).get("lr_ratio", 1)
        return
    said = rf"^model\.{short} asks for lora, but .* type {kind}, .*: remove model\.{short}, or"
    with pytest.raises(ValueError, match=said):
        with_adapter(config, str(tmp_path))


@pytest.mark.parametrize(("trained", "read"), [("bat", True), (True, "bat"), ("bat", "mini")])
def test_a_form_is_not_a_start(base, trained, read, tmp_path):
    """bat and mini are other ways to compute, under the key by which other types name a start."""
    models = load(base, {"type": "miss", "r": 4, "init_weights": trained})
    save_model(tmp_path, models, gather_weights(models))
    for written, problem in ((trained, None), (read, f"init_weights is {read}, but .* {trained}")):
        adapter = {"type": "miss", "r": 4, "init_weights": written}
        config = ModelConfig.model_validate({"name": str(tmp_path), "adapter": adapter})
        if problem is None:
            found = with_adapter(config, str(tmp_path)).adapter.model_dump()
            assert found.get("init_weights", True) == trained
            continue
        with pytest.raises(ValueError, match=problem):
            with_adapter(config, str(tmp_path))


@pytest.mark.parametrize("kind", ["vera", "ln_tuning", "oft", "lora"])
def test_in_bf16_a_checkpoint_is_read_as_it_was_trained(base, kind, tmp_path):
    models = load(base, settings(kind), "bfloat16")
    move(models)
    save_model(tmp_path, models, gather_weights(models))
    assert torch.equal(logprobs(load(tmp_path, dtype="bfloat16")), logprobs(models))


def test_every_kind_of_peft_is_offered_or_refused():
    known = {kind.value.lower() for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    ours = {name for name, entry in ADAPTERS.items() if entry == PEFT}
    assert known == ours | set(REFUSED) | {"lora"}
    assert not ours & set(REFUSED)
    assert set(KINDS) == {name.upper() for name in ours} | {"LORA"}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_offered_is_refused_with_the_reason(kind):
    for written in (kind, {"type": kind}, kind.upper()):
        with pytest.raises(ValueError, match="is not offered: ") as caught:
            ModelConfig(name="m", adapter=copy.deepcopy(written))
        assert REFUSED[kind] in str(caught.value)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"type": "vera", "rnak": 4}, r"rnak: vera has no such key; its keys are: r, "),
    ({"type": "vera", "d_inital": 0.1}, r"no such key; did you mean d_initial"),
    ({"type": "vera", "lr_ratio": 4}, r"lr_ratio: vera has no such key"),
    ({"type": "vera", "task_type": "CAUSAL_LM"}, r"task_type: vera has no such key"),
    ({"type": "vera", "r": "eight"}, r"adapter.r: input should be a valid integer"),
    ({"type": "vera", "r": True}, r"adapter.r: input should be a valid integer"),
    ({"type": "vera", "r": 4.5}, r"adapter.r: input should be a valid integer"),
    ({"type": "vera", "d_initial": float("nan")}, r"d_initial: input should be a finite number"),
    ({"type": "vera", "r": 0}, r"PEFT cannot build vera with these settings"),
    ({"type": "vera", "r": -4}, r"PEFT cannot build vera with these settings"),
    ({"type": "vera", "target_modules": ["q_porj"]}, r"no layer q_porj; did you mean q_proj\?"),
    ({"type": "vera", "target_modules": "q_proj"}, r"write \[q_proj\], a list"),
    ({"type": "vera", "target_modules": ".*(q_proj"}, r"not a regular expression"),
    ({"type": "vera", "target_modules": []}, r"target_modules is empty"),
    ({"type": "vera", "layers_to_transform": 11}, r"has layers 0 to 1, not 11"),
    ({"type": "vblora", "save_only_topk_weights": True}, r"is not offered: what it saves"),
    ({"type": "adamss", "use_asa": True}, r"is not offered: it masks"),
    ({"type": "oft", "coft": True}, r"is not offered: it changes"),
    ({"type": "hira", "r": 4, "rank_pattern": {"q_proj": 2}}, r"not offered: PEFT computes the"),
    ({"type": "c3a", "block_size": 7}, r"block size should be a factor"),
    ({"type": "road", "variant": "road_9"}, r"Invalid variant road_9"),
    ({"type": "trainable_tokens"}, r"token_indices is missing"),
    ({"type": "trainable_tokens", "token_indices": [999]}, r"has no token 999: ids are 0 to"),
    ({"type": "trainable_tokens", "token_indices": [-1]}, r"has no token -1: ids are 0 to"),
    ({"type": "trainable_tokens", "token_indices": [5, 5]}, r"names an id more than once"),
    ({"type": "hira", "target_modules": ["lm_head"]}, r"output head of type .* not supported"),
    ({"type": "lora", "target_modules": ["mlp"]}, r"no lora for layers of the type LlamaMLP"),
    ({"type": "lora", "target_modules": "all_linear"}, r"write target_modules: all-linear"),
    ({"type": "lora", "exclude_modules": ["q_prj"]}, r"exclude_modules: the model has no layer"),
    ({"type": "lora", "target_modules": "all"}, r"write target_modules: all-linear"),
    ({"type": "lora", "target_modules": "q_proj, v_proj"}, r"write \[q_proj, v_proj\], a list"),
    ({"type": "lora", "exclude_modules": ".*"}, r"no layer is left to adapt"),
    ({"type": "lora", "exclude_modules": "all-linear"}, r"exclude_modules: no layer's full name"),
    (
        {"type": "lora", "target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
        r"no layer is left to adapt",
    ),
    (
        {"type": "lora", "target_modules": ["q_proj"], "modules_to_save": ["q_proj"]},
        r"target_modules: q_proj is trained whole .*: leave it out of one of them",
    ),
    ({"type": "lora", "layers_to_transform": [-1]}, r"has layers 0 to 1, not -1"),
    ({"type": "lora", "layers_to_transform": []}, r"layers_to_transform is empty"),
    (
        {"type": "lora", "layers_to_transform": [0], "target_modules": ".*q_proj"},
        r"needs names of layers, or all-linear",
    ),
    (
        {
            "type": "lora",
            "layers_to_transform": [0],
            "target_modules": ["model.layers.1.self_attn.q_proj"],
        },
        r"names model.layers.1.self_attn.q_proj, which is not in layers_to_transform \[0\]",
    ),
    ({"type": "lora", "rank_pattern": {"zorp": 3}}, r"rank_pattern.zorp: no layer's full name"),
    ({"type": "lora", "alpha_pattern": {"(": 3}}, r"alpha_pattern.\(: not a regular expression"),
    ({"type": "lora", "r": 33}, r"rank 33 is above the width of the adapted layers, 32"),
    ({"type": "lora", "rank_pattern": {"k_proj": 17}, "r": 4}, r"rank 17 is above .*, 16"),
    ({"type": "pissa", "r": 1000}, r"rank 1000 is above the width"),
    ({"type": "lora", "modules_to_save": ["score"]}, r"leave out score: the head"),
    ({"type": "lora", "modules_to_save": ["normm"]}, r"no layer normm; did you mean norm\?"),
    (
        {"type": "lora", "modules_to_save": ["norm"]},
        r"take norm for input_layernorm, post_attention_layernorm too: write .* model.norm",
    ),
    ({"type": "pissa", "target_modules": ["embed_tokens"]}, r"linear layers, not for embed_tokens"),
]


@pytest.mark.parametrize(("adapter", "problem"), REFUSALS)
def test_what_does_not_fit_is_named_in_one_line(base, adapter, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        load(base, adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "problem"),
    [
        ({"type": "lora", "init_lora_weights": "pissa_niter_4"}, "write type: pissa"),
        ({"type": "lora", "init_lora_weights": "olora"}, "write type: olora"),
        ({"type": "lora", "init_lora_weights": "eva"}, "eva needs passes over data"),
        ({"type": "lora", "init_lora_weights": "loftq"}, "is made for a quantised base"),
        ({"type": "lora", "init_lora_weights": False}, "would begin with a random change"),
        ({"type": "lora", "init_lora_weights": "orthogonal", "r": 3}, "needs an even rank"),
        ({"type": "pissa", "init_lora_weights": "gaussian"}, "pissa is a start of its own"),
        ({"type": "lora", "lr_ratio": 0}, "greater than 0"),
        ("full", "there is no type 'full'; write none"),
        ("qlora", "write lora with model.quantization: nf4"),
        ({"type": "LoRA+"}, "write lora with lr_ratio: 16"),
        ({"type": "reft"}, "there is no type 'reft'; write loreft"),
        (
            {"type": "loreft", "layers": "3;9"},
            r"expected all, or a list such as \[3, 9\], got '3;9'",
        ),
        ({"type": "loreft", "layers": 2}, "or a list such as .*, got 2"),
        ({"type": "loreft", "layers": [-1]}, r"or a list such as .*, got \[-1\]"),
        ({"type": "loreft", "layers": [True]}, r"or a list such as .*, got \[True\]"),
        ({"type": "loreft", "layers": []}, r"or a list such as .*, got \[\]"),
        ({"type": "loreft", "layers": [1, 1]}, "different layers from 0"),
    ],
)
def test_settings_that_no_model_can_have(adapter, problem):
    with pytest.raises(ValueError, match=problem):
        ModelConfig(name="m", adapter=adapter)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_what_changes_the_base_needs_its_weights_whole(base, kind):
    with pytest.raises(ValueError, match=r"bfloat16 would round.* set model.dtype: float32"):
        load(base, {"type": kind, "r": 4}, "bfloat16")


LORA_KEYS: dict[str, dict[str, Any]] = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "true": {"init_lora_weights": True},
    "excluded": {"exclude_modules": ["k_proj", "down_proj"]},
    "excluded by pattern": {"exclude_modules": r".*\.mlp\..*"},
    "by pattern": {"target_modules": r".*\.1\.self_attn\.[qv]_proj"},
    "a layer": {"layers_to_transform": [1]},
    "a layer's names": {"layers_to_transform": [0], "target_modules": ["q_proj", "up_proj"]},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 6},
        "alpha_pattern": {"q_proj": 9},
    },
    "biases": {"bias": "all"},
    "norms": {"modules_to_save": ["input_layernorm", "model.norm"]},
    "all norms": {"modules_to_save": ["input_layernorm", "post_attention_layernorm", "norm"]},
    "a layer whole": {"modules_to_save": ["q_proj"]},
    "head": {"modules_to_save": ["lm_head"]},
    "pissa by pattern": {"type": "pissa", "rank_pattern": {"q_proj": 2}},
    "pissa and norms": {"type": "pissa", "modules_to_save": ["model.norm"]},
    "olora of some": {"type": "olora", "target_modules": ["q_proj", "down_proj"]},
    "pissa with rank": {"type": "pissa", "r": 16, "alpha": 8, "target_modules": ["k_proj"]},
}


REPEATS = ("gaussian", "true", "excluded", "by pattern", "a layer", "norms")
REPEATS += ("pissa and norms", "pissa with rank")


@pytest.mark.parametrize("name", choice(LORA_KEYS, set(LORA_KEYS) - set(REPEATS)))
def test_keys_of_a_lora(base, name, tmp_path):
    adapter = {"type": "lora", "r": 4, "alpha": 8} | LORA_KEYS[name]
    models = load(base, adapter)
    assert torch.allclose(logprobs(models), plain_logprobs(base), atol=1e-5)
    check_saving(models)
    start = logprobs(models)
    models.keep_reference()
    move(models)
    expected = logprobs(models)
    save_model(tmp_path, models, gather_weights(models))
    torch.testing.assert_close(peft_logprobs(base, tmp_path), expected, atol=2e-5, rtol=1e-4)
    resumed = load(base, adapter)
    restore_weights(resumed, tmp_path)
    assert torch.equal(logprobs(resumed), expected)
    torch.testing.assert_close(logprobs(load(tmp_path)), expected, atol=1e-5, rtol=1e-5)
    with models.reference():
        assert torch.equal(logprobs(models), start)
    if adapter["type"] == "lora":
        config = ModelConfig(name=str(tmp_path), adapter=adapter)
        assert with_adapter(config, str(tmp_path)).adapter.type == "lora"


PATTERNS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "rank_pattern": 2, "alpha_pattern": 3},
    "loha": {"r": 4, "rank_pattern": 2, "alpha_pattern": 3},
    "lokr": {"r": 4, "rank_pattern": 2, "alpha_pattern": 3},
    "delora": {"r": 4, "rank_pattern": 2, "lambda_pattern": 3},
    "waveft": {"n_frequency": 20, "n_frequency_pattern": 10},
    "fourierft": {"n_frequency": 20, "n_frequency_pattern": 10},
    "c3a": {"block_size": 8, "block_size_pattern": 4},
}
"""Each type with patterns, and another value than its default."""


def test_every_pattern_of_peft_is_known():
    for kind, name in ((k, n) for k in ADAPTERS for n in fields_of_kind(k)):
        if name.endswith("_pattern") and name != "layers_pattern":
            assert name in PATTERNS.get(kind, {}) or (kind, name) in NOT_OFFERED


def fields_of_kind(kind: str) -> list[str]:
    entry = ADAPTERS[kind]
    return list(fields_of(kind)) if entry == PEFT or kind == "lora" else []


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        pytest.param(kind, key, marks=() if kind in ("lora", "c3a") else pytest.mark.slow)
        for kind, keys in PATTERNS.items()
        for key in keys
        if key.endswith("_pattern")
    ],
)
def test_keys_of_a_pattern_must_act_by_pefts_rule(base, kind, key):
    """Regular expressions for the end of a name; the first that matches counts, in any order."""
    keys = {name: x for name, x in PATTERNS[kind].items() if not name.endswith("_pattern")}
    keys |= {"type": kind, "target_modules": ["q_proj", "v_proj"]}
    value = PATTERNS[kind][key]

    def shapes(pattern: dict[str, Any]) -> list[Any]:
        policy = load(base, keys | {key: pattern}).policy
        scales = [getattr(module, "scaling", None) for module in policy.modules()]
        sizes = [tuple(p.shape) for p in policy.parameters() if p.requires_grad]
        lambdas = [float(p.detach()) for n, p in policy.named_parameters() if "lambda" in n]
        return [sizes, scales, lambdas]

    with pytest.raises(ValueError, match=rf"{key}.up_proj: no adapted layer .* are q_proj, v_proj"):
        shapes({"up_proj": value})
    with pytest.raises(ValueError, match=rf"{key}: q_proj and .* give .*0.self_attn.q_proj other"):
        shapes({"q_proj": value, r"layers\.0\.self_attn\.q_proj": 2 * value})
    plain, changed = shapes({}), shapes({"q_proj": value})
    assert plain != changed
    assert shapes({"[qk]_proj": value}) == changed
    assert shapes({"self_attn.q_proj": value, "q_proj": value}) == changed
    assert shapes({r"layers\.\d\.self_attn\.q_proj": value}) == changed


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(
    ("adapter", "problem"),
    [
        ({"init_lora_weights": "orthogonal", "r": 2}, "orthogonal draws in the dtype of the wei"),
        ({"modules_to_save": ["v_proj"]}, "v_proj cannot be trained whole, since .*0.self_attn.v"),
        ({"modules_to_save": ["self_attn"]}, "self_attn cannot be trained whole, since .*q_proj"),
        ({"type": "ia3", "modules_to_save": ["q_proj"]}, "q_proj cannot be trained whole"),
    ],
)
def test_what_needs_whole_weights_is_refused_on_quantised_ones(kind, adapter, problem, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = gguf_models.model_folder(tmp_path / "base")  # whose width is a multiple of 64
    config = ModelConfig(
        name=str(base), adapter={"type": "lora"} | adapter, quantization=kind, dtype="float32"
    )
    with pytest.raises(ValueError, match=problem) as caught:
        load_policy(config, str(base), tiny.CPU, seed=0)
    assert f"stored as {kind}: " in str(caught.value)
    assert "set model.quantization: none" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_layer_whole_is_not_also_adapted(base):
    names = load(base, {"type": "lora", "modules_to_save": ["q_proj"]}).trainable()
    assert any("q_proj.modules_to_save" in name for name in names)
    assert not any("q_proj.lora" in name for name in names)


def test_layers_and_patterns_choose_what_is_adapted(base):
    def adapted(**keys: Any) -> set[str]:
        names = load(base, {"type": "lora", "r": 4} | keys).trainable()
        return {name.partition("layers.")[2].partition(".lora_")[0] for name in names}

    everything = adapted()
    assert len(everything) == 14
    assert adapted(layers_to_transform=[1]) == {n for n in everything if n.startswith("1.")}
    attention = {name for name in everything if "self_attn" in name}
    assert adapted(exclude_modules=r".*\.mlp\..*") == attention
    assert adapted(target_modules=r".*\.0\..*_proj") == everything - adapted(
        layers_to_transform=[1]
    )
    ranks = load(base, {"type": "lora", "r": 4, "rank_pattern": {"q_proj": 2}}).trainable()
    assert {len(p) for n, p in ranks.items() if "q_proj.lora_A" in n} == {2}
    assert {len(p) for n, p in ranks.items() if "v_proj.lora_A" in n} == {4}


def test_pissa_takes_the_largest_singular_values(base):
    """The reference is written out from the paper's equations 2 to 4."""
    models = load(base, {"type": "pissa", "r": 4, "alpha": 8})
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layer: Any = models.policy.causal_lm().model.layers[1].mlp.up_proj
    weight = model.model.layers[1].mlp.up_proj.weight
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    main = (left[:, :4] * values[:4]) @ right[:4]
    low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(2 * high @ low, main, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.base_layer.weight, weight - main, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def tied(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose head is the embedding."""
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tied")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(str(base)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", MUTATING)
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"], r".*(lm_head|v_proj)"])
def test_a_start_does_not_take_the_embedding_along(base, tied, kind, targets, monkeypatch):
    adapter = {"type": kind, "r": 4, "target_modules": targets}
    with pytest.raises(ValueError, match=f"{kind} would change the weight of lm_head") as caught:
        load(tied, adapter)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(starts, "_shares_its_weight", lambda model: None)
    with pytest.raises(ValueError, match=rf"{kind} begins with a change of the model by [\d.]+ na"):
        load(tied, adapter)
    monkeypatch.undo()
    for folder, changed in ((base, {}), (tied, {"target_modules": ["q_proj"]})):
        models = load(folder, adapter | changed)
        assert torch.allclose(logprobs(models), logprobs(load(folder, "none")), atol=1e-5)


def test_a_start_of_another_machine_is_refused(base, tmp_path):
    """Singular vectors have no sign of their own: another library may give others."""
    models = load(base, {"type": "pissa", "r": 4})
    save_model(tmp_path, models, gather_weights(models))
    other = load(base, {"type": "pissa", "r": 4})
    name = next(iter(other.policy.model.lora_start))
    other.policy.model.lora_start[name] *= -1
    with pytest.raises(ValueError, match="cannot be resumed here: train its checkpoint further"):
        restore_weights(other, tmp_path)


@pytest.mark.parametrize(
    ("adapter", "problem"),
    [
        ({"type": "vera"}, "not an adapter of the type vera"),
        ({"type": "pissa"}, "not an adapter of the type pissa"),
        ({"type": "dora"}, "not an adapter of the type dora"),
        ({"type": "lora", "modules_to_save": ["norm"]}, r"not model\.adapter\.modules_to_save"),
        ({"type": "lora", "bias": "all"}, r"not model\.adapter\.bias"),
        ({"type": "lora", "rank_pattern": {"q_proj": 2}}, r"not model\.adapter\.rank_pattern"),
        ({"type": "lora", "alpha_pattern": {"q_proj": 2}}, r"not model\.adapter\.alpha_pattern"),
    ],
)
def test_engines_load_plain_loras_only(base, adapter, problem):
    with pytest.raises(ValueError, match=problem):
        check_plain(ModelConfig(name="m", adapter=adapter), str(base))
    check_plain(ModelConfig(name="m", adapter={"type": "rslora", "lr_ratio": 4}), str(base))


def test_the_page_lists_every_type():
    page = (ROOT / "docs/guide/adapters.md").read_text()
    names = (*ADAPTERS, *REFUSED, *(key for _, key in NOT_OFFERED))
    assert [name for name in names if f"`{name}`" not in page and name != "none"] == []


def test_the_page_lists_what_is_refused_on_quantised_weights():
    page = (ROOT / "docs/guide/adapters.md").read_text()
    part = page.partition("## On quantised weights")[2].partition("\n## ")[0]
    refused = {*ADAPTERS} - {*BESIDE, "none"}
    assert set(re.findall(r"`([a-z_0-9]+)`", part)) == refused


def test_a_change_at_the_start_is_reported(base, caplog):
    load(base, settings("vera"))
    assert "begins with a change" not in caplog.text
    load(base, settings("vblora"))
    assert "vblora begins with a change of the model: its log-probs differ by" in caplog.text
    load(base, {"type": "c3a", "block_size": 8, "init_weights": "gaussian"})
    assert "c3a begins with a change of the model" in caplog.text


@pytest.mark.parametrize("kind", ["vera", "randlora", "tinylora"])
def test_what_is_drawn_and_not_trained_must_be_drawn_again(base, kind, tmp_path):
    """With a seed; another version of torch may draw other numbers."""
    models = load(base, settings(kind))
    save_model(tmp_path, models, gather_weights(models))
    restore_weights(load(base, settings(kind)), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    drawn = next(
        n for n in tensors if any(part in n for part in ("vera_A", "randlora_A", "tinylora_A"))
    )
    save_file(tensors | {drawn: tensors[drawn] + 0.1}, file)
    with pytest.raises(ValueError, match="is not what this machine draws with the same seed"):
        restore_weights(load(base, settings(kind)), tmp_path)


@pytest.fixture(scope="module")
def wider(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose widths are multiples of the 64 numbers that nf4 stores together."""
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wider")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(str(base)).save_pretrained(folder)
    return folder


def load_nf4(folder: Path, adapter: dict[str, Any]) -> Models:
    keys = {"quantization": {"type": "nf4"}, "dtype": "float32", "device": "cpu"}
    config = ModelConfig.model_validate({"name": str(folder), "adapter": adapter, **keys})
    policy = load_policy(config, str(folder), tiny.CPU, seed=0)
    return Models(policy, load_tokenizer(str(folder)), [3])


@pytest.mark.parametrize("kind", OFFERED)
def test_on_quantised_weights_it_is_what_peft_computes_on_the_same_weights(wider, kind, tmp_path):
    if kind not in BESIDE:
        keys = {"name": str(wider), "adapter": settings(kind), "quantization": "nf4"}
        with pytest.raises(ValueError, match=rf"type {kind} reads the weights below it itself"):
            with_quantization(ModelConfig.model_validate(keys), str(wider))
        return
    models = load_nf4(wider, settings(kind))
    start = logprobs(models)
    move(models)
    save_model(tmp_path, models, gather_weights(models))
    dense = AutoModelForCausalLM.from_pretrained(wider, dtype=torch.float32)
    places = dict(dense.named_modules())
    for name, module in models.policy.causal_lm().named_modules():
        if is_quantised(module):
            weight = dequantise(module.weight, torch.float32)
            places[name.replace(".base_layer", "")].weight.data.copy_(weight)
    model = peft.PeftModel.from_pretrained(dense, tmp_path).eval()
    expected = transformers_logprobs(model)
    torch.testing.assert_close(logprobs(models), expected, atol=2e-5, rtol=1e-4)
    assert (logprobs(models) - start).abs().max() > 1e-4
