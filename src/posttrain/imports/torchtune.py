"""torchtune 0.7: recipe configs (components named by `_component_`) and `tune run RECIPE --config`.

Gradients are scaled by the step's tokens, as here. DPO sums log-probs, and its label smoothing is
that of cDPO. Weight decay is AdamW's, for every parameter; torch's default is 0.01.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports import hf
from posttrain.imports.draft import Draft, Fate, Source
from posttrain.imports.keys.torchtune import REFUSED, WITHOUT_EFFECT
from posttrain.imports.parts import (
    dtype,
    integer,
    number,
    product,
    real,
    reward_to_set,
    rows,
    to_set,
    truth,
)

ALPACA = "the instruction is the user's message; there, a fixed text stands around it"


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of torchtune."""
    return any(key.endswith("._component_") for key in settings)


def component(draft: Draft, section: str) -> str:
    """Return the last part of a section's `_component_`."""
    return str(draft.get(f"{section}._component_", default="")).rpartition(".")[2]


def convert(draft: Draft) -> None:
    """Write the recipe of torchtune's settings."""
    loss = component(draft, "loss")
    if not loss:
        raise ValueError("the config has no loss._component_: it is of no training recipe")
    method = {"DPOLoss": "dpo", "RSOLoss": "dpo", "PPOLoss": "ppo"}.get(loss, "sft")
    if "GRPO" in loss:
        method = "grpo"
    text = component(draft, "dataset") in (
        "text_completion_dataset",
        "wikitext_dataset",
        "cnn_dailymail_articles_dataset",
    )
    if method == "sft" and text:
        method = "pretrain"
    model(draft)
    data(draft, method)
    draft.put("trainer.type", method, "loss._component_")
    draft.comments.pop("trainer.type", None)
    if method == "dpo":
        pairs(draft, loss)
    elif method in ("grpo", "ppo"):
        online(draft, method)
    trainer(draft, method)
    draft.table(WITHOUT_EFFECT)
    draft.table(REFUSED, refuse=True)


def model(draft: Draft) -> None:
    """Write the model section; the model is in the checkpointer's folder."""
    draft.copy(
        "model.name",
        "checkpointer.checkpoint_dir",
        default=to_set("checkpointer.checkpoint_dir"),
        convert=str,
    )
    dtype(draft, "bfloat16", "dtype")
    draft.copy(
        "model.device", "device", convert=lambda name: name if name in ("cpu", "cuda") else "auto"
    )
    draft.copy("model.gradient_checkpointing", "enable_activation_checkpointing", convert=truth)
    builder = str(draft.get("model._component_", default=""))
    name = builder.rpartition(".")[2]
    modules = draft.get("model.lora_attn_modules")
    if modules is None:
        draft.put("model.adapter.type", "none")
        draft.comments["model.adapter.type"] = [
            f"all weights, as {name or 'the model'} trains them"
        ]
        return
    names = ["o_proj" if m == "output_proj" else m for m in modules]
    if truth(draft.get("model.apply_lora_to_mlp", default=False)):
        names += ["gate_proj", "up_proj", "down_proj"]
    draft.put(
        "model.adapter.type",
        "dora" if truth(draft.get("model.use_dora", default=False)) or "dora" in name else "lora",
        "model.use_dora",
        "model._component_",
    )
    draft.put(
        "model.adapter.target_modules",
        names,
        "model.lora_attn_modules",
        "model.apply_lora_to_mlp",
        note="output_proj is o_proj in the model's files",
    )
    draft.refuse("the output head gets no LoRA", "model.apply_lora_to_output")
    draft.copy("model.adapter.r", "model.lora_rank", default=8, convert=int)
    draft.copy("model.adapter.alpha", "model.lora_alpha", default=16, convert=number)
    draft.copy("model.adapter.dropout", "model.lora_dropout", default=0.0, convert=float)
    if "qlora" in name or "qdora" in name or truth(draft.get("model.quantize_base", default=False)):
        draft.put("model.quantization.type", "nf4", "model._component_", "model.quantize_base")


