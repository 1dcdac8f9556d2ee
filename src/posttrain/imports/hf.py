"""Keys of transformers' TrainingArguments (read at 5.23), which several frameworks inherit.

Older names that configs in use still have (warmup_ratio, evaluation_strategy, ...) are read too.
"""

from __future__ import annotations

from typing import Any, get_args

from posttrain.algorithms.config import TrainerConfig
from posttrain.imports.draft import Draft
from posttrain.imports.keys.hf import REFUSED, WITHOUT_EFFECT
from posttrain.imports.parts import integer, number, on_or_off, product, real

SCHEDULERS = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
}
ADAMW = (
    "adamw",
    "adamw_torch",
    "adamw_hf",
    "adamw_torch_fused",
    "adamw_apex_fused",
    "adamw_anyprecision",
)
PACKED = "packed rows hold several examples there, so that a step here has fewer"


def training(draft: Draft, method: str, **defaults: Any) -> None:
    """Write the keys of TrainingArguments; `defaults` are the framework's own where they differ."""
    put, copy = draft.put, draft.copy
    rate = defaults.get("learning_rate", 5e-5)
    copy("trainer.learning_rate", "learning_rate", default=rate, convert=float)
    if method not in ("grpo", "rloo"):
        batch(draft, defaults.get("per_device_train_batch_size", 8))
    duration(draft, defaults.get("num_train_epochs", 3.0))
    schedule(draft, defaults.get("lr_scheduler_type", "linear"))
    optimiser(draft)
    copy("trainer.seed", "seed", default=42, convert=int)
    copy(
        "trainer.logging_steps",
        "logging_steps",
        default=defaults.get("logging_steps"),
        convert=lambda n: max(1, int(float(n))),
    )
    saving(draft)
    copy("trainer.output_dir", "output_dir", convert=str)
    copy("trainer.run_name", "run_name", convert=lambda name: str(name).replace("/", "-"))
    copy(
        "trainer.resume_from_checkpoint",
        "resume_from_checkpoint",
        convert=lambda value: "latest" if value is True else value or None,
    )
    loggers(draft)
    if draft.get("gradient_checkpointing", default=defaults.get("gradient_checkpointing")):
        put("model.gradient_checkpointing", True, "gradient_checkpointing")
    copy("model.deterministic", "full_determinism", convert=bool)
    sharding(draft)
    draft.table(WITHOUT_EFFECT)
    draft.table(REFUSED, refuse=True)
    if draft.get("train_sampling_strategy", default="random") in ("random", "sequential"):
        draft.skip("rows come in random order", "train_sampling_strategy")


def batch(draft: Draft, default: int, packed: bool = False) -> None:
    """Write trainer.batch_size: rows of a device, times accumulation, times processes."""
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    device = integer(draft.get(keys[0], default=default))
    accumulation = integer(draft.get(keys[1], default=1))
    note = product(draft, device, accumulation)
    why = f"{note}; {PACKED}" if packed else ""
    draft.put(
        "trainer.batch_size", device * accumulation * draft.processes, *keys, why=why, note=note
    )


def duration(draft: Draft, epochs: float, *names: str) -> None:
    """Write num_epochs or max_steps; steps above 0 win, as in transformers."""
    names = names or ("num_train_epochs",)
    steps = draft.get("max_steps", default=-1)
    if int(steps) > 0:
        draft.put("trainer.max_steps", int(steps), "max_steps")
        draft.skip("max_steps wins", *names)
    else:
        draft.skip("-1: the epochs decide", "max_steps")
        draft.copy("trainer.num_epochs", *names, default=epochs, convert=float)


