"""TRL 1.10 (trainer/*_config.py, scripts): `trl METHOD --config FILE`, or a file and --method.

The file does not name the method. TRL's SFT on `messages` trains on every token unless
assistant_only_loss is set; label_smoothing is not read by its sigmoid loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports import hf
from posttrain.imports.draft import Draft, Source
from posttrain.imports.parts import (
    adapter_form,
    dtype,
    listed,
    lora,
    number,
    quantization,
    reward_to_set,
    rows,
    to_set,
    truth,
)

METHODS = ("sft", "dpo", "kto", "reward", "grpo", "rloo", "cpo", "orpo")
RATES = {"sft": 2e-5, "reward": 1e-4}
PAIRED = ("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair",
          "sppo_hard", "apo_zero", "apo_down")
REDUCTIONS = {
    "grpo": "sequence",
    "dapo": "token",
    "bnpo": "token",
    "dr_grpo": "constant",
    "cispo": "token",
    "sapo": "sequence",
    "vespo": "token",
}
TELLING = {
    "num_generations": "grpo",
    "max_completion_length": "grpo",
    "num_iterations": "grpo",
    "scale_rewards": "grpo",
    "desirable_weight": "kto",
    "undesirable_weight": "kto",
    "center_rewards_coefficient": "reward",
    "assistant_only_loss": "sft",
    "completion_only_loss": "sft",
    "dataset_text_field": "sft",
    "packing": "sft",
    "precompute_ref_log_probs": "dpo",
    "f_divergence_type": "dpo",
    "cpo_alpha": "cpo",
}
WITHOUT_EFFECT = {
    "packing_strategy padding_free eval_packing": "rows are always packed",
    "vllm_* use_transformers_* cache_implementation ds3_gather_for_generation": "how completions are computed",
    "log_* num_completions_to_print": "what is printed",
    "precompute_ref_batch_size ignore_bias_buffers activation_offloading": "memory only",
    "lora_task_type dataset_streaming streaming is_encoder_decoder": "follows from the model and the rows",
    "dataset_config_name": "see dataset_config",
}
REFUSED = {
    "f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau ld_alpha "
    "reference_free": "no counterpart",
    "model_init_kwargs* generation_kwargs* chat_template_kwargs*": "not read: set the keys of model and rollout",
    "chat_template_path eos_token pad_token": "the tokenizer is not changed",
    "lora_target_parameters": "parameters outside of linear layers",
    "top_p top_k min_p repetition_penalty": "training samples from the whole distribution",
    "multi_objective_aggregation off_policy_mask_threshold top_entropy_quantile "
    "use_bias_correction_kl use_adaptive_entropy entropy_coef_* entropy_target reward_clip_range "
    "max_tool_calling_iterations shuffle_dataset num_generations_eval": "no counterpart",
    "model_revision": "a hub name has no revision here: download it and give the folder",
    "teacher_* lmbda kd_* seq_kd": "distillation is not offered",
    "cast_lm_head_to_fp32": "log-probs are computed in float32",
}


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of TRL's command line."""
    has_data = "dataset_name" in settings or "datasets.0.path" in settings
    others = ("finetuning_type", "stage", "dataset_mixer", "tokenizer_name", "use_slow_tokenizer",
              "max_seq_length", "exp_name", "dataset_mixer_list")
    return "model_name_or_path" in settings and has_data and not any(
        key in settings for key in others
    )


def method_of(settings: Mapping[str, Any]) -> str:
    """Return the method whose keys the settings have; empty if none is shown."""
    shown = {TELLING[key] for key in settings if key in TELLING}
    return shown.pop() if len(shown) == 1 else ""


