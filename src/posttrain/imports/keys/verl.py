"""Keys of verl without effect on the result, and refused ones: patterns -> the reason."""

from __future__ import annotations

WITHOUT_EFFECT: dict[str, str] = {
    "critic.model.enable_gradient_checkpointing critic.model.use_remove_padding": "memory only",
    "*freeze_vision_tower": "no text model has one",
    "*micro_batch_size* *use_dynamic_bsz *max_token_len_per_gpu *.fsdp_config.* *.megatron.* "
    "*.strategy *offload* *.ref.* *use_fused_kernels* *use_torch_compile "
    "*entropy_checkpointing *entropy_from_logits* *use_liger *use_remove_padding "
    "*use_prefix_grouper *tiled_mlp* *.use_shm *nccl_timeout *fused_kernel_options* "
    "*hybrid_engine *ulysses_sequence_parallel_size *enable_activation_offload "
    "use_remove_padding *balance_dp_token *checkpoint.* *activation_offload model.strategy "
    "engine*": "how the same numbers are computed",
    "*.rollout.name *.rollout.mode *tensor_model_parallel_size *pipeline_model_parallel_size "
    "*expert_parallel_size *data_parallel_size *gpu_memory_utilization *enforce_eager "
    "*free_cache_engine *max_num_batched_tokens *max_model_len *max_num_seqs *chunked_prefill "
    "*prefix_caching *load_format *engine_kwargs* *disable_log_stats *layered_summon *dtype "
    "*calculate_log_probs *.agent.* *cudagraph* *checkpoint_engine* *skip_tokenizer_init "
    "*scheduling_policy *logprobs_mode *update_weights_bucket_megabytes *multi_stage_wake_up "
    "*prometheus*": "how completions are computed: set rollout.engine",
    "trainer.project_name trainer.log_val_generations trainer.rollout_data_dir "
    "trainer.validation_data_dir trainer.device trainer.balance_batch trainer.resume_mode "
    "trainer.default_hdfs_dir trainer.ray_wait* trainer.val_before_train "
    "trainer.n_gpus_per_node trainer.nnodes trainer.use_legacy_worker_impl trainer.esi_* "
    "trainer.del_local* trainer.val_only trainer.*profile* *profiler* ray_init* ray_kwargs* "
    "transfer_queue* trainer.npu*": "how the program runs",
    "data.return_* data.filter_overlong_prompts_workers data.dataloader_num_workers "
    "data.use_shm data.trust_remote_code *.trust_remote_code *external_lib data.reward_fn_key "
    "data.val_batch_size data.tokenizer data.image_key data.video_key data.validation_shuffle "
    "*tokenizer_path": "how rows and models are loaded",
    "*_target_ hydra.* *trace* model.hybrid_engine": "parts of the program",
    "critic.model.tokenizer_path critic.model.path critic.strategy critic.loss_agg_mode": (
        "the value model starts as a copy of the policy's"
    ),
}
REFUSED: dict[str, str] = {
    "config_path config_name": "another config's defaults are not read: verl's are written",
    "custom_reward_function": "beside a reward model: write reward.type: weighted",
    "data.gen_batch_size": "see rollout.max_resamples",
    "*router_replay* *mtp* *quantization* *override_config* *override_transformer* "
    "*hf_config_path *custom_chat_template": "the model is not changed",
    "*multi_turn* *tool_config* *interaction*": "agents and tools are not offered",
    "*optim.*": "one AdamW, with betas and weight decay",
    "*policy_loss.*": "another surrogate",
    "algorithm.*": "no counterpart",
    "critic.*": "the value model is a copy of the policy's",
    "reward_model.* reward_manager.*": "a reward of the source's own: see docs/rewards.md",
    "*val_kwargs*": "evaluations are greedy",
    "data.sampler.* data.datagen.* data.custom_cls.* data.apply_chat_template_kwargs*": (
        "no counterpart"
    ),
    "trainer.critic_warmup": "policy and value model are trained together",
}