def data(draft: Draft, method: str) -> None:
    """Write the data and length sections, of torchtune's built-in data sets by what they read."""
    name = component(draft, "dataset")
    split = str(draft.get("dataset.split", default="train"))
    section: dict[str, Any] = {}
    keys, why = ["dataset._component_", "dataset.source", "dataset.split"], ""
    source = draft.get("dataset.data_files", "dataset.source")
    if name.startswith("alpaca") and source in (None, "yahma/alpaca-cleaned", "tatsu-lab/alpaca"):
        why = ALPACA + ("; its prompt is trained on too" if name == "alpaca_dataset" else "")
        hub = "tatsu-lab/alpaca" if name == "alpaca_dataset" else "yahma/alpaca-cleaned"
        section = {
            "path": source or hub,
            "prompt_template": "instruction",
            "columns": {"completion": "output"},
        }
    elif name == "stack_exchange_paired_dataset":
        section = {"name": "stack_exchange_paired"}
    elif name in ("gsm8k_dataset", "gsm8k_sft"):
        section, why = {"name": "gsm8k"}, "its prompt asks for tags around reasoning and answer"
    elif name == "grammar_dataset":
        section = {
            "path": "liweili/c4_200m",
            "columns": {"prompt": "input", "completion": "output"},
        }
    elif name == "samsum_dataset":
        section = {
            "path": "Samsung/samsum",
            "columns": {"prompt": "dialogue", "completion": "summary"},
        }
    elif source is not None:
        section = {"path": source}
        column = draft.get("dataset.column", "dataset.conversation_column")
        ours = {"pretrain": "text", "sft": "messages"}.get(method, "prompt")
        if column is not None and column != ours:
            section["columns"] = {ours: str(column)}
        keys += ["dataset.column", "dataset.conversation_column", "dataset.data_files"]
    else:
        section, why = {"path": to_set(f"rows of {name or 'the dataset'}")}, "set data.path"
        if name:
            draft.refuse(
                "a data set of torchtune's that posttrain does not have", "dataset._component_"
            )
    trims = "[" in split
    if trims or "%" in split:
        why = f"the slice {split} is not read: use max_samples or eval.split"
    section["split"] = split.partition("[")[0]
    rows(draft, section, *keys, why=why)
    draft.refuse("SFT trains on completions only", "dataset.train_on_input")
    if method in ("grpo", "ppo"):
        if draft.has("tokenizer.max_seq_len"):
            draft.put(
                "length.max_length",
                integer(draft.get("tokenizer.max_seq_len")),
                "tokenizer.max_seq_len",
                why="longer prompts are dropped; there they are cut",
            )
            draft.put("length.on_overlong", "drop")
        return
    draft.copy("length.max_length", "tokenizer.max_seq_len", convert=int)
    draft.put("length.on_overlong", "truncate" if method != "pretrain" else "split")


def pairs(draft: Draft, loss: str) -> None:
    """Write the choices of DPO."""
    if loss == "RSOLoss":
        draft.put("trainer.loss_type", "hinge", "loss._component_")
        draft.copy("trainer.beta", "loss.gamma", default=0.1, convert=float)
    else:
        draft.copy("trainer.beta", "loss.beta", default=0.1, convert=float)
    smoothing = number(draft.get("loss.label_smoothing", default=0))
    if smoothing > 0:
        draft.put("trainer.loss_type", "cdpo", "loss.label_smoothing")
        draft.put("trainer.label_smoothing", smoothing, "loss.label_smoothing")
    draft.skip("0", "loss.label_smoothing")


