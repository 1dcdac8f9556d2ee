"""Tiny random models of transformers' architectures, and what is measured of each.

`python scripts/architecture_table.py` writes docs/architectures.md from these measurements, and
tests/integration/test_architectures.py holds them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from more_architectures import MORE
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from posttrain.common.batch import Sequence, pack
from posttrain.model.classifiers import classifier_class, has_own_classifier
from posttrain.model.forward import forward
from posttrain.model.heads import add_scoring_head
from posttrain.model.load import load_classifier, prepare_policy
from posttrain.model.models import Models
from posttrain.model.save import gather_weights, save_model
from posttrain.model.trial import check_saving
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams

VOCAB, STOP, LIMIT = 97, 3, 160
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LIMIT,
    "bos_token_id": None,
    "eos_token_id": STOP,
    "pad_token_id": 0,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LIMIT, "n_inner": 48}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
GATED = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "num_hidden_layers": 4}
GATED |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
NARROW = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
NARROW |= {"v_head_dim": 8, "num_key_value_heads": 4}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED |= {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
LONG: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4}
LONG |= {"long_factor": [4.0, 5.0, 6.0, 7.0], "original_max_position_embeddings": 48}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
YARN |= {"original_max_position_embeddings": 40}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"rope_theta": 1e4, "original_max_position_embeddings": 32}
WINDOW = {"sliding_window": 16}
HEADS = {"head_dim": 8}
NEXT = ["sliding_attention", "full_attention"]

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", GPT),
    "GPT-Neo": (
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "window_size": 16}
        | {"attention_types": [[["global", "local"], 1]]},
    ),
    "GPT-J": ("gptj", GPT | {"rotary_dim": 8}),
    "CodeGen": ("codegen", GPT | {"rotary_dim": 8, "n_ctx": LIMIT}),
    "GPT-BigCode": ("gpt_bigcode", GPT | {"multi_query": True}),
    "GPT-NeoX, Pythia": ("gpt_neox", {"rotary_pct": 0.25}),
    "GPT-NeoX-Japanese": ("gpt_neox_japanese", {"rotary_pct": 0.5}),
    "OPT": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "OPT-350m": (
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "BLOOM": ("bloom", {"n_layer": 2, "n_head": 4}),
    "MPT": (
        "mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": LIMIT},
    ),
    "XGLM": ("xglm", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    "BioGPT": ("biogpt", {}),
    "Phi": ("phi", {"partial_rotary_factor": 0.5}),
    "Phi-3": ("phi3", WINDOW),
    "Phi-3 (longrope)": (
        "phi3",
        {"original_max_position_embeddings": 48, "rope_parameters": LONG},
    ),
    "PhiMoE": ("phimoe", LOCAL),
    "Llama 1, 2": ("llama", {"num_key_value_heads": 4}),
    "Llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "Llama (dynamic rope)": (
        "llama",
        {"rope_parameters": DYNAMIC, "max_position_embeddings": 64},
    ),
    "Llama (yarn)": ("llama", {"rope_parameters": YARN}),
    "Llama 4 (text)": (
        "llama4_text",
        HEADS
        | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
        | {"attention_chunk_size": 16, "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    ),
    "Mistral": ("mistral", WINDOW),
    "Mixtral": ("mixtral", LOCAL),
    "Ministral": ("ministral", WINDOW | HEADS),
    "Qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen2 (windows)": ("qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "Qwen2-MoE": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 24}),
    "Qwen3": ("qwen3", HEADS),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS | HEADS),
    "Qwen3-Next": (
        "qwen3_next",
        EXPERTS | HEADS | GATED | {"shared_expert_intermediate_size": 24},
    ),
    "Gemma": ("gemma", HEADS),
    "Gemma 2": ("gemma2", HEADS | WINDOW | {"query_pre_attn_scalar": 8}),
    "Gemma 3": ("gemma3_text", HEADS | WINDOW | {"query_pre_attn_scalar": 8}),
    "Gemma 3n": (
        "gemma3n_text",
        HEADS
        | WINDOW
        | {"num_hidden_layers": 4, "hidden_size_per_layer_input": 8, "laurel_rank": 8}
        | {"vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 2, "altup_num_inputs": 2}
        | {"layer_types": NEXT * 2, "activation_sparsity_pattern": [0.0] * 4},
    ),
    "SmolLM3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", WINDOW | {"num_hidden_layers": 4}),
    "OLMoE": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "Granite": (
        "granite",
        {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}
        | {"embedding_multiplier": 3.0},
    ),
    "Granite-MoE": ("granitemoe", LOCAL | {"logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "Cohere": ("cohere", {"logit_scale": 0.25, "use_qk_norm": True}),
    "Cohere 2": ("cohere2", HEADS | WINDOW | {"logit_scale": 0.25, "num_hidden_layers": 4}),
    "StableLM": (
        "stablelm",
        {"use_parallel_residual": False, "qk_layernorm": True, "use_qkv_bias": True},
    ),
    "Nemotron": ("nemotron", HEADS),
    "Falcon": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, "bias": False},
    ),
    "Falcon (alibi)": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "parallel_attn": False}
        | {"alibi": True, "bias": True},
    ),
    "StarCoder2": ("starcoder2", WINDOW),
    "DeepSeek-V2": ("deepseek_v2", NARROW | ROUTED | {"topk_method": "greedy"}),
    "DeepSeek-V3": ("deepseek_v3", NARROW | ROUTED),
    "GLM-4": ("glm4", HEADS),
    "GLM-4-MoE": ("glm4_moe", HEADS | ROUTED),
    "EXAONE 4": ("exaone4", WINDOW | {"num_hidden_layers": 4, "sliding_window_pattern": 2}),
    "MiniCPM3": ("minicpm3", NARROW | {"dim_model_base": 16, "scale_emb": 2, "scale_depth": 1.0}),
    "Apertus": ("apertus", {}),
    "gpt-oss": ("gpt_oss", LOCAL | HEADS | WINDOW),
    "Doge": ("doge", {"keep_window_size": 128}),
    "Helium": ("helium", HEADS),
    "ERNIE 4.5": ("ernie4_5", HEADS),
    "Seed-OSS": ("seed_oss", HEADS),
    "Arcee": ("arcee", HEADS),
    "Hunyuan": ("hunyuan_v1_dense", HEADS),
    "Persimmon": ("persimmon", {}),
    "MiniMax": (
        "minimax",
        HEADS
        | {"num_local_experts": 2, "block_size": 16, "num_hidden_layers": 2}
        | {"layer_types": ["linear_attention", "full_attention"]},
    ),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}),
    "Falcon-H1": (
        "falcon_h1",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
        | {"mamba_n_groups": 1},
    ),
    "Jamba": (
        "jamba",
        {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2}
        | {"attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
        | {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    ),
    "Mamba": ("mamba", {"state_size": 8}),
    "Mamba 2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
} | MORE


def causal_lm(name: str, dropout: bool = False) -> Any:
    """A tiny random model of an architecture, with weights large enough to matter."""
    kind, changes = ARCHITECTURES[name]
    config = AutoConfig.for_model(kind, **(SHAPE | changes))
    for key, value in list(vars(config).items()):
        if isinstance(value, float) and ("drop" in key or "jitter" in key) and not dropout:
            setattr(config, key, 0.0)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    recurrent = ("A_log", "dt_bias", "dt_proj.bias", ".D", "conv1d")
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if any(part in key for part in recurrent) or not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "e_score_correction_bias" in key:  # persistent, and read by the router
                tensor.copy_(noise * 0.1)
            elif key in dict(model.named_parameters()):
                if tensor.dim() == 1:
                    tensor.add_(noise * 0.2)
                else:
                    embeds = any(part in key for part in ("embed", "wte", "wpe"))
                    tensor.copy_(noise * (0.5 if embeds else 1.6 / tensor.shape[-1] ** 0.5))
    return model.eval()


def policy(name: str, **keys: Any) -> Any:
    """The architecture as a policy."""
    config = tiny.model_config("tiny", **keys)
    return prepare_policy(causal_lm(name), config, tiny.CPU, torch.float32, 0)


def rows() -> list[Sequence]:
    """Three sharers of a prompt, and rows on both sides of windows, chunks and rope limits."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(4, VOCAB, (n,), generator=generator)  # noqa: E731
    shared, result = draw(20), []
    for prompt, completion in ((20, 4), (20, 9), (20, 14), (3, 30), (40, 10), (50, 20)):
        ids = torch.cat([shared if prompt == 20 else draw(prompt), draw(completion)])
        result.append(Sequence(ids, torch.arange(len(ids)) >= prompt))
    return result


