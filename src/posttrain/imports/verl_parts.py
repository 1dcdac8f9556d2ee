"""What verl's SFT and RL trainers share: model, rows, AdamW, saving and evaluating."""

from __future__ import annotations

from typing import Any

from posttrain.imports.draft import Draft
from posttrain.imports.hf import logger_names
from posttrain.imports.parts import (
    dtype,
    listed,
    number,
    rows,
    to_set,
    truth,
)

ACTOR, ROLLOUT, MODEL = (
    "actor_rollout_ref.actor",
    "actor_rollout_ref.rollout",
    "actor_rollout_ref.model",
)


def schedule(draft: Draft, prefix: str, rate: float, warm: float, shape: str, decay: float) -> None:
    """Write AdamW and its schedule; the arguments are the defaults of the trainer."""
    draft.copy("trainer.learning_rate", f"{prefix}.lr", default=rate, convert=float)
    kind = ("lr_scheduler", "lr_scheduler_type", "warmup_style")
    name = str(draft.get(*(f"{prefix}.{k}" for k in kind), default=shape))
    draft.put(
        "trainer.scheduler",
        name if name in ("cosine", "constant") else "cosine",
        *(f"{prefix}.{k}" for k in kind),
        why="" if name in ("cosine", "constant") else f"{name} has no counterpart: cosine",
    )
    steps = number(draft.get(f"{prefix}.lr_warmup_steps", default=-1))
    ratio = number(
        draft.get(f"{prefix}.lr_warmup_steps_ratio", f"{prefix}.warmup_steps_ratio", default=warm)
    )
    draft.put(
        "trainer.warmup",
        steps if steps >= 1 else ratio,
        f"{prefix}.lr_warmup_steps",
        f"{prefix}.lr_warmup_steps_ratio",
        f"{prefix}.warmup_steps_ratio",
    )
    if draft.has(f"{prefix}.min_lr_ratio"):
        lowest = float(draft.get(f"{prefix}.min_lr_ratio")) * draft.recipe["trainer.learning_rate"]
        draft.put("trainer.min_learning_rate", lowest, f"{prefix}.min_lr_ratio")
    draft.copy(
        "trainer.weight_decay",
        f"{prefix}.weight_decay",
        default=decay,
        convert=float,
        note="for matrices only; there for every parameter",
    )
    draft.copy(
        "trainer.adam_betas", f"{prefix}.betas", default=[0.9, 0.95] if prefix == "optim" else None
    )
    draft.copy(
        "trainer.max_grad_norm",
        f"{prefix}.clip_grad",
        f"{ACTOR}.grad_clip",
        default=1.0,
        convert=float,
    )
    draft.skip("follows from the run", f"{prefix}.total_training_steps")


def model(draft: Draft, prefix: str, path: str) -> None:
    """Write the model section."""
    draft.copy("model.name", path, default=to_set(path))
    dtype(draft, "bfloat16")
    ranks = (f"{prefix}.lora_rank", f"{prefix}.lora.rank")
    rank = int(number(draft.get(*ranks, default=0)))
    if rank > 0:
        draft.put("model.adapter.type", "lora", *ranks)
        draft.put("model.adapter.r", rank, *ranks)
        alphas = (f"{prefix}.lora_alpha", f"{prefix}.lora.alpha")
        draft.copy("model.adapter.alpha", *alphas, default=16, convert=number)
        draft.put("model.adapter.dropout", 0.0)
        asked = draft.get(f"{prefix}.target_modules", default="all-linear")
        draft.put(
            "model.adapter.target_modules",
            asked if asked == "all-linear" else listed(asked),
            f"{prefix}.target_modules",
        )
        draft.copy("model.adapter.exclude_modules", f"{prefix}.exclude_modules")
    else:
        draft.put("model.adapter.type", "none", f"{prefix}.lora_rank")
        draft.skip("no adapter", f"{prefix}.lora_alpha", f"{prefix}.target_modules")
    draft.start_from_adapter(f"{prefix}.lora_adapter_path")
    on = draft.get(
        f"{prefix}.enable_gradient_checkpointing", f"{prefix}.gradient_checkpointing", default=True
    )
    draft.put(
        "model.gradient_checkpointing",
        truth(on),
        f"{prefix}.enable_gradient_checkpointing",
        f"{prefix}.gradient_checkpointing",
    )


