"""Keys of torchtune without effect on the result, and refused ones: patterns -> the reason."""

from __future__ import annotations

WITHOUT_EFFECT: dict[str, str] = {
    "reward_and_value_model.* value_checkpointer._component_ value_checkpointer.model_type "
    "value_checkpointer.checkpoint_files value_checkpointer.output_dir": "as the folder says",
    "profiler.* log_peak_memory_stats log_level compile* custom_sharded_layers fsdp_* fsdp.* "
    "optimizer_in_bwd low_cpu_ram enable_activation_offloading ac_mode ac_option "
    "memory_efficient_fsdp_wrap fsdp_reshard_after_forward dataloader.* enable_kv_cache "
    "forward_batch_size enable_async_checkpointing": "speed, memory or profiling",
    "tensor_parallel_* data_parallel_* context_parallel_* expert_parallel_*": (
        "how processes share the model"
    ),
    "tokenizer._component_ tokenizer.path tokenizer.vocab_path tokenizer.merges_file "
    "tokenizer.merges_path tokenizer.special_tokens_path checkpointer._component_ "
    "checkpointer.checkpoint_files* checkpointer.model_type checkpointer.recipe_checkpoint "
    "checkpointer.safe_serialization model._component_ base_model_path": (
        "the folder of the model holds all of it"
    ),
    "checkpointer.output_dir save_adapter_weights_only save_last_epoch_only": (
        "form of the checkpoints"
    ),
    "metric_logger.log_dir metric_logger._component_ optimizer.fused optimizer.foreach "
    "batch_size_val dataset_val._component_ collate_fn name": "nothing to choose",
    "dataset.packed dataset_val.packed": "rows are always packed, without seeing each other",
    "ref_checkpointer.* ref_policy_checkpointer.* policy_model.*": (
        "the reference is the policy at the start"
    ),
    "dataset.split_across_pack": "rows are never split",
}
REFUSED: dict[str, str] = {
    "quantizer.* quantize_base fake_quant_after_n_steps": "quantisation-aware training",
    "teacher_* kd_ratio kd_loss.*": "distillation is not offered",
    "model.* custom": "the architecture is that of the model's folder",
    "orchestration.* inference.* postprocessing.* training.*": (
        "asynchronous training: see rollout.one_step_off"
    ),
    "value_checkpointer.checkpoint_dir": ("the value model starts as a copy of the policy's"),
    "min_response_length stop_token_ids whiten_rewards top_k penalise_no_eos": "no counterpart",
    "checkpointer.adapter_checkpoint checkpointer.keep_last_n_checkpoints": (
        "give model.name the adapter's folder"
    ),
    "dataset.* dataset_val.*": (
        "as the columns of the rows and the chat template say: docs/guide/data.md"
    ),
    "datasets*": "a mixture: write data as a list",
    "tokenizer.*": "the tokenizer is that of the model's folder",
}
