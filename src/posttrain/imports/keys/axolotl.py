"""Keys of Axolotl without effect on the result, and refused ones: patterns -> the reason."""

from __future__ import annotations

WITHOUT_EFFECT: dict[str, str] = {
    "dataset_prepared_path dataset_shard_* skip_prepare_dataset dataset_keep_in_memory "
    "dataset_exact_deduplication push_dataset_to_hub streaming* num_dataset_shards_to_save "
    "shuffle_before_merging_datasets": "how rows are loaded",
    "sample_packing* eval_sample_packing pad_to_sequence_len multipack_real_batches "
    "batch_flattening group_by_length pretrain_multipack_* eval_batch_size": (
        "rows are always packed, without seeing each other"
    ),
    "flash_attention flash_attn* sdp_attention xformers_attention flex_attention* "
    "eager_attention sage_attention sdpa_varlen fused_attn_kernel lora_mlp_kernel "
    "lora_qkv_kernel lora_o_kernel lora_embedding_kernel chunked_cross_entropy* "
    "experts_implementation large_head_attention tiled_mlp* liger_* cut_cross_entropy "
    "unsloth_*": "speed or memory of the same formulas",
    "plugins* loss_watchdog_* gc_steps gc_collect_steps profiler_* gpu_memory_limit "
    "max_memory lora_on_cpu low_cpu_mem_usage selective_checkpointing* layer_offloading": (
        "memory, kernels or supervision"
    ),
    "wandb_* use_wandb mlflow_* use_mlflow comet_* use_comet trackio_* use_trackio "
    "use_tensorboard swanlab_* use_swanlab otel_* use_otel_metrics include_*": (
        "trackers: set trainer.logger"
    ),
    "model_type tokenizer_type processor_type tokenizer_config base_model_config "
    "is_*_derived_model tokenizer_use_fast tokenizer_legacy tokenizer_save_jinja_files "
    "type_of_model tokenizer_use_mistral_common": "the model's files say it",
    "strict gradio_* use_ray ray_* resources_per_worker device device_map world_size ddp "
    "special_tokens.pad_token torchdistx_path save_first_step hf_use_auth_token "
    "generate_samples num_generation_samples generation_* debug merge_* vllm.* "
    "eval_table_size eval_max_new_tokens peft_autocast_adapter_dtype fix_untrained_tokens "
    "processor_kwargs* qlora_sharded_model_loading": "how the program runs",
    "tensor_parallel_size dp_* sequence_parallel_degree context_parallel_size heads_k_stride "
    "ring_attn_func deepcompile": "how processes share the model; see docs/guide/gpus.md",
}
REFUSED: dict[str, str] = {
    "tokens special_tokens.* added_tokens_overrides* embeddings_skip_upcast "
    "mean_resizing_embeddings shrink_embeddings chat_template_jinja chat_template_kwargs* "
    "eot_tokens": "the tokenizer is not changed",
    "noisy_embedding_alpha rope_scaling* overrides_of_model* use_pose pose_* s2_attention "
    "reinit_weights fp32_norms* scaling_softmax*": "the architecture is not changed",
    "relora* lisa_* jagged_* unfrozen_parameters* freeze_mm_modules peft.* peft_* "
    "lora_fan_in_fan_out lora_target_parameters loftq* gptq* bnb_config_kwargs* "
    "quantize_moe_experts lora_alpha_pattern* lora_rank_pattern*": (
        "no counterpart for what is trained"
    ),
    "qat* quantization* ebft* llmcompressor* use_onebitllms diffusion*": "another training method",
    "fp8* use_eaft eaft_* curriculum_sampling dpo_use_weighting dpo_norm_loss rpo_alpha "
    "shuffle_merged_datasets": "no counterpart",
    "embedding_lr embedding_lr_scale lr_groups* lr_quadratic_warmup cosine_constant_lr_ratio "
    "loraplus_lr_embedding optim_* adam_beta3 adam_epsilon2 dion_* qgalore_*": "one rate and AdamW",
    "do_bench_eval bench_* do_causal_lm_eval eval_causal_lm_metrics": "see posttrain eval",
    "revision_of_model": "a hub name has no revision here: download it and give the folder",
    "image_size image_resize_algorithm role_boundaries*": "no images",
    "min_sample_len max_prompt_len eval_sequence_len trainer_cls dynamic_checkpoint*": (
        "no counterpart"
    ),
}
