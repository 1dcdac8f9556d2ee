"""Configs as users of other frameworks write them, one or more for each source of an import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.imports.draft import Draft
from posttrain.imports.read import Request, flatten, read_words
from posttrain.imports.run import import_request
from posttrain.imports.write import recipe_text

LLAMA_FACTORY = {
    "model_name_or_path": "org/model",
    "stage": "sft",
    "finetuning_type": "lora",
    "dataset": "mine",
    "template": "qwen",
}
AXOLOTL = {
    "base_model": "org/model",
    "datasets": [{"path": "rows.jsonl", "type": "chat_template"}],
    "micro_batch_size": 2,
    "learning_rate": 1e-4,
}
TRL = {"model_name_or_path": "org/model", "dataset_name": "org/rows"}
TORCHTUNE = {
    "model": {"_component_": "torchtune.models.llama3_2.llama3_2_1b"},
    "checkpointer": {"checkpoint_dir": "models/llama"},
    "dataset": {"_component_": "torchtune.datasets.chat_dataset", "source": "org/rows"},
    "loss": {"_component_": "torchtune.modules.loss.LinearCrossEntropyLoss"},
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4},
    "batch_size": 2,
}
OPEN_INSTRUCT = {"model_name_or_path": "org/model", "dataset_mixer": {"org/rows": 1.0}}
VERL = {
    "actor_rollout_ref": {"model": {"path": "org/model"}},
    "data": {"train_files": "train.parquet"},
    "algorithm": {"adv_estimator": "grpo"},
}
VERL_SFT = {"model": {"partial_pretrain": "org/model"}, "data": {"train_files": "train.parquet"}}
FINE_TUNING = {
    "model": {"name": "org/model", "lora": {"r": 8}},
    "data": {"name": "gsm8k"},
    "trainer": {"type": "grpo", "batch_size": 4},
    "reward": {"type": "math_correctness", "positive": 1.0},
}
PIPELINE = {
    "models": [{"name": "one", "huggingface_id": "org/model"}],
    "dataset": {"name": "org/pairs"},
    "post_training": {"method": "dpo", "beta": 0.2},
    "training": {"num_epochs": 2},
}
SCRATCH = {"model_name": "gpt2", "batch_size": 4, "max_length": 64, "lr": 1e-4, "epochs": 2}
EXPERIMENT = {"ft_config": "lora_baseline", "train_on": "liar"}
SHELL = {"MODEL_NAME": "org/model", "TRAIN_FILE": "train.parquet", "BATCH_SIZE": 2}

# name of the source, method, settings
SAMPLES: list[tuple[str, str | None, dict[str, Any]]] = [
    ("llamafactory", None, LLAMA_FACTORY),
    *(
        ("llamafactory", None, {**LLAMA_FACTORY, "stage": stage})
        for stage in ("pt", "rm", "dpo", "kto", "ppo")
    ),
    *(
        ("llamafactory", None, {**LLAMA_FACTORY, "stage": "dpo", "pref_loss": loss})
        for loss in ("orpo", "simpo", "hinge", "ipo")
    ),
    ("axolotl", None, AXOLOTL),
    *(
        ("axolotl", None, {**AXOLOTL, "rl": rl})
        for rl in ("dpo", "ipo", "orpo", "kto", "simpo", "grpo")
    ),
    *(
        ("trl", method, TRL)
        for method in ("sft", "dpo", "kto", "reward", "grpo", "rloo", "cpo", "orpo")
    ),
    ("torchtune", None, TORCHTUNE),
    *(
        ("torchtune", None, {**TORCHTUNE, "loss": {"_component_": f"x.{loss}"}})
        for loss in ("DPOLoss", "RSOLoss", "PPOLoss", "GRPOLoss")
    ),
    *(
        ("open_instruct", method, OPEN_INSTRUCT)
        for method in ("finetune", "dpo", "grpo", "reward_modeling")
    ),
    *(
        ("verl", None, {**VERL, "algorithm": {"adv_estimator": name}})
        for name in ("grpo", "gae", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline")
    ),
    ("verl", None, VERL_SFT),
    ("fine_tuning", None, FINE_TUNING),
    *(("fine_tuning", None, {**FINE_TUNING, "trainer": {"type": kind}}) for kind in ("sft", "ppo")),
    ("preference_pipeline", None, PIPELINE),
    *(
        ("preference_pipeline", None, {**PIPELINE, "post_training": {"method": name}})
        for name in ("ipo", "kto", "orpo")
    ),
    ("from_scratch", None, SCRATCH),
    ("experiments", None, EXPERIMENT),
    ("experiments", None, {"ft_config": "reft_query", "train_on": "gsm8k", "method": "rloo"}),
    ("verl_sft", None, SHELL),
]


def imported(
    tree: dict[str, Any],
    source: str | None = None,
    method: str | None = None,
    processes: int | None = None,
    folder: Path | None = None,
) -> Draft:
    """Return the draft of nested or dotted settings."""
    folders = (".",) if folder is None else (str(folder),)
    request = Request("the config", flatten(tree), folders=folders)
    return import_request(request, source, method, processes)


def from_command(text: str, **variables: str) -> Draft:
    """Return the draft of a command in one line."""
    return import_request(read_words(text.split(), variables))


def flat(text: str) -> str:
    """Return the words of a recipe's text without its comment signs and line breaks."""
    return " ".join(text.replace("#", " ").split())


def text_of(draft: Draft) -> str:
    """Return the recipe's text."""
    return recipe_text(draft, "the config")
