"""A fine-tuning framework: `scripts/train.py --config FILE --override a.b=c`, sections as here.

Its YAML has model, data, trainer and reward. LoRA is the default, with r 16, alpha 32 and dropout
0.05. Groups have 8 completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports.draft import Draft, Source
from posttrain.imports.parts import (
    dtype,
    integer,
    number,
    product,
    reward_to_set,
    rows,
    to_set,
    truth,
)

TYPES = ("sft", "dpo", "ppo", "grpo")
RATES = {"sft": 2e-5, "dpo": 5e-7, "ppo": 1e-6, "grpo": 1e-6}


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of this framework."""
    others = any(
        key.endswith("_component_") or key.startswith("post_training.") for key in settings
    )
    return {"model.name", "trainer.type"} <= settings.keys() and not others


def convert(draft: Draft) -> None:
    """Write the recipe of its settings."""
    method = str(draft.get("trainer.type", default="sft"))
    if method not in TYPES:
        raise ValueError(f"trainer.type: {method}: expected one of {', '.join(TYPES)}")
    draft.copy("model.name", "model.name", default=to_set("model.name"))
    dtype(draft, "auto", "model.dtype")
    if truth(draft.get("model.use_lora", default=True)):
        draft.put("model.adapter.type", "lora", "model.use_lora")
        for ours, theirs, default in (
            ("r", "r", 16),
            ("alpha", "alpha", 32),
            ("dropout", "dropout", 0.05),
        ):
            draft.copy(
                f"model.adapter.{ours}", f"model.lora.{theirs}", default=default, convert=number
            )
        draft.copy(
            "model.adapter.target_modules", "model.lora.target_modules", default="all-linear"
        )
    else:
        draft.put("model.adapter.type", "none", "model.use_lora")
        draft.skip("no adapter", "model.lora.*")
    draft.copy("model.gradient_checkpointing", "model.gradient_checkpointing", convert=truth)
    draft.start_from_adapter("model.resume_from")
    section: dict[str, Any] = {"name": draft.get("data.name", default=to_set("data.name"))}
    for ours in ("split", "max_samples", "path"):
        if draft.has(f"data.{ours}"):
            section[ours] = draft.get(f"data.{ours}")
    template = draft.get("data.template")
    if template is not None:
        section["prompt_template"] = template
    rows(
        draft, section, "data.name", "data.split", "data.max_samples", "data.path", "data.template"
    )
    draft.copy("length.max_length", "data.max_length", "model.max_length", "trainer.max_length")
    draft.put("length.on_overlong", "drop" if method in ("ppo", "grpo") else "truncate")
    draft.put("trainer.type", method, "trainer.type")
    trainer(draft, method)
    if method in ("ppo", "grpo"):
        online(draft)
    else:
        draft.skip(f"{method} has no reward", "reward.*")


def trainer(draft: Draft, method: str) -> None:
    """Write the trainer section."""
    device = integer(draft.get("trainer.batch_size", default=8))
    accumulation = integer(draft.get("trainer.gradient_accumulation_steps", default=1))
    total = device * accumulation * draft.processes
    note = product(draft, device, accumulation)
    draft.put(
        "trainer.batch_size",
        total,
        "trainer.batch_size",
        "trainer.gradient_accumulation_steps",
        note=note,
    )
    draft.copy(
        "trainer.learning_rate", "trainer.learning_rate", default=RATES[method], convert=float
    )
    for key in (
        "beta",
        "warmup_ratio",
        "weight_decay",
        "max_grad_norm",
        "seed",
        "logging_steps",
        "save_steps",
        "output_dir",
        "run_name",
        "resume_from_checkpoint",
        "epsilon",
    ):
        target = {"warmup_ratio": "warmup"}.get(key, key)
        draft.copy(f"trainer.{target}", f"trainer.{key}")
    if draft.has("trainer.max_steps") and number(draft.get("trainer.max_steps")) > 0:
        draft.copy("trainer.max_steps", "trainer.max_steps", convert=int)
        draft.skip("max_steps decides", "trainer.num_epochs")
    else:
        draft.copy("trainer.num_epochs", "trainer.num_epochs", default=1, convert=number)
    if draft.has("trainer.eval_steps"):
        draft.copy("trainer.eval_steps", "trainer.eval_steps", convert=int)
        draft.put("eval.max_samples", None)
    draft.copy("trainer.scheduler", "trainer.lr_scheduler_type", "trainer.scheduler")


def online(draft: Draft) -> None:
    """Write the rollout and reward sections."""
    group = ("trainer.group_size", "trainer.num_generations", "rollout.group_size")
    default = 1 if draft.recipe["trainer.type"] == "ppo" else 8
    draft.copy("rollout.group_size", *group, default=default, convert=int)
    draft.copy(
        "rollout.temperature",
        "trainer.temperature",
        "rollout.temperature",
        default=0.7,
        convert=float,
    )
    draft.copy(
        "rollout.max_new_tokens",
        "trainer.max_new_tokens",
        "rollout.max_new_tokens",
        default=512,
        convert=int,
    )
    kind = draft.get("reward.type")
    if kind in ("math_correctness", "code_execution"):
        draft.put("reward.type", kind, "reward.type")
        draft.copy("reward.positive", "reward.positive", default=1.0, convert=float)
        draft.copy("reward.negative", "reward.negative", default=0.0, convert=float)
        if kind == "code_execution":
            draft.copy("reward.partial_credit", "reward.partial_credit", convert=truth)
        draft.skip("not read by math_correctness", "reward.partial_credit")
    elif kind == "weighted":
        count, parts = 0, []
        while any(key.startswith(f"reward.rewards.{count}.") for key in draft.settings):
            parts.append(draft.under(f"reward.rewards.{count}"))
            count += 1
        draft.put("reward.type", "weighted", "reward.type")
        draft.put(
            "reward.rewards",
            parts,
            *(key for key in draft.settings if key.startswith("reward.rewards.")),
        )
    else:
        reward_to_set(draft, "the reward", "reward.type")


SOURCE = Source(
    "the framework of scripts/train.py",
    recognise,
    convert,
    programs=(r"scripts/train\.py",),
)
