"""What a wrong config gets: the key, what is wrong with it, and the nearest right thing."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

from posttrain.algorithms import ALGORITHMS
from posttrain.rewards import REWARDS

# Names users bring from other frameworks -> what to write here.
HINTS = {
    "model_name_or_path": "model.name",
    "base_model": "model.name",
    "pretrained_model_name_or_path": "model.name",
    "use_peft": "model.use_lora",
    "lora_r": "model.lora.r",
    "lora_rank": "model.lora.r",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_target_modules": "model.lora.target_modules",
    "lora_target": "model.lora.target_modules",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype: bfloat16",
    "fp16": "model.dtype: bfloat16 (fp16 would need loss scaling)",
    "dataset_name": "data.name or data.path",
    "dataset": "data.name or data.path",
    "datasets": "data (a list makes a mixture)",
    "prompt": "data.columns, for example {prompt: question}",
    "dataset_train_split": "data.split",
    "dataset_test_split": "eval.data.split",
    "per_device_train_batch_size": "trainer.batch_size (over all devices) and "
    "trainer.micro_batch_tokens",
    "per_device_eval_batch_size": "trainer.micro_batch_tokens",
    "train_batch_size": "trainer.batch_size",
    "micro_batch_size": "trainer.micro_batch_tokens",
    "gradient_accumulation_steps": "trainer.batch_size; accumulation follows from it and "
    "trainer.micro_batch_tokens",
    "num_train_epochs": "trainer.num_epochs",
    "lr": "trainer.learning_rate",
    "lr_scheduler_type": "trainer.scheduler",
    "lr_scheduler": "trainer.scheduler",
    "warmup_ratio": "trainer.warmup (below 1: a share of all steps)",
    "warmup_steps": "trainer.warmup (1 or more: steps)",
    "max_seq_length": "length.max_length",
    "cutoff_len": "length.max_length",
    "sequence_len": "length.max_length",
    "packing": "nothing: rows are always packed",
    "report_to": "trainer.logger",
    "logging_dir": "trainer.output_dir",
    "save_total_limit": "trainer.keep_checkpoints",
    "eval_strategy": "trainer.eval_steps",
    "eval_tasks": "eval.tasks",
    "eval_dataset": "eval.data",
    "metric_for_best_model": "trainer.early_stopping.metric",
    "greater_is_better": "trainer.early_stopping.mode: max or min",
    "load_best_model_at_end": "trainer.early_stopping; a run stands for its best checkpoint",
    "early_stopping_patience": "trainer.early_stopping.patience",
    "num_labels": "trainer.labels, or nothing: they are read from the data",
    "problem_type": "trainer.multi_label",
    "num_generations": "rollout.group_size",
    "max_completion_length": "rollout.max_new_tokens",
    "max_tokens": "rollout.max_new_tokens (also in sampling and eval)",
    "use_vllm": "rollout.engine: server or vllm",
    "vllm_mode": "rollout.engine: server, or vllm (in this process)",
    "vllm_server_base_url": "rollout.servers",
    "vllm_gpu_memory_utilization": "rollout.gpu_memory_utilization",
    "kl_coef": "trainer.beta",
    "loss_type": "trainer.reduction",
    "num_iterations": "trainer.num_inner_epochs",
    "num_ppo_epochs": "trainer.num_inner_epochs",
    "clip_ratio": "trainer.epsilon",
    "reward_funcs": "reward.type",
    "placeholder_token": "trainer.step_separator",
    "val_set_size": "eval.max_samples",
    "fsdp": "distributed.strategy: fsdp",
}


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """All problems in one line each, joined: where, what, and the nearest right thing."""
    return "; ".join(dict.fromkeys(_explain_one(dict(e), root) for e in error.errors()))


def _explain_one(error: dict[str, Any], root: type[BaseModel]) -> str:
    known = key_paths(root)
    tags = {*ALGORITHMS, *REWARDS, "list[DataConfig]", "DataConfig"}
    parts = [str(part) for part in error["loc"]]
    unknown = error["type"] == "extra_forbidden"
    # pydantic puts the union's tag into the location; users did not write it
    tagged = [0 < i < len(parts) - unknown and p in tags for i, p in enumerate(parts)]
    loc = [part for part, is_tag in zip(parts, tagged) if not is_tag]
    where = ".".join(loc)
    if unknown:
        key, section = loc[-1], ".".join(p for p in loc[:-1] if not p.isdigit())
        siblings = _children(known, section)
        own = {name for model in _models_at(root, parts[:-1]) for name in model.model_fields}
        if key in HINTS and (key not in siblings or HINTS[key].rpartition(".")[2] in own):
            return f"unknown key {where}: write {HINTS[key]}"
        siblings = siblings or _children(known, section.rpartition(".")[0])  # below a user's name
        if key in siblings:
            kind = ["", *(part for part, is_tag in zip(parts, tagged) if is_tag)][-1]
            return f"{where} is a key of another {section} type, not of {kind}"
        elsewhere = [p for p in known if p.rpartition(".")[2] == key]
        if elsewhere:
            best = min(elsewhere, key=lambda p: (not p.startswith(f"{section}."), p.count(".")))
            return f"{key} is not a key of {section or 'the top level'}: it belongs at {best}"
        near = difflib.get_close_matches(key, own, n=1) or difflib.get_close_matches(key, siblings)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(own))}"
        return f"unknown key {where}: {hint}"
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        choices = [model.model_fields["type"].default for model in _models_at(root, parts)]
        given = error["ctx"].get("tag")
        near = difflib.get_close_matches(str(given), choices, n=1)
        problem = f"{where}.type {given!r} is not known" if given else f"{where}.type is missing"
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(choices)}"
        return f"{problem}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    # YAML reads yes, no, on and off as booleans
    quotes = error["type"] == "string_type" and not isinstance(error["input"], (dict, list))
    fix = ": put it in quotes" if quotes and error["input"] is not None else ""
    return f"{where}: {message[0].lower() + message[1:]} (got {error['input']!r}){fix}"


def _children(paths: list[str], section: str) -> list[str]:
    return [p.rpartition(".")[2] for p in paths if p.rpartition(".")[0] == section]


def _models_at(root: type[BaseModel], parts: list[str]) -> list[type[BaseModel]]:
    """The models that may stand at a location, which names keys, list places and union tags."""
    models = [root]
    for part in parts:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        below = [model for field in fields for model in _models_in(field.annotation)]
        chosen = [m for m in models if getattr(m.model_fields.get("type"), "default", "") == part]
        models = below or chosen or models
    return models


def key_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of the schema, the union members' included."""
    paths: list[str] = []
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        paths.append(path)
        for nested in _models_in(info.annotation):
            paths += key_paths(nested, path + ".")
    return list(dict.fromkeys(paths))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in getattr(annotation, "__args__", ()) for m in _models_in(arg)]
