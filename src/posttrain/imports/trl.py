"""TRL 1.16 (trainer/*_config.py, scripts): `trl METHOD --config FILE`, or a file and --method.

The file does not name the method. TRL's SFT on `messages` trains on every token unless
assistant_only_loss is set; label_smoothing is not read by its sigmoid loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports import hf
from posttrain.imports.draft import Draft, Source
from posttrain.imports.keys.trl import REFUSED, WITHOUT_EFFECT
from posttrain.imports.parts import (
    adapter_form,
    dtype,
    listed,
    lora,
    number,
    quantization,
    real,
    rows,
    to_set,
    truth,
)
from posttrain.imports.trl_parts import following
from posttrain.imports.trl_rl import online

METHODS = ("sft", "dpo", "kto", "reward", "grpo", "rloo", "cpo", "orpo")
RATES = {"sft": 2e-5, "reward": 1e-4}
PAIRED = (
    "sigmoid",
    "sigmoid_norm",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
)
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


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of TRL's command line."""
    has_data = "dataset_name" in settings or "datasets.0.path" in settings
    others = (
        "finetuning_type",
        "stage",
        "dataset_mixer",
        "tokenizer_name",
        "use_slow_tokenizer",
        "max_seq_length",
        "exp_name",
        "dataset_mixer_list",
    )
    return (
        "model_name_or_path" in settings and has_data and not any(key in settings for key in others)
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
    hf.training(
        draft,
        method,
        learning_rate=RATES.get(method, 1e-6),
        gradient_checkpointing=True,
        logging_steps=10,
    )
    if truth(draft.get("packing", default=False)):
        draft.put(
            "trainer.batch_size", draft.recipe["trainer.batch_size"], "packing", why=hf.PACKED
        )
    draft.skip("rows are always packed without seeing each other", "packing")
    test = str(draft.get("dataset_test_split", default="test"))
    hf.evaluating(draft, {"split": test}, "dataset_test_split")
    if draft.recipe.get("eval.split") and method in ("grpo", "rloo"):
        draft.put("eval.max_new_tokens", draft.recipe["rollout.max_new_tokens"])
    draft.table(WITHOUT_EFFECT)
    same = {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "f_divergence_type": "reverse_kl"}
    draft.skip(
        "the whole distribution, as here",
        *(key for key, value in same.items() if draft.get(key) == value),
    )
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
    quantization(
        draft, "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", False
    )


def data(draft: Draft, method: str) -> None:
    """Write the data and length sections."""
    split = str(draft.get("dataset_train_split", default="train"))
    if draft.has("dataset_name"):
        rows(
            draft,
            {"path": str(draft.get("dataset_name")), "split": split},
            "dataset_name",
            "dataset_train_split",
        )
    number_of = 0
    while f"datasets.{number_of}.path" in draft.settings:
        start = f"datasets.{number_of}"
        section: dict[str, Any] = {"path": draft.get(f"{start}.path")}
        section["split"] = str(draft.get(f"{start}.split", default="train"))
        if draft.has(f"{start}.data_files"):
            section["path"] = draft.get(f"{start}.data_files")
        if draft.has(f"{start}.fraction"):
            section["weight"] = real(draft.get(f"{start}.fraction"))
        rows(draft, section, *(f"{start}.{k}" for k in ("path", "split", "data_files", "fraction")))
        number_of += 1
    if "data" not in draft.recipe:
        rows(draft, {"path": to_set("dataset_name")})
    draft.refuse(
        "a hub data set's configuration: download it and give data.path the folder",
        "dataset_config",
        "datasets.*.name",
        "datasets.*.data_dir",
    )
    if method in ("grpo", "rloo"):
        return
    draft.copy("length.max_length", "max_length", "max_seq_length", default=1024, convert=int)
    draft.put(
        "length.on_overlong",
        "truncate",
        "truncation_mode",
        why=""
        if draft.get("truncation_mode", default="keep_start") == "keep_start"
        else "the first tokens are kept",
    )


def sft(draft: Draft) -> None:
    """Decide on SFT's keys."""
    field = draft.get("dataset_text_field")
    if field is not None:
        draft.put(
            "trainer.type",
            "pretrain",
            "dataset_text_field",
            why="rows of plain text are trained on whole: for prompts and completions use sft",
        )
        section = draft.recipe["data"]
        if field != "text" and isinstance(section, dict):
            section["columns"] = {"text": str(field)}
    keys = ("assistant_only_loss", "completion_only_loss")
    if not any(truth(draft.get(key, default=False)) for key in keys):
        draft.comments.setdefault("trainer.type", []).append(
            "completions and assistant turns only; TRL trains on all of messages and texts unless "
            "assistant_only_loss is set"
        )
    for key in keys:
        if draft.has(key) and not truth(draft.get(key)):
            draft.decide(key, "refused", "", "the prompt is never trained on")
    draft.skip("completions only, as here", *keys)
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
        draft.decide("loss_type", "refused", "", why)
    if any(w != 1.0 for _, w in kept):
        draft.put("trainer.loss_weights", [w for _, w in kept], "loss_weights")
    if "sft" in asked:
        draft.put(
            "trainer.sft_coef",
            weights[asked.index("sft")],
            "loss_type",
            "loss_weights",
            note="the loss sft, a mean over the tokens of the whole step",
        )
    draft.copy("trainer.beta", "beta", default=0.1, convert=float)
    smoothing = number(draft.get("label_smoothing", default=0))
    if smoothing > 0 and any(n in ("robust", "exo_pair") for n in names):
        draft.put("trainer.label_smoothing", smoothing, "label_smoothing")
    draft.refuse("TRL's sigmoid does not read it either", "label_smoothing")
    if "exo_pair" in names and smoothing == 0:
        draft.put("trainer.label_smoothing", 1e-3, note="what TRL takes for 0")
    draft.copy("trainer.precompute_reference", "precompute_ref_log_probs", convert=truth)
    following(draft)


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


SOURCE = Source(
    "TRL 1.16",
    recognise,
    convert,
    programs=(
        r"trl (sft|dpo|kto|reward|grpo|rloo|cpo|orpo)",
        r"(?:trl/scripts|examples/scripts)/(sft|dpo|kto|reward|grpo|rloo|cpo|orpo)(?:_\w+)?\.py",
    ),
    needs_method=METHODS,
    method_of=method_of,
)
