"""Keys of open-instruct without effect on the result, and refused ones: patterns -> the reason."""

from __future__ import annotations

WITHOUT_EFFECT: dict[str, str] = {
    "exp_name run_name do_not_randomize_output_dir with_tracking wandb_* hf_entity hf_repo_* "
    "hf_metadata_dataset try_* gs_* oe_eval_* eval_workspace eval_priority eval_on_step_0 "
    "send_slack_alerts verbose timeout backend_timeout profiling report_to": "where results go",
    "dataset_cache_mode dataset_local_cache_dir dataset_config_hash* dataset_config_eval_hash "
    "dataset_skip_cache cache_dataset_only cache_logprobs_only dataset_mix_dir "
    "dataset_target_columns target_columns overwrite_cache preprocessing_num_workers": (
        "how rows are loaded"
    ),
    "low_cpu_mem_usage use_flash_attn use_slow_tokenizer use_fast trust_remote_code "
    "tokenizer_name tokenizer_name_or_path tokenizer_revision fused_optimizer "
    "use_liger_kernel use_cache compile_model attn_implementation loss_implementation "
    "sync_each_batch clean_checkpoints_at_end config_name concatenated_forward use_compile "
    "use_paged_optimizer dpo_use_paged_optimizer dataloader_* gather_whole_model "
    "activation_memory_budget": "speed or memory of the same formulas",
    "vllm_* deepspeed_* num_learners_per_node num_nodes single_gpu_mode single_gpu_node "
    "sequence_parallel_size tensor_parallel_degree context_parallel_degree fsdp_* zero_* "
    "offload_* world_size enable_queue_dashboard queue_dashboard_port actor_num_gpus_per_node "
    "number_envs_per_task colocate_* pack_length backend": "how processes share the work",
    "save_traces rollouts_save_path checkpoint_state_* keep_last_n_checkpoints_state "
    "ephemeral_save_interval save_to_hub record_entropy save_value_model": (
        "what is saved and logged"
    ),
    "num_evals eval_freq per_device_eval_batch_size eval_response_length eval_pass_at_k "
    "eval_top_p local_eval_freq": "of the evaluation",
    "ground_truths_key sft_messages_key": "as the columns of the rows say",
}
REFUSED: dict[str, str] = {
    "max_token_length": "only the prompt is bounded, by length.max_length",
    "max_tool_calls search_*": "tools are not offered",
    "chat_template_name chat_template add_bos get_tokenizer_fn": (
        "the tokenizer's own template is used"
    ),
    "dataset_transform_fn transform_fn dataset_config_name dataset_mixer_eval_list*": (
        "rows are read by their columns: see docs/guide/data.md"
    ),
    "load_balancing_* rope_* additional_model_arguments": "the architecture is not changed",
    "use_8bit_optimizer optimizer_*": "AdamW with its state in 32 bits",
    "async_steps inflight_updates": "samples are at most one step old: see rollout.one_step_off",
    "apply_r1_style_format_reward r1_style_format_reward additive_format_reward "
    "apply_verifiable_reward remap_verifier reward_aggregator llm_judge_* code_* "
    "max_length_verifier_max_length apply_evolving_* max_active_rubrics cache_evolving_* "
    "verification_reward non_stop_penalty* tool* tools max_steps* env_* per_turn_max_tokens "
    "pool_size only_reward_good_outputs pass_tools_* mask_tool_use max_possible_score": (
        "a reward or tool of its own: see docs/rewards.md"
    ),
    "filter_zero_std_samples active_sampling no_resampling_pass_rate": "see rollout.max_resamples",
    "stop_strings system_prompt_override_file": (
        "see data.system_prompt; generation stops at stop tokens"
    ),
    "rho_mask_* set_weight_decay_on_bias_and_norm model_revision clip_grad_value "
    "max_train_samples checkpointing_* max_prompt_token_length ref_policy_update_freq alpha": (
        "no counterpart"
    ),
}
