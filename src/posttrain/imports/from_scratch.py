"""Scripts from scratch: `train_base.yaml` with model_name, batch_size, max_length, lr, epochs.

The scripts' names say the method: reward model, DPO, PPO or GRPO with several rejected completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports.draft import Draft, Source
from posttrain.imports.parts import number, reward_to_set, rows, to_set, truth

METHODS = {
    "base": "sft",
    "ddp": "sft",
    "amp": "sft",
    "lora": "sft",
    "wandb": "sft",
    "reward_model": "reward_model",
    "reward": "reward_model",
    "dpo": "dpo",
    "ppo": "ppo",
    "grpo": "grpo",
}


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of these scripts."""
    return "model_name" in settings and "lr" in settings and "epochs" in settings


def convert(draft: Draft) -> None:
    """Write the recipe of its settings."""
    method = METHODS.get(draft.program, draft.program or "sft")
    draft.copy("model.name", "model_name", default=to_set("model_name"))
    if truth(draft.get("use_lora", default=draft.program == "lora")) or draft.has("lora_r"):
        draft.put("model.adapter.type", "lora", "use_lora")
        draft.copy("model.adapter.r", "lora_r", "r", convert=int)
        draft.copy("model.adapter.alpha", "lora_alpha", "alpha", convert=number)
        draft.copy("model.adapter.dropout", "lora_dropout", convert=float)
    else:
        draft.put("model.adapter.type", "none", "use_lora")
    draft.copy("model.gradient_checkpointing", "gradient_checkpointing", convert=truth)
    names = ("data_path", "train_file", "dataset", "dataset_name", "prompts_file", "data")
    given = draft.get(*names)
    rows(draft, {"path": given if given is not None else to_set("the rows")}, *names)
    draft.copy("length.max_length", "max_length", default=512, convert=int)
    draft.put("length.on_overlong", "truncate" if method not in ("ppo", "grpo") else "drop")
    draft.put("trainer.type", method)
    draft.comments.pop("trainer.type", None)
    device = int(number(draft.get("batch_size", default=8)))
    accumulation = int(
        number(draft.get("gradient_accumulation_steps", "accumulation_steps", default=1))
    )
    draft.put(
        "trainer.batch_size",
        device * accumulation * draft.processes,
        "batch_size",
        "gradient_accumulation_steps",
        "accumulation_steps",
        note=f"{device} x {accumulation} x {draft.processes} process(es)",
    )
    draft.copy("trainer.learning_rate", "lr", default=5e-5, convert=float)
    draft.copy("trainer.num_epochs", "epochs", default=1, convert=number)
    for key in ("beta", "seed", "weight_decay", "save_steps", "output_dir", "logging_steps"):
        draft.copy(f"trainer.{key}", key)
    draft.put("trainer.scheduler", "constant")
    draft.put("trainer.warmup", number(draft.get("warmup_steps", default=0)), "warmup_steps")
    if method in ("ppo", "grpo"):
        draft.copy(
            "rollout.group_size",
            "group_size",
            "num_generations",
            default=1 if method == "ppo" else 8,
            convert=int,
        )
        draft.copy("rollout.max_new_tokens", "max_new_tokens", convert=int)
        draft.copy("rollout.temperature", "temperature", convert=float)
        path = draft.get("reward_model_path", "reward_model")
        if path is not None:
            draft.put("reward.type", "reward_model", "reward_model_path", "reward_model")
            draft.put("reward.path", path, "reward_model_path", "reward_model")
        else:
            reward_to_set(draft, "the reward")
    draft.skip("bfloat16 if the device has it", "amp", "use_amp", "fp16", "bf16")
    draft.skip("set trainer.logger", "use_wandb", "wandb_project", "project")
    draft.skip("how rows are loaded or printed", "num_workers", "log_interval", "device")


SOURCE = Source(
    "the scripts of train_base.yaml",
    recognise,
    convert,
    programs=(r"train_(base|ddp|amp|lora|wandb|reward_model|reward|dpo|ppo|grpo)\w*\.py",),
)