def own_logprobs(name: str, model: Any, row: Sequence) -> Tensor:
    """Log-probs [T] of a row from transformers, 0 outside the loss mask."""
    if "dynamic" in name:  # as in a fresh model, since this rotation remembers longer rows
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    logits = model(row.input_ids[None], use_cache=False).logits[0].float().log_softmax(-1)
    picked = logits[:-1].gather(1, row.input_ids[1:, None])[:, 0]
    return torch.cat([picked.new_zeros(1), picked]) * row.loss_mask


def loss_difference(name: str, model: Any) -> tuple[float, float]:
    """Largest difference of log-probs, and of gradients relative to the largest gradient."""
    theirs, given = causal_lm(name), rows()
    got = forward(model, pack(given)).logprobs
    wanted = torch.cat([own_logprobs(name, theirs, row) for row in given])
    got.sum().backward()
    wanted.sum().backward()
    ours = dict(model.causal_lm().named_parameters())
    pairs = [(ours[key].grad, p.grad) for key, p in theirs.named_parameters() if p.grad is not None]
    largest = max(float(b.abs().max()) for _, b in pairs)
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    return float((got - wanted).detach().abs().max()), worst / largest


def greedy_matches(name: str, model: Any, count: int = 10) -> tuple[int, int, str]:
    """Completions equal to `generate`'s, of how many, and how they were sampled."""
    prompts = [row.input_ids.tolist() for row in rows()]
    prompts = [prompts[0], prompts[3][:3], prompts[3][:3], prompts[5][:46]]
    sampler = NativeSampler(model, 3)
    params = SamplingParams(count, (), temperature=0.0)
    rollouts = sampler.generate(prompts, params, [0] * len(prompts))
    same = 0
    for prompt, rollout in zip(prompts, rollouts):
        theirs = causal_lm(name)
        theirs.generation_config = GenerationConfig()
        text = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
            use_cache=sampler.way.cached,
        )
        same += text[0, len(prompt) :].tolist() == rollout.response_ids
    own = "by `generate`" if sampler.way.generated else "own cache"
    return same, len(prompts), "together" if sampler.batched else own


