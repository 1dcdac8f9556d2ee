"""open-instruct (August 2026: finetune.py, dpo_utils.py, grpo_utils.py, reward_modeling.py).

Its DPO averages log-probs over tokens by default (dpo_norm) with beta 5. Its SFT takes a mean of
micro-batch means, posttrain's the mean over the step's tokens. Gradients are not clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports import hf
from posttrain.imports.draft import Draft, Source
from posttrain.imports.keys import hf as training_arguments
from posttrain.imports.keys.open_instruct import REFUSED, WITHOUT_EFFECT
from posttrain.imports.open_instruct_rl import mixture, online
from posttrain.imports.parts import (
    dtype,
    integer,
    listed,
    lora,
    number,
    real,
    rows,
    to_set,
    truth,
)

METHODS = ("finetune", "dpo", "grpo", "reward_modeling")
TYPES = {"finetune": "sft", "dpo": "dpo", "grpo": "grpo", "reward_modeling": "reward_model"}
PROGRAMS = {
    "dpo_tune_cache": "dpo",
    "dpo_tune": "dpo",
    "grpo_fast": "grpo",
    "sft": "finetune",
}
TELLING = {
    "num_unique_prompts_rollout": "grpo",
    "num_samples_per_prompt_rollout": "grpo",
    "beta": "dpo",
    "dpo_beta": "dpo",
    "loss_type": "dpo",
    "dpo_loss_type": "dpo",
    "num_epochs": "dpo",
    "num_train_epochs": "finetune",
    "packing": "finetune",
    "max_token_length": "reward_modeling",
}
LOSSES = {
    "dpo": ("sigmoid", False),
    "dpo_norm": ("sigmoid", True),
    "simpo": ("simpo", True),
    "wpo": ("", False),
}


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of open-instruct."""
    own = ("use_slow_tokenizer", "checkpointing_steps", "tokenizer_name")
    named = "model_name_or_path" in settings and any(key in settings for key in own)
    mixed = any(key.startswith("dataset_mixer") for key in settings)
    return (mixed or named) and "finetuning_type" not in settings


def method_of(settings: Mapping[str, Any]) -> str:
    """Return the program whose keys the settings have; empty if none is shown."""
    shown = {TELLING[key] for key in settings if key in TELLING}
    if "grpo" in shown:
        return "grpo"
    return shown.pop() if len(shown) == 1 else ""


def convert(draft: Draft) -> None:
    """Write the recipe of open-instruct's settings."""
    program = PROGRAMS.get(draft.program, draft.program)
    model(draft, program)
    data(draft, program)
    draft.put("trainer.type", TYPES[program])
    draft.comments.pop("trainer.type", None)
    if program == "finetune":
        draft.comments["trainer.type"] = [
            "a mean over the step's tokens; there of micro-batch means"
        ]
    elif program == "dpo":
        pairs(draft)
    elif program == "grpo":
        online(draft)
    trainer(draft, program)
    draft.table(WITHOUT_EFFECT)
    draft.table(REFUSED, refuse=True)
    draft.skip("as transformers' keys", "do_train")


def model(draft: Draft, program: str) -> None:
    """Write the model section."""
    draft.copy("model.name", "model_name_or_path", default=to_set("model_name_or_path"))
    dtype(draft, "bfloat16", "model_dtype", "dtype")
    draft.copy("model.gradient_checkpointing", "gradient_checkpointing", convert=truth)
    if truth(draft.get("use_lora", "use_peft", default=False)):
        short = draft.has("lora_r")
        names = (
            "lora_r" if short else "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
        )
        layers = ["q_proj", "o_proj", "v_proj", "k_proj", "gate_proj", "up_proj", "down_proj"]
        lora(draft, 64, 16, 0.1, layers, names=names)
        draft.put("model.adapter.type", "lora", "use_lora", "use_peft")
    else:
        draft.put("model.adapter.type", "none", "use_lora", "use_peft")
        draft.skip("use_lora is off", "lora_*")
    if truth(draft.get("use_qlora", default=False)):
        draft.put("model.quantization.type", "nf4", "use_qlora")
    draft.skip(
        "nothing is quantised",
        "use_qlora",
        "load_in_4bit",
        "load_in_8bit",
        "bnb_*",
        "use_bnb_nested_quant",
    )
    if draft.get("model_revision", default="main") == "main":
        draft.skip("the main one", "model_revision")