def schedule(draft: Draft, default: str, *names: str) -> None:
    """Write scheduler, warm-up and the last rate."""
    key = next((n for n in (*names, "lr_scheduler_type") if draft.has(n)), "lr_scheduler_type")
    name = str(draft.get(key, default=default)).lower()
    if name in SCHEDULERS:
        draft.put("trainer.scheduler", SCHEDULERS[name], key)
    else:
        draft.put("trainer.scheduler", "cosine", key)
        if draft.has(key):
            draft.decide(key, "refused", "", f"{name} has no counterpart: cosine is written")
    if name == "constant":
        draft.put("trainer.warmup", 0, why="", note="its constant schedule has no warm-up")
        draft.skip("a constant schedule has no warm-up", "warmup_ratio", "warmup_steps")
    else:
        warmup(draft)
    last = draft.under("lr_scheduler_kwargs")
    rate = draft.recipe.get("trainer.learning_rate", 0.0)
    if name == "cosine_with_min_lr" and last:
        lowest = last.get("min_lr")
        lowest = float(lowest) if lowest is not None else float(last.get("min_lr_rate", 0)) * rate
        keys = [f"lr_scheduler_kwargs.{k}" for k in last if k in ("min_lr", "min_lr_rate")]
        draft.put("trainer.min_learning_rate", lowest, *keys)
    draft.refuse("only the lowest rate of cosine_with_min_lr is read", "lr_scheduler_kwargs*")


def warmup(draft: Draft, default: float = 0) -> None:
    """Write trainer.warmup; a number of steps above 0 wins over a ratio."""
    steps = number(draft.get("warmup_steps", default=0))
    if steps > 0:
        draft.put("trainer.warmup", steps, "warmup_steps")
        draft.skip("warmup_steps wins", "warmup_ratio")
        return
    ratio = number(draft.get("warmup_ratio", default=default))
    draft.put("trainer.warmup", ratio, "warmup_ratio", *(["warmup_steps"] if steps == 0 else []))


def optimiser(draft: Draft, *names: str) -> None:
    """Write AdamW's keys; other optimisers are refused."""
    key = next((n for n in (*names, "optim", "optimizer") if draft.has(n)), "optim")
    name = str(draft.get(key, default="adamw_torch")).lower()
    if name in ADAMW:
        draft.skip("AdamW, as here", key)
    elif ("adam" in name and "8bit" in name) or name.startswith("paged_adamw"):
        draft.put(
            "trainer.adam_eps", 1e-8, key, why="AdamW, with its state in 32 bits and on the device"
        )
    else:
        draft.refuse("only AdamW is offered", key)
    betas = [real(draft.get(f"adam_beta{i}", default=b)) for i, b in ((1, 0.9), (2, 0.999))]
    if draft.has("adam_beta1") or draft.has("adam_beta2"):
        draft.put("trainer.adam_betas", betas, "adam_beta1", "adam_beta2")
    draft.copy("trainer.adam_eps", "adam_epsilon", convert=float)
    draft.copy(
        "trainer.weight_decay",
        "weight_decay",
        default=0.0,
        convert=float,
        note="" if draft.has("weight_decay") else "none",
    )
    draft.copy(
        "trainer.max_grad_norm",
        "max_grad_norm",
        default=1.0,
        convert=lambda norm: float(norm) if float(norm) > 0 else None,
    )


def saving(draft: Draft) -> None:
    """Write when checkpoints are saved, and how many are kept."""
    strategy = str(draft.get("save_strategy", default="steps"))
    steps = draft.get("save_steps", default=500)
    if strategy in ("no", "epoch", "best"):
        why = (
            ""
            if strategy == "no"
            else f"{strategy}: here the last step and the best by early_stopping"
        )
        draft.put("trainer.save_steps", None, "save_strategy", why=why)
        draft.skip(f"save_strategy is {strategy}", "save_steps")
    elif 0 < number(steps) < 1:
        draft.put(
            "trainer.save_steps", 500, "save_steps", why="a share of the run: every 500 steps"
        )
    else:
        draft.put("trainer.save_steps", int(number(steps)), "save_steps", "save_strategy")
    limit = draft.get("save_total_limit")
    if limit is not None and int(limit) > 0:
        draft.put("trainer.keep_checkpoints", int(limit), "save_total_limit")
    else:
        draft.skip("no limit", "save_total_limit")