def convert(draft: Draft) -> None:
    """Write the recipe of TRL's settings for the method in `draft.program`."""
    method = draft.program.lower()
    model(draft)
    data(draft, method)
    draft.put("trainer.type", {"reward": "reward_model"}.get(method, method))
    draft.comments.pop("trainer.type", None)
    {"sft": sft, "dpo": dpo, "kto": kto, "reward": reward, "cpo": cpo, "orpo": orpo}.get(
        method, online
    )(draft)
    if method == "rloo":
        draft.put("trainer.beta", number(draft.get("beta", default=0.05)), "beta")
    hf.training(draft, method, learning_rate=RATES.get(method, 1e-6), gradient_checkpointing=True,
                logging_steps=10)
    if truth(draft.get("packing", default=False)):
        draft.put("trainer.batch_size", draft.recipe["trainer.batch_size"], "packing", why=hf.PACKED)
    draft.skip("rows are always packed without seeing each other", "packing")
    test = str(draft.get("dataset_test_split", default="test"))
    hf.evaluating(draft, {"split": test}, "dataset_test_split")
    if draft.recipe.get("eval.split") and method in ("grpo", "rloo"):
        draft.put("eval.max_new_tokens", draft.recipe["rollout.max_new_tokens"])
    draft.table(WITHOUT_EFFECT)
    same = {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "f_divergence_type": "reverse_kl"}
    draft.skip("the whole distribution, as here",
               *(key for key, value in same.items() if draft.get(key) == value))
    draft.table(REFUSED, refuse=True)


def model(draft: Draft) -> None:
    """Write the model section."""
    draft.copy("model.name", "model_name_or_path", default=to_set("model_name_or_path"))
    dtype(draft, "bfloat16")
    draft.skip("the compute dtype decides: trained weights are float32", "dtype", "torch_dtype")
    if truth(draft.get("use_peft", default=False)):
        lora(draft, 16, 32, 0.05, ["q_proj", "v_proj"])
        if not draft.has("lora_target_modules"):
            draft.comments["model.adapter.target_modules"] = [
                "PEFT's default for Llama, Qwen2 and Mistral; other models have other names"
            ]
        draft.put("model.adapter.type", "lora", "use_peft")
        adapter_form(draft, use_rslora="rslora", use_dora="dora")
        draft.copy("model.adapter.modules_to_save", "lora_modules_to_save", convert=listed)
    else:
        draft.put("model.adapter.type", "none", "use_peft")
        draft.skip("use_peft is off", "lora_*", "use_rslora", "use_dora")
    quantization(draft, "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type",
                 "use_bnb_nested_quant", False)


def data(draft: Draft, method: str) -> None:
    """Write the data and length sections."""
    split = str(draft.get("dataset_train_split", default="train"))
    if draft.has("dataset_name"):
        rows(draft, {"path": str(draft.get("dataset_name")), "split": split}, "dataset_name",
             "dataset_train_split")
    number_of = 0
    while f"datasets.{number_of}.path" in draft.settings:
        start = f"datasets.{number_of}"
        section: dict[str, Any] = {"path": draft.get(f"{start}.path")}
        section["split"] = str(draft.get(f"{start}.split", default="train"))
        if draft.has(f"{start}.data_files"):
            section["path"] = draft.get(f"{start}.data_files")
        if draft.has(f"{start}.fraction"):
            section["weight"] = float(draft.get(f"{start}.fraction"))
        rows(draft, section, *(f"{start}.{k}" for k in ("path", "split", "data_files", "fraction")))
        number_of += 1
    if "data" not in draft.recipe:
        rows(draft, {"path": to_set("dataset_name")})
    draft.refuse("a hub data set's configuration: download it and give data.path the folder",
                 "dataset_config", "datasets.*.name", "datasets.*.data_dir")
    if method in ("grpo", "rloo"):
        return
    draft.copy("length.max_length", "max_length", "max_seq_length", default=1024, convert=int)
    draft.put("length.on_overlong", "truncate", "truncation_mode",
              why="" if draft.get("truncation_mode", default="keep_start") == "keep_start"
              else "the first tokens are kept")