def data(draft: Draft, program: str) -> None:
    """Write the data and length sections."""
    keys = [k for k in draft.settings if k.startswith(("dataset_mixer.", "dataset_mixer_list"))]
    keys += ["mixer_list", "dataset_mixer"]
    splits = [str(s) for s in listed(draft.get("dataset_mixer_list_splits", default=["train"]))]
    parts = mixture(draft)
    count = sum("." not in key or key.startswith("dataset_mixer.") for key in keys)
    assert count
    for place, (name, amount) in enumerate(parts):
        section: dict[str, Any] = {
            "path": name,
            "split": splits[place] if place < len(splits) else splits[0],
        }
        whole = isinstance(amount, int) and amount > 1
        if whole:
            section["max_samples"] = int(amount)
        elif amount != 1:
            section["weight"] = float(amount)
        rows(draft, section, *keys, "dataset_mixer_list_splits")
    if not parts:
        file = draft.get("train_file", "dataset_name", default=to_set("train_file or dataset_name"))
        rows(draft, {"path": file}, "train_file", "dataset_name")
    if draft.has("max_train_samples") and isinstance(draft.recipe["data"], dict):
        draft.recipe["data"]["max_samples"] = integer(draft.get("max_train_samples"))
        draft.put("data", draft.recipe["data"], "max_train_samples")
    if program == "grpo":
        draft.copy(
            "length.max_length",
            "max_prompt_token_length",
            default=256,
            convert=int,
            note="of the prompt",
        )
        draft.put("length.on_overlong", "drop")
        return
    draft.copy(
        "length.max_length",
        "max_seq_length",
        "max_token_length",
        convert=int,
        default={"dpo": 4096, "reward_modeling": 512}.get(program),
    )
    draft.put("length.on_overlong", "drop" if program == "reward_modeling" else "truncate")


def pairs(draft: Draft) -> None:
    """Write the choices of DPO."""
    key = "dpo_loss_type" if draft.has("dpo_loss_type") else "loss_type"
    name = str(draft.get(key, default="dpo_norm"))
    loss, averages = LOSSES.get(name, ("", True))
    if not loss:
        draft.decide(key, "refused", "", f"{name} has no counterpart: dpo_norm is written")
        loss = "sigmoid"
    draft.put("trainer.type", "simpo" if loss == "simpo" else "dpo", key)
    if averages and loss != "simpo":
        draft.put("trainer.average_logprobs", True, key, note="dpo_norm averages over tokens")
    beta = real(draft.get("beta", "dpo_beta", default=5.0))
    draft.put("trainer.beta", beta, "beta", "dpo_beta")
    if loss == "simpo":
        ratio = real(draft.get("gamma_beta_ratio", "dpo_gamma_beta_ratio", default=0.3))
        draft.put(
            "trainer.gamma",
            ratio * beta,
            "gamma_beta_ratio",
            "dpo_gamma_beta_ratio",
            note="times beta",
        )
    draft.skip("not read by this loss", "gamma_beta_ratio", "dpo_gamma_beta_ratio")
    smoothing = ("label_smoothing", "dpo_label_smoothing")
    if number(draft.get(*smoothing, default=0)) > 0 and loss == "sigmoid":
        draft.put("trainer.loss_type", "cdpo", *smoothing)
        draft.put("trainer.label_smoothing", real(draft.get(*smoothing)), *smoothing)
    draft.skip("0", *smoothing)
    if loss != "simpo":
        draft.put("trainer.precompute_reference", True)


def schedule(draft: Draft, program: str) -> None:
    """Write AdamW's keys and the schedule."""
    hf.schedule(draft, "linear")
    if "warmup_ratio" not in draft.settings and not draft.has("warmup_steps"):
        ratio = {"finetune": 0.03, "reward_modeling": 0.0}.get(program, 0.1)
        draft.put(
            "trainer.warmup", number(draft.get("warm_up_steps", default=ratio)), "warm_up_steps"
        )
    draft.skip("warmup_ratio decides", "warm_up_steps")
    if draft.has("final_lr_ratio"):
        draft.put(
            "trainer.min_learning_rate",
            real(draft.get("final_lr_ratio")) * draft.recipe["trainer.learning_rate"],
            "final_lr_ratio",
        )
    draft.copy("trainer.weight_decay", "weight_decay", default=0.0, convert=float)
    norm = number(draft.get("clip_grad_norm", "max_grad_norm", default=-1))
    if program == "grpo" and not draft.has("max_grad_norm"):
        norm = 1.0
    draft.put(
        "trainer.max_grad_norm", norm if norm > 0 else None, "clip_grad_norm", "max_grad_norm"
    )
    draft.copy(
        "trainer.adam_eps",
        "eps",
        default=1e-5 if program == "reward_modeling" else None,
        convert=float,
    )


