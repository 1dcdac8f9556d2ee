"""Experiments with adapters and RL: `script_train.py --ft_config=NAME --train_on=DATASET`.

A named ft_config is LoRA of rank 2 with alpha 16 and dropout 0.1, or ReFT at positions f1 and l1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports.draft import Draft, Source
from posttrain.imports.parts import number, reward_to_set, rows, to_set, truth

CLASSIFIED = {
    "liar": "liar",
    "fever": "fever",
    "semeval": "semeval2020_task11",
    "propaganda": "semeval2020_task11",
}
COMPONENTS = ("query", "key", "value", "block_output", "mlp_output")


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of these experiments."""
    return "ft_config" in settings or "train_on" in settings


def convert(draft: Draft) -> None:
    """Write the recipe of an experiment."""
    draft.copy("model.name", "model_name", "model", "checkpoint", default="openai-community/gpt2")
    adapter(draft)
    name = str(draft.get("train_on", default=""))
    method = str(draft.get("method", "algo", default="")).lower()
    if name in CLASSIFIED and method in ("", "classification", "sft"):
        rows(draft, {"name": CLASSIFIED[name]}, "train_on")
        draft.put("trainer.type", "classification", "method", "algo")
    elif method in ("rloo", "grpo", "ppo"):
        rows(draft, {"name": name or "gsm8k"}, "train_on")
        draft.put("trainer.type", method, "method", "algo")
        if name == "fever":
            draft.put("reward.type", "classification")
            draft.put("reward.labels", ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"])
        elif name in ("gsm8k", "math", ""):
            draft.put("reward.type", "math_correctness")
        else:
            reward_to_set(draft, "the reward")
    elif method == "dpo" or name == "ultrafeedback":
        rows(draft, {"name": name or "ultrafeedback"}, "train_on")
        draft.put("trainer.type", "dpo", "method", "algo")
    else:
        rows(draft, {"name": name or to_set("train_on")}, "train_on")
        draft.put("trainer.type", "sft", "method", "algo")
    draft.comments.pop("trainer.type", None)
    draft.copy("trainer.batch_size", "batch_size", convert=int)
    draft.copy("trainer.learning_rate", "lr", "learning_rate", convert=float)
    draft.copy("trainer.num_epochs", "num_epochs", "epochs", default=1, convert=number)
    draft.copy("trainer.seed", "seed", convert=int)
    draft.copy("trainer.output_dir", "output_dir", convert=str)
    if "use_gpu" in draft.settings:
        draft.put("model.device", "auto" if truth(draft.get("use_gpu")) else "cpu", "use_gpu")
    if truth(draft.get("dev_mode", default=False)):
        section = dict(draft.recipe["data"])
        section["max_samples"] = 100
        draft.put("data", section, "dev_mode", why="the first 100 rows")
    draft.skip("off", "dev_mode")
    draft.skip("posttrain prints a data set's origin: posttrain data list", "sft_only", "rl_only")


def adapter(draft: Draft) -> None:
    """Write the adapter that ft_config names."""
    name = str(draft.get("ft_config", default="none")).lower()
    if "reft" in name:
        place = next((part for part in COMPONENTS if part in name), "block_output")
        place = "mlp_output" if "mlp" in name else place
        draft.put("model.adapter.type", "loreft", "ft_config")
        draft.put("model.adapter.rank", 2, "ft_config")
        draft.put("model.adapter.positions", "f1+l1", "ft_config")
        draft.put("model.adapter.component", place, "ft_config")
    elif "lora" in name:
        draft.put("model.adapter.type", "lora", "ft_config")
        for key, value in (("r", 2), ("alpha", 16), ("dropout", 0.1)):
            draft.put(f"model.adapter.{key}", value, "ft_config")
    else:
        known = name in ("none", "full", "full_finetuning", "baseline")
        draft.put("model.adapter.type", "none", "ft_config")
        if not known:
            draft.decide("ft_config", "refused", "", f"no {name}: all weights are trained")


SOURCE = Source(
    "the experiments of script_train.py",
    recognise,
    convert,
    programs=(r"script_train\.py",),
)