def sft(draft: Draft) -> None:
    """Decide on SFT's keys."""
    field = draft.get("dataset_text_field")
    if field is not None:
        draft.put("trainer.type", "pretrain", "dataset_text_field",
                  why="rows of plain text are trained on whole: for prompts and completions use sft")
        section = draft.recipe["data"]
        if field != "text" and isinstance(section, dict):
            section["columns"] = {"text": str(field)}
    draft.skip("completions only, as here", "assistant_only_loss", "completion_only_loss") if truth(
        draft.get("assistant_only_loss", "completion_only_loss", default=False)
    ) else None
    draft.comments.setdefault("trainer.type", []).append(
        "assistant turns and completions only; TRL trains on every token of messages and texts "
        "unless assistant_only_loss is set (then use pretrain for texts)"
    ) if not truth(draft.get("assistant_only_loss", default=False)) else None
    draft.refuse("the prompt is never trained on", "completion_only_loss", "assistant_only_loss")
    loss = draft.get("loss_type", default="nll")
    if loss in ("nll", "chunked_nll"):
        draft.skip("the same loss", "loss_type")
    draft.refuse("another SFT loss", "loss_type")


def dpo(draft: Draft) -> None:
    """Write DPO's choices."""
    asked = listed(draft.get("loss_type", default=["sigmoid"]))
    weights = draft.get("loss_weights")
    weights = [float(w) for w in listed(weights)] if weights is not None else [1.0] * len(asked)
    kept = [(n, w) for n, w in zip(asked, weights) if n in PAIRED]
    unknown = [n for n in asked if n not in (*PAIRED, "sft")]
    names = [n for n, _ in kept] or ["sigmoid"]
    why = f"without counterpart: {', '.join(unknown)}" if unknown else ""
    draft.put("trainer.loss_type", names if len(names) > 1 else names[0], "loss_type", why=why)
    if unknown:
        draft.refuse(why, "loss_type")
    if any(w != 1.0 for _, w in kept):
        draft.put("trainer.loss_weights", [w for _, w in kept], "loss_weights")
    if "sft" in asked:
        draft.put("trainer.sft_coef", weights[asked.index("sft")], "loss_type", "loss_weights",
                  note="the loss sft, a mean over the tokens of the whole step")
    draft.copy("trainer.beta", "beta", default=0.1, convert=float)
    smoothing = number(draft.get("label_smoothing", default=0))
    if smoothing > 0 and any(n in ("robust", "exo_pair") for n in names):
        draft.put("trainer.label_smoothing", smoothing, "label_smoothing")
    draft.refuse("TRL's sigmoid does not read it either", "label_smoothing")
    if "exo_pair" in names and smoothing == 0:
        draft.put("trainer.label_smoothing", 1e-3, note="what TRL takes for 0")
    draft.copy("trainer.precompute_reference", "precompute_ref_log_probs", convert=truth)
    following(draft)


def following(draft: Draft) -> None:
    """Write a reference that follows the policy."""
    if truth(draft.get("sync_ref_model", default=False)):
        draft.copy("reference.sync_steps", "ref_model_sync_steps", default=512, convert=int)
        draft.copy("reference.sync_alpha", "ref_model_mixup_alpha", default=0.6, convert=float)
        draft.put("reference.sync_steps", draft.recipe["reference.sync_steps"], "sync_ref_model")
    draft.skip("the reference does not move", "sync_ref_model", "ref_model_*")
    draft.skip("dropout is off in preference methods and RL", "disable_dropout")


def kto(draft: Draft) -> None:
    """Write KTO's choices."""
    draft.copy("trainer.loss_type", "loss_type", default="kto")
    draft.copy("trainer.beta", "beta", default=0.1, convert=float)
    draft.copy("trainer.desirable_weight", "desirable_weight", default=1.0, convert=float)
    draft.copy("trainer.undesirable_weight", "undesirable_weight", default=1.0, convert=float)
    draft.copy("trainer.precompute_reference", "precompute_ref_log_probs", convert=truth)
    following(draft)


def cpo(draft: Draft) -> None:
    """Write CPO's choices; with loss_type simpo it is SimPO plus cpo_alpha times the likelihood."""
    loss = str(draft.get("loss_type", default="sigmoid"))
    draft.put("trainer.type", {"simpo": "simpo"}.get(loss, "cpo"), "loss_type")
    if loss not in ("simpo", "sigmoid"):
        draft.put("trainer.loss_type", loss if loss in PAIRED else "sigmoid", "loss_type")
    draft.copy("trainer.beta", "beta", default=0.1, convert=float)
    draft.copy("trainer.sft_coef", "cpo_alpha", default=1.0, convert=float)
    if loss == "simpo":
        draft.copy("trainer.gamma", "simpo_gamma", default=0.5, convert=float)
    draft.refuse("no counterpart", "alpha", "label_smoothing")
    draft.skip("not read by the loss", "simpo_gamma")
    following(draft)