def trainer(draft: Draft, program: str) -> None:
    """Write the trainer section."""
    rate = {"dpo": 2e-5, "grpo": 2e-5}.get(program, 2e-5)
    draft.copy("trainer.learning_rate", "learning_rate", default=rate, convert=float)
    if program == "grpo":
        prompts = integer(draft.get("num_unique_prompts_rollout", default=16))
        parts = integer(draft.get("num_mini_batches", default=1))
        draft.put(
            "trainer.batch_size",
            max(1, prompts // parts),
            "num_unique_prompts_rollout",
            note="prompts",
        )
        draft.put("trainer.num_minibatches", parts, "num_mini_batches")
        draft.copy("trainer.num_inner_epochs", "num_epochs", default=1, convert=int)
        group = draft.recipe["rollout.group_size"]
        steps = draft.get("num_training_steps")
        total = int(number(draft.get("total_episodes", default=100_000)))
        draft.put(
            "trainer.max_steps",
            int(steps or max(1, total // (prompts * group))),
            "num_training_steps",
            "total_episodes",
            note="episodes are completions",
        )
        draft.skip(
            "the completions are packed anew",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "local_mini_batch_size",
        )
    else:
        hf.batch(
            draft,
            {"reward_modeling": 1}.get(program, 8),
            truth(draft.get("packing", default=False)),
        )
        names = ("num_train_epochs", "num_epochs")
        steps = draft.get("max_train_steps")
        if steps is not None:
            draft.put("trainer.max_steps", int(steps), "max_train_steps")
            draft.skip("max_train_steps decides", *names)
        else:
            draft.copy(
                "trainer.num_epochs",
                *names,
                default={"finetune": 2}.get(program, 1),
                convert=number,
            )
    draft.skip("rows are always packed", "packing")
    schedule(draft, program)
    draft.copy(
        "trainer.seed", "seed", default=1 if program == "reward_modeling" else 42, convert=int
    )
    draft.refuse("trainer.seed is the seed of everything", "data_loader_seed")
    draft.copy("trainer.logging_steps", "logging_steps", convert=lambda n: max(1, int(number(n))))
    draft.copy("trainer.output_dir", "output_dir", convert=str)
    saving(draft, program)


def saving(draft: Draft, program: str) -> None:
    """Write when to save and to evaluate, and where to resume."""
    steps = draft.get("checkpointing_steps", "save_freq")
    by_number = str(steps).isdecimal() and int(steps) > 0
    draft.put(
        "trainer.save_steps",
        int(steps) if by_number else None,
        "checkpointing_steps",
        "save_freq",
        why="" if by_number or steps is None else "the last step is always saved",
    )
    if number(draft.get("keep_last_n_checkpoints", default=0)) > 0:
        draft.copy("trainer.keep_checkpoints", "keep_last_n_checkpoints", convert=int)
    draft.skip("all are kept there", "keep_last_n_checkpoints")
    if draft.has("resume_from_checkpoint"):
        draft.put(
            "trainer.resume_from_checkpoint",
            "latest",
            "resume_from_checkpoint",
            why="its checkpoints cannot be read: the newest run of posttrain's",
        )
    every = number(draft.get("local_eval_every", default=-1))
    tests = listed(draft.get("dataset_mixer_eval_list", default=[]))
    if program == "grpo" and every > 0 and tests:
        draft.put("trainer.eval_steps", int(every), "local_eval_every")
        splits = listed(draft.get("dataset_mixer_eval_list_splits", default=["test"]))
        draft.put(
            "eval.data",
            {"path": str(tests[0]), "split": str(splits[0])},
            "dataset_mixer_eval_list",
            "dataset_mixer_eval_list_splits",
            why="the first data set" if len(tests) > 2 else "",
        )
        draft.put("eval.max_samples", None)
        draft.put("eval.max_new_tokens", draft.recipe["rollout.max_new_tokens"])
    draft.skip("no evaluation during training", "local_eval_every", "dataset_mixer_eval_list*")
    draft.table({k: v for k, v in training_arguments.WITHOUT_EFFECT.items() if "hub" in k})


SOURCE = Source(
    "open-instruct (2026-08)",
    recognise,
    convert,
    programs=(
        r"open_instruct/(finetune|dpo_tune_cache|dpo_tune|dpo|grpo_fast|grpo|reward_modeling)\.py",
    ),
    needs_method=(*METHODS, *PROGRAMS),
    method_of=method_of,
)
