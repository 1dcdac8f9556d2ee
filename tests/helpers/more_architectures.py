"""Further architectures of `architectures`: most of the other causal ones that transformers has."""

from __future__ import annotations

from typing import Any

VOCAB, LIMIT = 97, 160
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LIMIT}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
NARROW = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
NARROW |= {"v_head_dim": 8, "num_key_value_heads": 4}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED |= {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
GATED = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "num_hidden_layers": 4}
GATED |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
INDEXED = {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 512}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
KIMI = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_token": 2}
KIMI |= {"layer_types": ["linear_attention", "full_attention"], "linear_head_dim": 8}
KIMI |= {"mlp_layer_types": ["dense", "sparse"], "linear_num_heads": 4, "q_lora_rank": None}
ZAMBA = {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4}
ZAMBA |= {"mamba_d_state": 8, "use_mamba_kernels": False, "attention_hidden_size": 64}
ZAMBA |= {"attention_head_dim": 16, "num_key_value_heads": 4}
WINDOW, HEADS = {"sliding_window": 16}, {"head_dim": 8}
SHARED = {"shared_expert_intermediate_size": 24}
NEXT = ["sliding_attention", "full_attention"]

MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "OpenAI GPT": ("openai-gpt", GPT),
    "CTRL": ("ctrl", GPT | {"dff": 48}),
    "PhiMoE (windows)": ("phimoe", LOCAL | WINDOW),
    "Mistral (wide windows)": ("mistral", {"sliding_window": 100}),
    "Gemma 2 (wide windows)": ("gemma2", HEADS | {"sliding_window": 70}),
    "Ministral 3": ("ministral3", HEADS),
    "Gemma 4": (
        "gemma4_text",
        HEADS
        | WINDOW
        | {"layer_types": NEXT * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
        | {"per_layer_config": {"01": {"head_dim": 16}, "03": {"head_dim": 16}}},
    ),
    "VaultGemma": ("vaultgemma", HEADS | WINDOW | {"query_pre_attn_scalar": 8}),
    "RecurrentGemma": (
        "recurrent_gemma",
        {"lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3},
    ),
    "Qwen3.5": ("qwen3_5_text", GATED | HEADS),
    "Qwen3.5-MoE": ("qwen3_5_moe_text", GATED | HEADS | EXPERTS | SHARED),
    "OLMo-Hybrid": ("olmo_hybrid", GATED),
    "FlexOLMo": ("flex_olmo", {"num_experts": 4, "num_experts_per_tok": 2}),
    "Granite-MoE (shared)": ("granitemoeshared", LOCAL | {"shared_intermediate_size": 24}),
    "Granite 4 (hybrid)": (
        "granitemoehybrid",
        LOCAL | MAMBA | {"shared_intermediate_size": 24, "layer_types": ["mamba", "attention"]},
    ),
    "Bamba": ("bamba", MAMBA | {"attn_layer_indices": [1], "mamba_expand": 2}),
    "Cohere 2 MoE": ("cohere2_moe", HEADS | WINDOW | {"num_experts": 4, "num_experts_per_tok": 2}),
    "CWM": ("cwm", HEADS | WINDOW | {"bos_token_id": 1}),
    "DBRX": (
        "dbrx",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": LIMIT}
        | {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 2.0}}
        | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "hidden_size": 32}},
    ),
    "DeepSeek-V3.2": ("deepseek_v32", NARROW | ROUTED | INDEXED),
    "GLM": ("glm", HEADS),
    "GLM-4.7-Flash": ("glm4_moe_lite", NARROW | ROUTED),
    "GLM-5": ("glm_moe_dsa", NARROW | ROUTED | INDEXED),
    "dots.llm1": ("dots1", ROUTED | HEADS),
    "ERNIE 4.5 MoE": (
        "ernie4_5_moe",
        HEADS
        | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}
        | {"moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    ),
    "EXAONE-MoE": (
        "exaone_moe",
        HEADS
        | WINDOW
        | ROUTED
        | {"num_experts": 4, "num_hidden_layers": 4, "sliding_window_pattern": 4},
    ),
    "Hunyuan-MoE": ("hunyuan_v1_moe", HEADS | {"num_experts": 4, "moe_topk": 2}),
    "HyperCLOVA X": ("hyperclovax", {}),
    "Jais 2": ("jais2", {}),
    "JetMoE": ("jetmoe", LOCAL | {"kv_channels": 8}),
    "Kimi Linear": ("kimi_linear", NARROW | KIMI | HEADS),
    "LFM2-MoE": (
        "lfm2_moe",
        EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    "LongCat-Flash": (
        "longcat_flash",
        NARROW
        | HEADS
        | {"num_layers": 1, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2}
        | {"expert_ffn_hidden_size": 24, "ffn_hidden_size": 48},
    ),
    "MiMo-V2-Flash": (
        "mimo_v2_flash",
        ROUTED
        | WINDOW
        | {"head_dim": 12, "v_head_dim": 8, "layer_types": NEXT}
        | {"mlp_layer_types": ["dense", "sparse"]},
    ),
    "MiniMax-M2": ("minimax_m2", HEADS | LOCAL),
    "NanoChat": ("nanochat", {}),
    "Solar Open": ("solar_open", ROUTED | HEADS),
    "AFMoE": (
        "afmoe",
        HEADS | WINDOW | EXPERTS | {"num_dense_layers": 1, "num_shared_experts": 1},
    ),
    "Aria (text)": (
        "aria_text",
        HEADS | {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    ),
    "BitNet": ("bitnet", {}),
    "DiffLlama": ("diffllama", {}),
    "HRM-Text": ("hrm_text", {"num_hidden_layers": 1, "H_cycles": 1, "L_cycles": 2}),
    "BERT (generation)": ("bert-generation", {"is_decoder": True}),
    "Falcon-Mamba": ("falcon_mamba", {"state_size": 8}),
    "Nemotron-H": (
        "nemotron_h",
        HEADS
        | {"layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 8}
        | {"mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1},
    ),
    "Zamba": ("zamba", ZAMBA | {"mamba_dt_rank": 4, "n_mamba_heads": 2}),
    "RWKV": ("rwkv", {"attention_hidden_size": 32, "context_length": LIMIT}),
    "xLSTM": ("xlstm", {"hidden_size": 128, "num_heads": 4, "num_blocks": 2, "chunk_size": 16}),
}