def online(draft: Draft, method: str) -> None:
    """Write the choices of GRPO and PPO."""
    grpo = method == "grpo"
    draft.copy("rollout.group_size", "grpo_samples", default=8 if grpo else 1, convert=int)
    draft.copy("rollout.max_new_tokens", "max_generated_tokens", default=512, convert=int)
    draft.copy("rollout.temperature", "temperature", default=1.0, convert=float)
    draft.copy("trainer.num_inner_epochs", "ppo_epochs", default=1, convert=int)
    draft.copy("trainer.epsilon", "loss.epsilon", default=0.1, convert=float)
    draft.copy(
        "trainer.beta",
        "loss.kl_coeff" if grpo else "kl_coeff",
        default=0.1 if grpo else 0.01,
        convert=float,
    )
    if grpo:
        draft.put("trainer.reduction", "sequence", note="a mean per completion, then over them")
        draft.put("trainer.scale_eps", 1e-4)
        functions = [key for key in draft.settings if key.startswith("reward_functions")]
        if not functions and component(draft, "dataset") == "gsm8k_dataset":
            draft.put("reward.type", "math_correctness")
            draft.comments["reward.type"] = ["there also a score for the tags around the answer"]
        else:
            reward_to_set(draft, "the rewards", *functions)
        return
    draft.copy("trainer.gamma", "gamma", default=1.0, convert=float)
    draft.copy("trainer.gae_lambda", "lmbda", default=0.95, convert=float)
    draft.put(
        "trainer.value_coef",
        2 * real(draft.get("loss.value_coeff", default=0.1)),
        "loss.value_coeff",
        note="here it weighs half the square",
    )
    draft.copy("trainer.value_clip", "loss.value_clip_range", default=0.2, convert=float)
    draft.put("reward.type", "reward_model", "reward_checkpointer._component_")
    draft.copy("reward.path", "reward_checkpointer.checkpoint_dir", default=to_set("reward model"))
    draft.skip("the folder of the reward model holds it", "reward_checkpointer.*")
    if truth(draft.get("penalise_no_eos", default=True)):
        draft.put(
            "trainer.missing_eos_penalty",
            abs(real(draft.get("reward_penalty", default=-3))),
            "reward_penalty",
            "penalise_no_eos",
            why="subtracted from the reward; there it replaces the reward",
        )