def orpo(draft: Draft) -> None:
    """Write ORPO's choices."""
    draft.copy("trainer.beta", "beta", default=0.1, convert=float)
    following(draft)


def reward(draft: Draft) -> None:
    """Write the choices of reward models."""
    draft.copy("trainer.center_coef", "center_rewards_coefficient", convert=float)
    draft.skip("dropout follows model.dropout", "disable_dropout")


def online(draft: Draft) -> None:
    """Write the choices of GRPO and RLOO."""
    grpo = draft.program.lower() == "grpo"
    group = int(draft.get("num_generations", default=8 if grpo else 2))
    draft.put("rollout.group_size", group, "num_generations")
    draft.copy("rollout.max_new_tokens", "max_completion_length", default=512, convert=int)
    draft.copy("rollout.temperature", "temperature", default=1.0, convert=float)
    completions(draft, group)
    if grpo:
        surrogate(draft)
        draft.copy("trainer.beta", "beta", default=0.0, convert=float)
        draft.copy("trainer.entropy_coef", "entropy_coef", convert=float)
        scale = str(draft.get("scale_rewards", default="group")).lower()
        named = {"true": "group", "false": "none"}.get(scale, scale)
        draft.put("trainer.scale_rewards", named, "scale_rewards")
        draft.put("trainer.scale_eps", 1e-4)
    elif truth(draft.get("normalize_advantages", default=False)):
        draft.put("trainer.scale_rewards", "batch", "normalize_advantages")
    draft.skip("off, as here", "normalize_advantages")
    if not grpo:
        draft.copy("trainer.epsilon", "epsilon", default=0.2, convert=float)
        draft.copy("trainer.epsilon_high", "epsilon_high", convert=float)
    draft.copy("trainer.num_inner_epochs", "num_iterations", default=1, convert=int)
    draft.copy("trainer.mask_truncated_completions", "mask_truncated_completions", convert=truth)
    engine(draft)
    rewards(draft)
    following(draft)


def completions(draft: Draft, group: int) -> None:
    """Write batch_size and num_minibatches: TRL counts completions, posttrain prompts."""
    device = int(draft.get("per_device_train_batch_size", default=8))
    accumulation = int(draft.get("gradient_accumulation_steps", default=1))
    total = device * accumulation * draft.processes
    prompts = max(1, round(total / group))
    exact = prompts * group == total
    what = f"{device} x {accumulation} x {draft.processes} = {total} completions / {group} of a prompt"
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    draft.put("trainer.batch_size", prompts, *keys, note=what,
              why="" if exact else f"{what} is no whole number of prompts")
    generated = draft.get("generation_batch_size")
    steps = draft.get("steps_per_generation")
    if generated is not None or steps is not None:
        whole = int(generated) if generated is not None else int(steps) * device * draft.processes
        draft.put("trainer.num_minibatches", max(1, round(whole / total)), "generation_batch_size",
                  "steps_per_generation")