def models_of(model: Any) -> Models:
    """The policy with a tokenizer that writes no file."""
    tokenizer = SimpleNamespace(pad_token_id=0, save_pretrained=lambda folder: None)
    return Models(model, tokenizer, [STOP])


def score_difference(name: str) -> float:
    """Largest difference of a reward model's scores from those of transformers' classifier."""
    model = policy(name)
    add_scoring_head(model, None)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape))
    models = models_of(model)
    check_saving(models)
    given = rows()
    batch = pack(given)
    scores = forward(model, batch, head=True).scores[batch.last_tokens()]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_model(Path(folder), models, gather_weights(models))
        theirs, missing = load_classifier(folder, torch.float32)
        assert not missing
        wanted = [theirs(row.input_ids[None]).logits[0, 0] for row in given]
    return float((scores - torch.stack(wanted)).abs().max())


@dataclass
class Verdict:
    """One row of the table."""

    name: str
    model_type: str
    packed: str
    samples: str
    reward_model: str
    logprobs: float
    gradients: float


def verdict(name: str) -> Verdict:
    """Everything of the table but speed, measured; raises AssertionError if something is wrong."""
    model = policy(name)
    logprobs, gradients = loss_difference(name, model)
    assert logprobs < 2e-4, (name, logprobs)
    assert gradients < 1e-3, (name, gradients)
    same, count, samples = greedy_matches(name, model)
    assert same == count, (name, same)
    check_saving(models_of(model))
    packed = "yes" if model.unpacked is None else "no"
    if model.rope_limit is not None and model.unpacked is None:
        packed = f"to {model.rope_limit} tokens"
    try:
        classifier_class(model.causal_lm().config)
        assert score_difference(name) < 2e-4, name
        reward = "yes" if has_own_classifier(model.causal_lm().config) else "here only"
    except ValueError as error:
        refusals = ("no sequence classifier", "other scores", "could not be read back")
        if not any(text in str(error) for text in refusals):
            raise
        reward = "no"
    kind = ARCHITECTURES[name][0]
    return Verdict(name, kind, packed, samples, reward, logprobs, gradients)