def trainer(draft: Draft, method: str) -> None:
    """Write the trainer and eval sections."""
    device = integer(draft.get("batch_size", default=1))
    accumulation = integer(draft.get("gradient_accumulation_steps", default=1))
    if method == "ppo":
        whole, small = device, integer(draft.get("ppo_batch_size", default=device))
        draft.put("trainer.batch_size", small, "ppo_batch_size", "gradient_accumulation_steps")
        draft.put("trainer.num_minibatches", max(1, whole // small), "batch_size")
        draft.put(
            "trainer.max_steps",
            max(1, integer(draft.get("num_steps", default=whole)) // whole),
            "num_steps",
            note="num_steps counts prompts",
        )
        draft.skip("num_steps decides", "epochs", "max_steps_per_epoch")
    else:
        note = product(draft, device, accumulation)
        packed = truth(draft.get("dataset.packed", default=False))
        draft.put(
            "trainer.batch_size",
            device * accumulation * draft.processes,
            "batch_size",
            "gradient_accumulation_steps",
            note=note,
            why=f"{note}; {hf.PACKED}" if packed else "",
        )
        duration(draft, method)
    draft.copy("trainer.learning_rate", "optimizer.lr", default=2e-5, convert=float)
    optimiser(draft)
    draft.copy("trainer.seed", "seed", convert=int)
    draft.copy("trainer.output_dir", "output_dir", convert=str)
    draft.copy("trainer.logging_steps", "log_every_n_steps", convert=int)
    resumes = draft.get("resume_from_checkpoint", default=False)
    if truth(resumes):
        draft.put(
            "trainer.resume_from_checkpoint",
            "latest",
            "resume_from_checkpoint",
            why="its checkpoints cannot be read: the newest run of posttrain's",
        )
    draft.skip("starts from the model", "resume_from_checkpoint")
    draft.put(
        "trainer.save_steps",
        None,
        "save_every_n_epochs",
        "save_every_n_steps",
        why="saved at the end of an epoch there; the last step is always saved",
    )
    if "shuffle" in draft.settings:
        fate: Fate = "without effect" if truth(draft.get("shuffle")) else "refused"
        draft.decide("shuffle", fate, "", "rows come in random order")
    evaluation(draft)


def duration(draft: Draft, method: str) -> None:
    """Write num_epochs or max_steps."""
    steps, epochs = draft.get("max_steps_per_epoch"), number(draft.get("epochs", default=1))
    if method == "grpo" and draft.has("num_steps"):
        draft.put("trainer.max_steps", integer(draft.get("num_steps")), "num_steps")
        draft.skip("num_steps decides", "epochs", "max_steps_per_epoch")
    elif steps is not None:
        draft.put(
            "trainer.max_steps",
            int(steps * epochs),
            "max_steps_per_epoch",
            "epochs",
            why="steps of all epochs; there each epoch begins with its first rows again",
        )
    else:
        draft.put("trainer.num_epochs", epochs, "epochs", "max_steps_per_epoch")


def optimiser(draft: Draft) -> None:
    """Write AdamW's keys, the clipping of the gradient, and the schedule."""
    draft.skip("speed of the same formulas", "optimizer.fused", "optimizer.foreach")
    name = component(draft, "optimizer")
    if name in ("PagedAdamW8bit", "PagedAdamW", "AdamW8bit"):
        draft.put(
            "trainer.adam_eps",
            1e-8,
            "optimizer._component_",
            why="AdamW, with its state in 32 bits and on the device",
        )
    elif name in ("AdamW", ""):
        draft.skip("AdamW, as here", "optimizer._component_")
    draft.refuse("only AdamW is offered", "optimizer._component_")
    draft.copy(
        "trainer.weight_decay",
        "optimizer.weight_decay",
        default=0.01,
        convert=float,
        note="for matrices only; there for every parameter",
    )
    draft.copy("trainer.adam_betas", "optimizer.betas")
    draft.copy("trainer.adam_eps", "optimizer.eps", convert=float)
    draft.put("trainer.max_grad_norm", draft.get("clip_grad_norm"), "clip_grad_norm")
    schedule = component(draft, "lr_scheduler")
    if schedule in ("get_cosine_schedule_with_warmup", ""):
        draft.put(
            "trainer.scheduler", "cosine" if schedule else "constant", "lr_scheduler._component_"
        )
    else:
        draft.put(
            "trainer.scheduler",
            "cosine",
            "lr_scheduler._component_",
            why=f"{schedule} has no counterpart: cosine",
        )
    draft.put(
        "trainer.warmup",
        number(draft.get("lr_scheduler.num_warmup_steps", default=0)),
        "lr_scheduler.num_warmup_steps",
    )
    draft.refuse("no counterpart", "lr_scheduler.*", "optimizer.*")


def evaluation(draft: Draft) -> None:
    """Write the eval section."""
    every, split = (
        draft.get("run_val_every_n_steps"),
        str(draft.get("dataset_val.split", default="")),
    )
    if every is None or not split:
        draft.skip("no evaluation", "run_val_every_n_steps", "dataset_val*", "batch_size_val")
        return
    draft.put("trainer.eval_steps", int(every), "run_val_every_n_steps")
    last = split.partition("[")[2].strip("]")
    if last.startswith(("95%:", "90%:")):
        share = 1 - float(last.split("%")[0]) / 100
        draft.put(
            "eval.split",
            round(share, 4),
            "dataset_val.split",
            why="a share drawn by a hash of the question, not the last rows",
        )
    else:
        draft.put(
            "eval.split",
            split.partition("[")[0],
            "dataset_val.split",
            why="the whole split" if "[" in split else "",
        )
    draft.put("eval.max_samples", None)


SOURCE = Source(
    "torchtune 0.7",
    recognise,
    convert,
    programs=(r"tune run (?:\S+ )*?(\w*(?:finetune|dpo|ppo|grpo|distillation|qat)\w*)",),
)
