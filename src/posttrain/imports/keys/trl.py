"""Keys of TRL without effect on the result, and refused ones: patterns -> the reason."""

from __future__ import annotations

WITHOUT_EFFECT: dict[str, str] = {
    "packing_strategy padding_free eval_packing": "rows are always packed",
    "vllm_* use_transformers_* cache_implementation ds3_gather_for_generation": (
        "how completions are computed"
    ),
    "log_* num_completions_to_print": "what is printed",
    "precompute_ref_batch_size ignore_bias_buffers activation_offloading": "memory only",
    "lora_task_type dataset_streaming streaming is_encoder_decoder": (
        "follows from the model and the rows"
    ),
    "dataset_config_name": "see dataset_config",
}
REFUSED: dict[str, str] = {
    "f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau ld_alpha "
    "reference_free": "no counterpart",
    "model_init_kwargs* generation_kwargs* chat_template_kwargs*": (
        "not read: set the keys of model and rollout"
    ),
    "chat_template_path eos_token pad_token": "the tokenizer is not changed",
    "lora_target_parameters": "parameters outside of linear layers",
    "top_p top_k min_p repetition_penalty": "training samples from the whole distribution",
    "multi_objective_aggregation off_policy_mask_threshold top_entropy_quantile "
    "use_bias_correction_kl use_adaptive_entropy entropy_coef_* entropy_target "
    "reward_clip_range max_tool_calling_iterations shuffle_dataset num_generations_eval": (
        "no counterpart"
    ),
    "model_revision": "a hub name has no revision here: download it and give the folder",
    "teacher_* lmbda kd_* seq_kd": "distillation is not offered",
    "cast_lm_head_to_fp32": "log-probs are computed in float32",
}