def evaluating(draft: Draft, section: dict[str, Any], *keys: str, always: bool = False) -> None:
    """Write when to evaluate, and on what: `section` is the eval section without its defaults.

    Nothing is written if the source does not evaluate during training."""
    name = "eval_strategy" if draft.has("eval_strategy") else "evaluation_strategy"
    strategy = on_or_off(draft.get(name, default="no"))
    if not always and (strategy in ("no", "False") or not section):
        if strategy != "no" and not section:
            draft.refuse("no rows to evaluate on are named", name, "eval_steps")
        draft.skip("eval_strategy is no", name, "eval_steps", *keys)
        early_stopping(draft, False)
        return
    steps = number(draft.get("eval_steps", default=draft.recipe.get("trainer.logging_steps", 500)))
    if strategy == "epoch" or 0 < steps < 1:
        draft.put(
            "trainer.eval_steps",
            500,
            name,
            "eval_steps",
            why="once in an epoch or a share of the run: every 500 steps, and after the last",
        )
    else:
        draft.put("trainer.eval_steps", max(1, int(steps)), "eval_steps", name)
    for key, value in {"max_samples": None, **section}.items():
        draft.put(f"eval.{key}", value, *keys, note="all rows" if key == "max_samples" else "")
    early_stopping(draft, True)


def early_stopping(draft: Draft, evaluates: bool) -> None:
    """Write early stopping; without a patience, the best model is only kept."""
    patience = draft.get("early_stopping_patience", "early_stopping_steps")
    metric = draft.get("metric_for_best_model", default="eval_loss")
    keys = ("metric_for_best_model", "greater_is_better", "load_best_model_at_end")
    names = ("early_stopping_patience", "early_stopping_steps", *keys)
    if not evaluates or (patience is None and not draft.get("load_best_model_at_end")):
        draft.skip("no early stopping and no choice of the best checkpoint", *names)
        return
    metric = metric if str(metric).startswith("eval_") else f"eval_{metric}"
    best = bool(draft.get("greater_is_better", default=not str(metric).endswith("loss")))
    why = "" if patience is not None else "the best is kept; the run never stops early"
    draft.put("trainer.early_stopping.metric", metric, *keys, why=why)
    draft.put("trainer.early_stopping.mode", "max" if best else "min", "greater_is_better")
    draft.put("trainer.early_stopping.patience", int(patience or 1_000_000), *names[:2])


def loggers(draft: Draft) -> None:
    """Write where metrics also go; a tracker that is not offered is refused by name."""
    value = draft.get("report_to")
    if value is None:
        return
    asked = [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []
    asked = [part.strip() for name in asked for part in str(name).split(",")]
    offered = logger_names()
    names = [name for name in asked if name in offered]
    others = [name for name in asked if name not in (*offered, "none", "all", "")]
    if "all" in asked:
        names = ["tensorboard"]
    why = (
        f"not offered: {', '.join(others)}"
        if others
        else "all: tensorboard"
        if "all" in asked
        else ""
    )
    draft.put("trainer.logger", names, "report_to", why=why)


def logger_names() -> tuple[str, ...]:
    """Return the trackers that trainer.logger takes."""
    annotation: Any = TrainerConfig.model_fields["logger"].annotation
    while annotation is not None and not all(
        isinstance(a, str) for a in get_args(annotation) or [0]
    ):
        annotation = next((a for a in get_args(annotation) if get_args(a)), None)
    return get_args(annotation)


def sharding(draft: Draft) -> None:
    """Write how processes share the model, from the name of a DeepSpeed file or FSDP's options."""
    speed, fsdp = str(draft.get("deepspeed", default="")), draft.get("fsdp", default="")
    sharded = any(word in speed.lower() for word in ("3", "z3", "stage3"))
    if speed:
        draft.put(
            "distributed.strategy",
            "fsdp" if sharded else "ddp",
            "deepspeed",
            why="by the file's name; how the model is sharded does not change the result",
        )
    if fsdp:
        draft.put(
            "distributed.strategy", "fsdp", "fsdp", why="FSDP2, in bfloat16 as model.dtype says"
        )
    draft.skip("details of the sharding", "fsdp_*", "deepspeed_*", "fsdp.*")
    draft.skip("no sharding", "deepspeed", "fsdp")
