"""Keys of LLaMA-Factory without effect on the result, and refused ones: patterns -> the reason."""

from __future__ import annotations

WITHOUT_EFFECT: dict[str, str] = {
    "plot_loss include_effective_tokens_per_second print_param_status": "the report has the curves",
    "use_unsloth* use_v1_kernels enable_liger_kernel flash_attn "
    "disable_gradient_checkpointing use_reentrant_gc infer_dtype offload_folder use_kv_cache": (
        "speed or memory"
    ),
    "streaming buffer_size preprocessing_batch_size tokenized_path data_shared_file_system "
    "media_dir dataset_dir": "how rows are loaded",
    "ray_* master_addr master_port resources_per_worker placement_strategy": "how processes start",
    "swanlab_* use_swanlab": "a tracker that is not offered",
    "enable_torch_profiler profiler_* profile_modules": "profiling only",
    "quantization_device_map device_map quantization_method": "how the model is loaded",
    "export_* vllm_* sglang_* infer_backend": "for export and inference: see posttrain export",
    "do_sample top_p top_k num_beams max_length max_new_tokens repetition_penalty "
    "length_penalty skip_special_tokens temperature predict_with_generate eval_num_beams": (
        "generation after training"
    ),
    "freeze_vision_tower freeze_multi_modal_projector image_* video_* audio_* crop_to_patches": (
        "no text model has these parts"
    ),
    "ignore_pad_token_for_loss": "padding is never trained on",
    "model_max_length": "length.max_length follows cutoff_len",
}
REFUSED: dict[str, str] = {
    "freeze_* use_llama_pro": "layers cannot be frozen one by one",
    "use_galore galore_* use_apollo apollo_* use_badam badam_* use_adam_mini use_muon": (
        "only AdamW"
    ),
    "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha": "another SFT loss",
    "oft_* module_dropout": "OFT of LLaMA-Factory: see model.adapter in docs/guide/adapters.md",
    "use_mca use_megatron_bridge megatron_bridge_args* use_hyper_parallel hyper_parallel* "
    "use_kt kt_*": "another training engine",
    "rope_scaling shift_attn mixture_of_depths moe_aux_loss_coef": (
        "the architecture is not changed"
    ),
    "upcast_layernorm upcast_lmhead_output fp8*": "another precision of single layers",
    "add_tokens add_special_tokens new_special_tokens_config init_special_tokens "
    "split_special_tokens": "the tokenizer is not changed",
    "pissa_iter pissa_convert create_new_adapter loraplus_lr_embedding adapter_folder": (
        "no counterpart"
    ),
    "mix_strategy interleave_probs eval_on_each_dataset": "rows of a mixture are drawn by weight",
    "train_on_prompt": "SFT trains on completions only: for all tokens use trainer.type: pretrain",
    "tool_format enable_thinking preserve_thinking block_diag_attn": "as the chat template does it",
    "disable_shuffling": "rows come in random order",
    "compute_accuracy ld_alpha pref_bco_weight": "no counterpart",
    "ref_model_adapters ref_model_quantization_bit reward_model_adapters "
    "reward_model_quantization_bit ppo_buffer_size ppo_score_norm ppo_whiten_rewards": (
        "no counterpart"
    ),
    "model_revision": "a hub name has no revision here: download it and give the folder",
    "train_from_scratch": "only small architectures are made from scratch: model.scratch",
    "freeze_language_model": "the language model is what is trained",
}
