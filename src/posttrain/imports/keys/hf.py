"""Keys of TrainingArguments without effect, and refused ones: patterns -> the reason."""

from __future__ import annotations

WITHOUT_EFFECT: dict[str, str] = {
    "dataloader_drop_last": "a last smaller batch is one step here too",
    "dataloader_* accelerator_config preprocessing_num_workers dataset_num_proc "
    "dataset_processes overwrite_cache dataset_kwargs": "how rows are loaded",
    "ddp_* local_rank tpu_* mp_parameters torch_empty_cache_steps auto_find_batch_size "
    "average_tokens_across_devices parallelism_config": "how processes share the work",
    "torch_compile* use_liger_kernel liger_kernel_config use_cache tf32 padding_free "
    "pad_to_multiple_of attn_implementation use_kernels": "speed or rounding of the same formulas",
    "gradient_checkpointing_kwargs activation_checkpointing* activation_offloading "
    "low_cpu_mem_usage": "memory only",
    "log_level* logging_dir logging_first_step logging_strategy logging_nan_inf_filter "
    "log_on_each_node disable_tqdm include_* skip_memory_metrics debug project trackio_* "
    "log_completions num_completions_to_print": "what is printed; metrics.jsonl has every step",
    "push_to_hub hub_* push_to_hub_* save_to_hub": "nothing is uploaded: see posttrain push",
    "overwrite_output_dir": "every run has a new folder",
    "do_train do_eval do_predict prediction_loss_only eval_accumulation_steps "
    "eval_do_concat_batches per_device_eval_batch_size per_gpu_eval_batch_size "
    "eval_use_gather_object bf16_full_eval fp16_full_eval batch_eval_metrics": (
        "how an evaluation is computed"
    ),
    "save_safetensors save_only_model save_on_each_node enable_jit_checkpoint "
    "restore_callback_states_from_checkpoint ignore_data_skip": "form of the checkpoints",
    "remove_unused_columns label_names trust_remote_code use_fast_tokenizer cache_dir "
    "bnb_4bit_quant_storage": "how model and rows are loaded",
    "use_cpu no_cuda": "model.device: auto finds the device",
}
REFUSED: dict[str, str] = {
    "neftune_noise_alpha": "noise on the embeddings has no counterpart",
    "label_smoothing_factor": "smoothing of the token loss has no counterpart",
    "optim_args optim_target_modules": "only AdamW is offered, with its betas and epsilon",
    "group_by_length": "rows come in random order; padding costs nothing here",
    "eval_delay eval_on_start": "the first evaluation is after eval_steps",
    "data_seed": "trainer.seed is the seed of everything",
    "router_aux_loss_coef": "no auxiliary loss for routers",
}
