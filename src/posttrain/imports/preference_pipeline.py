"""A preference pipeline: `train.py --config FILE --model-index N`, several models in one file.

Its YAML has models, dataset, post_training, lora, training, gpu, finetuning and logging.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports.draft import Draft, Source
from posttrain.imports.hf import logger_names
from posttrain.imports.parts import integer, listed, number, product, rows, to_set, truth

LOSSES = {"sigmoid": "dpo", "hinge": "dpo", "ipo": "ipo", "kto_pair": "kto_pair"}
METHODS = {"dpo": "dpo", "ipo": "ipo", "kto": "kto_pair", "orpo": "orpo"}


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of this pipeline."""
    return "post_training.method" in settings


def convert(draft: Draft) -> None:
    """Write the recipe of one of its models."""
    models(draft)
    adapter(draft)
    columns = {}
    for ours in ("prompt", "chosen", "rejected"):
        theirs = draft.get(f"dataset.{ours}_column")
        if theirs not in (None, ours):
            columns[ours] = theirs
    section: dict[str, Any] = {
        "path": draft.get("dataset.path", "dataset.name", default=to_set("dataset.name"))
    }
    for key in ("split", "max_samples"):
        if draft.has(f"dataset.{key}"):
            section[key] = draft.get(f"dataset.{key}")
    section |= {"columns": columns} if columns else {}
    rows(
        draft,
        section,
        *(
            f"dataset.{k}"
            for k in (
                "name",
                "path",
                "split",
                "max_samples",
                "prompt_column",
                "chosen_column",
                "rejected_column",
            )
        ),
    )
    draft.copy("length.max_length", "training.max_length", "dataset.max_length", convert=int)
    draft.put("length.on_overlong", "truncate")
    method(draft)
    training(draft)
    draft.skip("how processes share the work: torchrun starts them", "gpu.*")
    draft.skip("the chosen model is in this recipe", "model_index")


def models(draft: Draft) -> None:
    """Write the model: the one that model_index names, else the first; others are named."""
    index = int(number(draft.get("model_index", default=0)))
    count = len({key.split(".")[1] for key in draft.settings if key.startswith("models.")})
    if count and not 0 <= index < count:
        raise ValueError(f"model_index {index}: the file has {count} models, counted from 0")
    name = draft.get(
        f"models.{index}.huggingface_id", f"models.{index}.name", default=to_set("models")
    )
    draft.put("model.name", name, f"models.{index}.huggingface_id")
    draft.copy(
        "trainer.run_name", f"models.{index}.name", convert=lambda text: str(text).replace("/", "-")
    )
    others = [key for key in draft.settings if key.startswith("models.") and key not in draft.lines]
    draft.refuse("another model of the file: model_index in the command chooses it", *others)


def adapter(draft: Draft) -> None:
    """Write the LoRA adapter."""
    if any(key.startswith("lora.") for key in draft.settings):
        draft.put("model.adapter.type", "lora")
        draft.comments.pop("model.adapter.type", None)
        draft.copy("model.adapter.r", "lora.r", default=16, convert=int)
        draft.copy(
            "model.adapter.alpha", "lora.lora_alpha", "lora.alpha", default=32, convert=number
        )
        draft.copy(
            "model.adapter.dropout", "lora.lora_dropout", "lora.dropout", default=0.0, convert=float
        )
        draft.copy("model.adapter.target_modules", "lora.target_modules", default="all-linear")
        draft.skip("as here", "lora.enabled", "lora.task_type", "lora.bias")
    else:
        draft.put("model.adapter.type", "none")


def method(draft: Draft) -> None:
    """Write the method and its choices."""
    name = str(draft.get("post_training.method"))
    if name not in METHODS:
        raise ValueError(f"post_training.method: {name}: expected one of {', '.join(METHODS)}")
    loss = str(draft.get("post_training.loss_type", default="sigmoid"))
    kind = LOSSES.get(loss, "dpo") if name == "dpo" else METHODS[name]
    draft.put("trainer.type", kind, "post_training.method", "post_training.loss_type")
    if loss == "hinge" and name == "dpo":
        draft.put("trainer.loss_type", "hinge", "post_training.loss_type")
    draft.copy("trainer.beta", "post_training.beta", default=0.1, convert=float)
    if kind != "orpo" and not truth(draft.get("post_training.use_ref_model", default=True)):
        draft.put("trainer.reference_free", True, "post_training.use_ref_model")
    draft.skip("a reference, if the method has one", "post_training.use_ref_model")


def training(draft: Draft) -> None:
    """Write the trainer section."""
    keys = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
    device, accumulation = (
        integer(draft.get(keys[0], default=8)),
        integer(draft.get(keys[1], default=1)),
    )
    note = product(draft, device, accumulation)
    draft.put("trainer.batch_size", device * accumulation * draft.processes, *keys, note=note)
    draft.copy(
        "trainer.num_epochs",
        "training.num_epochs",
        "training.num_train_epochs",
        default=1,
        convert=number,
    )
    draft.copy("trainer.learning_rate", "training.learning_rate", default=5e-5, convert=float)
    draft.copy(
        "trainer.warmup",
        "training.warmup_ratio",
        "training.warmup_steps",
        default=0,
        convert=number,
    )
    draft.copy("trainer.scheduler", "training.lr_scheduler_type", default="linear")
    for ours in (
        "weight_decay",
        "max_grad_norm",
        "seed",
        "logging_steps",
        "save_steps",
        "output_dir",
    ):
        draft.copy(f"trainer.{ours}", f"training.{ours}", f"finetuning.{ours}")
    draft.copy("trainer.output_dir", "output_dir")
    draft.skip("model.dtype: auto", "training.bf16", "training.fp16")
    on = draft.get("training.gradient_checkpointing", "finetuning.gradient_checkpointing")
    if on is not None:
        draft.put(
            "model.gradient_checkpointing",
            truth(on),
            "training.gradient_checkpointing",
            "finetuning.gradient_checkpointing",
        )
    patience = draft.get("finetuning.early_stopping_patience", "finetuning.early_stopping.patience")
    if patience is not None:
        draft.put(
            "trainer.eval_steps",
            int(number(draft.get("training.eval_steps", default=100))),
            "training.eval_steps",
        )
        draft.put("eval.split", "test")
        draft.put(
            "trainer.early_stopping.patience",
            int(patience),
            "finetuning.early_stopping_patience",
            "finetuning.early_stopping.patience",
            "finetuning.early_stopping.enabled",
        )
    asked = [
        name
        for name in logger_names()
        if truth(
            draft.get(
                f"logging.use_{name}", f"logging.{name}", f"logging.{name}.enabled", default=False
            )
        )
    ]
    named = [str(name) for name in listed(draft.get("logging.report_to", default=[]))]
    draft.put(
        "trainer.logger",
        [*asked, *(n for n in named if n in logger_names())],
        "logging.report_to",
        *(f"logging.{n}" for n in logger_names()),
        *(f"logging.use_{n}" for n in logger_names()),
    )
    draft.refuse("not offered by this installation", "logging.*")
    draft.refuse("no evaluation without early stopping", "training.eval_steps")


SOURCE = Source(
    "the preference pipeline of train.py",
    recognise,
    convert,
    programs=(r"(?<!scripts/)train\.py(?= )", r"pipeline/train\.py"),
)