def files(draft: Draft, key: str) -> Any:
    """Return the files of a key: one, or a list."""
    value = draft.get(key)
    names = [str(part).strip("'\" ") for part in listed(value)] if value is not None else []
    names = names or [to_set(key)]
    return names if len(names) > 1 else names[0]


def trainer(draft: Draft, epochs: float) -> None:
    """Write the keys below verl's `trainer`, and the eval section."""
    steps = draft.get("trainer.total_training_steps")
    if steps is not None:
        draft.put("trainer.max_steps", int(steps), "trainer.total_training_steps")
        draft.skip("total_training_steps decides", "trainer.total_epochs")
    else:
        draft.copy("trainer.num_epochs", "trainer.total_epochs", default=epochs, convert=number)
        draft.skip("null: the epochs decide", "trainer.total_training_steps")
    every = int(number(draft.get("trainer.save_freq", default=-1)))
    draft.put("trainer.save_steps", every if every > 0 else None, "trainer.save_freq")
    kept = draft.get("trainer.max_ckpt_to_keep", "trainer.max_actor_ckpt_to_keep")
    if kept is not None:
        draft.put(
            "trainer.keep_checkpoints",
            max(1, int(kept)),
            "trainer.max_ckpt_to_keep",
            "trainer.max_actor_ckpt_to_keep",
            "trainer.max_critic_ckpt_to_keep",
        )
    draft.copy("trainer.output_dir", "trainer.default_local_dir", convert=str)
    draft.copy(
        "trainer.run_name",
        "trainer.experiment_name",
        convert=lambda name: str(name).replace("/", "-"),
    )
    path = draft.get("trainer.resume_from_path", "trainer.resume_from_checkpoint")
    if path not in (None, False):
        draft.put(
            "trainer.resume_from_checkpoint",
            "latest",
            "trainer.resume_from_path",
            "trainer.resume_from_checkpoint",
            why="verl's checkpoints cannot be read: the newest run of posttrain's",
        )
    asked = [str(name) for name in listed(draft.get("trainer.logger", default=[]))]
    asked = [name.strip("'\"[] ") for name in asked]
    others = [n for n in asked if n not in (*logger_names(), "console", "file", "")]
    draft.put(
        "trainer.logger",
        [n for n in asked if n in logger_names()],
        "trainer.logger",
        why=f"not offered: {', '.join(others)}" if others else "",
    )
    tests = int(number(draft.get("trainer.test_freq", default=-1)))
    if tests > 0 and draft.has("data.val_files"):
        draft.put("trainer.eval_steps", tests, "trainer.test_freq")
        section: dict[str, Any] = {"path": files(draft, "data.val_files")}
        if isinstance(draft.recipe["data"], dict) and "columns" in draft.recipe["data"]:
            section["columns"] = draft.recipe["data"]["columns"]
        draft.put("eval.data", section, "data.val_files")
        most = int(number(draft.get("data.val_max_samples", default=-1)))
        draft.put("eval.max_samples", most if most > 0 else None, "data.val_max_samples")
    draft.skip(
        "no evaluation during training",
        "trainer.test_freq",
        "data.val_files",
        "data.val_max_samples",
    )


def training_rows(draft: Draft, columns: dict[str, str], *keys: str) -> None:
    """Write the data section of the training files."""
    section: dict[str, Any] = {"path": files(draft, "data.train_files")}
    if columns:
        section["columns"] = columns
    most = int(number(draft.get("data.train_max_samples", default=-1)))
    if most > 0:
        section["max_samples"] = most
    rows(draft, section, "data.train_files", "data.train_max_samples", *keys)