def surrogate(draft: Draft) -> None:
    """Write loss_type, the clip range and the level of the ratio."""
    loss = str(draft.get("loss_type", default="dapo"))
    if loss not in REDUCTIONS:
        draft.refuse("no counterpart: token is written", "loss_type")
    why = "a mean over the step's tokens; there over a micro-batch's" if loss == "bnpo" else ""
    draft.put("trainer.reduction", REDUCTIONS.get(loss, "token"), "loss_type", why=why)
    low = float(draft.get("epsilon", default=0.2))
    high = draft.get("epsilon_high")
    if loss in ("cispo", "sapo", "vespo"):
        draft.put("trainer.surrogate", loss, "loss_type")
    if loss == "cispo":
        bound = float(high if high is not None else low)
        draft.put("trainer.epsilon", 1.0, note="no lower bound")
        if bound > 1:
            draft.put("trainer.epsilon_high", bound - 1, "epsilon_high", "epsilon",
                      note="TRL's is the bound itself, here it is added to 1")
        draft.refuse("TRL's bound below 1 has no counterpart", "epsilon", "epsilon_high")
    else:
        draft.put("trainer.epsilon", low, "epsilon")
        draft.copy("trainer.epsilon_high", "epsilon_high", convert=float)
    if draft.has("delta"):
        draft.put("trainer.dual_clip", float(draft.get("delta")), "delta",
                  note="the same for a bound above 1 + epsilon")
    level = str(draft.get("importance_sampling_level", default="token"))
    draft.put("trainer.ratio_level", level, "importance_sampling_level")
    tau = {"sapo_temperature_neg": 1.05, "sapo_temperature_pos": 1.0, "vespo_k_pos": 2.0,
           "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}
    draft.skip("as here", *(key for key, value in tau.items() if draft.get(key) == value))
    draft.refuse("constants of SAPO and VESPO are fixed", *tau)


def engine(draft: Draft) -> None:
    """Write which engine samples, and the correction for it."""
    if not truth(draft.get("use_vllm", default=False)):
        draft.skip("sampling in this process", "use_vllm", "vllm_*")
        return
    server = draft.get("vllm_mode", default="colocate") == "server"
    draft.put("rollout.engine", "server" if server else "vllm", "use_vllm", "vllm_mode")
    if server:
        url = draft.get("vllm_server_base_url")
        host = draft.get("vllm_server_host", default="127.0.0.1")
        address = url or f"http://{host}:{draft.get('vllm_server_port', default=8000)}"
        draft.put("rollout.servers", [address.replace("0.0.0.0", "127.0.0.1")],
                  "vllm_server_base_url", "vllm_server_host", "vllm_server_port")
    else:
        draft.copy("rollout.gpu_memory_utilization", "vllm_gpu_memory_utilization", default=0.3)
    if draft.program == "grpo" and draft.get("vllm_importance_sampling_correction", default=True):
        mode = str(draft.get("vllm_importance_sampling_mode", default="sequence_mask"))
        level = "sequence_sum" if mode.startswith("sequence") else "token"
        draft.put("trainer.sampler_correction", level, "vllm_importance_sampling_correction",
                  "vllm_importance_sampling_mode")
        draft.put("trainer.sampler_correction_mode", "mask" if "mask" in mode else "truncate",
                  "vllm_importance_sampling_mode")
        draft.copy("trainer.sampler_correction_max", "vllm_importance_sampling_clip_max",
                   "vllm_importance_sampling_cap", default=3.0, convert=float)
        draft.copy("trainer.sampler_correction_min", "vllm_importance_sampling_clip_min",
                   convert=float)


def rewards(draft: Draft) -> None:
    """Write the reward: TRL's own functions, a reward model, or a function of the user's."""
    known = {"accuracy_reward": "math_correctness"}
    names = listed(draft.get("reward_funcs", default=[]))
    path = draft.get("reward_model_name_or_path")
    if path is not None:
        draft.put("reward.type", "reward_model", "reward_model_name_or_path")
        draft.put("reward.path", path, "reward_model_name_or_path")
    elif len(names) == 1 and names[0] in known:
        draft.put("reward.type", known[names[0]], "reward_funcs")
    else:
        reward_to_set(draft, f"{', '.join(map(str, names)) or 'the reward'}", "reward_funcs")
    draft.refuse("several rewards: write reward.type: weighted", "reward_weights", "reward_funcs")


SOURCE = Source(
    "TRL 1.10",
    recognise,
    convert,
    programs=(r"trl (sft|dpo|kto|reward|grpo|rloo|cpo|orpo)",
              r"(?:trl/scripts|examples/scripts)/(sft|dpo|kto|reward|grpo|rloo|cpo|orpo)(?:_\w+)?\.py"),
    needs_method=METHODS,
    method_of=method_of,
)
