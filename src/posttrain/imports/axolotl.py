"""Axolotl 0.18 (utils/schemas/*.py): a YAML file, or `axolotl train FILE`.

Rows longer than sequence_len are dropped. Without warm-up keys, the warm-up is 3 % of the steps and
at most 100. Alpaca and similar types put a fixed text around instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.entries import ROLES
from posttrain.imports import hf
from posttrain.imports.axolotl_methods import grpo, kto, pairs
from posttrain.imports.draft import Draft, Source
from posttrain.imports.keys import hf as training_arguments
from posttrain.imports.keys.axolotl import REFUSED, WITHOUT_EFFECT
from posttrain.imports.parts import (
    adapter_form,
    dtype,
    integer,
    listed,
    lora,
    number,
    product,
    real,
    rows,
    to_set,
    truth,
)

METHODS = {
    "dpo": "dpo",
    "ipo": "ipo",
    "orpo": "orpo",
    "kto": "kto",
    "simpo": "simpo",
    "grpo": "grpo",
}
OPTIMISERS = ("adamw_torch_fused", "adamw_torch", "adamw_hf")
FIELDS = {
    "field_prompt": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_completion": "completion",
    "field_label": "label",
}
SPEAKERS = (*ROLES, "role", "from", "content", "value")
"""Names of speakers, and of the entries of a message, that posttrain knows."""
ALPACAS = ("alpaca", "alpaca_chat.load_qa", "alpaca_chat", "alpaca_w_system")
KNOWN_TYPES = (*ALPACAS, "completion", "pretrain", "chat_template", "sharegpt", "chatml", None)
PAIR_TYPES = "the form of the pairs is read from their columns, and rendered by the chat template"
ALPACA = "the instruction is the user's message; there, a fixed text stands around it"


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of Axolotl."""
    rows_of = ("datasets.0.path", "datasets", "pretraining_dataset", "pretraining_dataset.0.path")
    return "base_model" in settings and (
        "micro_batch_size" in settings or any(key in settings for key in rows_of)
    )


def convert(draft: Draft) -> None:
    """Write the recipe of Axolotl's settings."""
    kind = str(draft.get("rl", default="")) or method_without_rl(draft)
    method = METHODS.get(kind, kind)
    if method not in (*METHODS.values(), "sft", "pretrain", "reward_model", "process_reward_model"):
        draft.decide("rl", "refused", "", "no method of that name: sft is written")
        method = "sft"
    model(draft)
    data(draft, method)
    draft.put("trainer.type", method, "rl", "reward_model", "process_reward_model")
    draft.comments.pop("trainer.type", None)
    choices = {"kto": kto, "grpo": grpo, **dict.fromkeys(("dpo", "ipo", "orpo", "simpo"), pairs)}
    if method in choices:
        choices[method](draft)
    trainer(draft, method)
    draft.refuse(
        f"not read by {method}",
        "rl_beta",
        "dpo_*",
        "orpo_alpha",
        "simpo_gamma",
        "cpo_alpha",
        "kto_*",
        "trl.*",
        "center_rewards_coefficient",
        "precompute_ref_log_probs",
        "num_labels",
    )
    draft.table(WITHOUT_EFFECT)
    draft.table(REFUSED, refuse=True)


def method_without_rl(draft: Draft) -> str:
    """Return the method of a file without the key rl."""
    if truth(draft.get("process_reward_model", default=False)):
        return "process_reward_model"
    if truth(draft.get("reward_model", default=False)):
        return "reward_model"
    types = [
        v for k, v in draft.settings.items() if k.startswith("datasets.") and k.endswith(".type")
    ]
    only_text = bool(types) and all(t in ("completion", "pretrain") for t in types)
    pretrains = any(key.startswith("pretraining_dataset") for key in draft.settings)
    return "pretrain" if only_text or pretrains else "sft"


def model(draft: Draft) -> None:
    """Write the model section."""
    draft.copy("model.name", "base_model", default=to_set("base_model"))
    draft.copy(
        "model.resize_multiple",
        "resize_token_embeddings_to_32x",
        convert=lambda on: 32 if truth(on) else None,
    )
    if draft.recipe.get("model.resize_multiple"):
        draft.put("model.resize_embeddings", True, "resize_token_embeddings_to_32x")
    else:
        draft.recipe.pop("model.resize_multiple", None)
    dtype(draft, "auto")
    draft.copy(
        "model.gradient_checkpointing",
        "gradient_checkpointing",
        convert=lambda on: truth(on) or on in ("offload", "unsloth"),
    )
    form = str(draft.get("adapter", default="none"))
    if form in ("lora", "qlora"):
        targets: Any = (
            "all-linear" if truth(draft.get("lora_target_linear", default=False)) else None
        )
        lora(draft, 8, 8, 0.0, targets or ["q_proj", "v_proj"])
        if targets:
            draft.put(
                "model.adapter.target_modules", targets, "lora_target_linear", "lora_target_modules"
            )
        draft.put("model.adapter.type", "lora", "adapter")
        adapter_form(draft, peft_use_dora="dora", peft_use_rslora="rslora")
        draft.copy("model.adapter.modules_to_save", "lora_modules_to_save", convert=listed)
        draft.copy("model.adapter.layers_to_transform", "peft_layers_to_transform")
        draft.copy("model.adapter.lr_ratio", "loraplus_lr_ratio", convert=float)
        draft.skip("the layers are named", "lora_target_linear", "peft_layers_pattern")
    else:
        draft.put("model.adapter.type", "none", "adapter")
        if form != "none":
            draft.decide(
                "adapter", "refused", "", f"{form} is not offered: all weights are trained"
            )
        draft.skip("no adapter", "lora_*", "peft_use_*", "loraplus_*")
    draft.start_from_adapter("lora_model_dir")
    four, eight = (truth(draft.get(f"load_in_{n}bit", default=False)) for n in (4, 8))
    if form in ("lora", "qlora") and (four or eight):
        key = "load_in_4bit" if four else "load_in_8bit"
        draft.put("model.quantization.type", "nf4" if four else "int8", key)
        if four:
            draft.put("model.quantization.double_quant", True)
    draft.skip("nothing is quantised", "load_in_4bit", "load_in_8bit")


def data(draft: Draft, method: str) -> None:
    """Write the data and length sections, one section for each data set."""
    names = ("datasets", "pretraining_dataset")
    if draft.has("pretraining_dataset") and isinstance(draft.get("pretraining_dataset"), str):
        rows(draft, {"path": draft.get("pretraining_dataset")}, "pretraining_dataset")
    for name in names:
        count = 0
        while any(k.startswith(f"{name}.{count}.") for k in draft.settings):
            dataset(draft, f"{name}.{count}", method)
            count += 1
    if "data" not in draft.recipe:
        rows(draft, {"path": to_set("datasets")})
    template = draft.get("chat_template")
    if template is not None and method != "pretrain":
        own = template in ("tokenizer_default", "tokenizer_default_fallback_chatml")
        draft.put(
            "data",
            draft.recipe["data"],
            "chat_template",
            why="" if own else f"the tokenizer's own template, not Axolotl's {template}",
        )
    draft.refuse("plain text has no template", "chat_template")
    if draft.has("default_system_message") and isinstance(draft.recipe["data"], dict):
        draft.recipe["data"]["system_prompt"] = draft.get("default_system_message")
        draft.put("data", draft.recipe["data"], "default_system_message")
    draft.skip("completions only, as here", "train_on_inputs") if not truth(
        draft.get("train_on_inputs", default=False)
    ) else draft.refuse(
        "SFT trains on completions only: see trainer.type: pretrain", "train_on_inputs"
    )
    draft.copy("length.max_length", "sequence_len", default=512, convert=int)
    longer = str(draft.get("excess_length_strategy", default="drop"))
    longer = "split" if method == "pretrain" else {"raise": "error"}.get(longer, longer)
    if method == "grpo":
        longer = "drop"
    draft.put("length.on_overlong", longer, "excess_length_strategy")


def dataset(draft: Draft, key: str, method: str) -> None:
    """Write one section of data."""
    get = draft.get
    files = get(f"{key}.data_files")
    section: dict[str, Any] = {"path": files if files is not None else get(f"{key}.path")}
    if section["path"] is None:
        section["path"] = to_set(f"{key}.path")
    split = get(f"{key}.split")
    sliced = split is not None and "[" in str(split)
    section["split"] = str(split).partition("[")[0] if split is not None else "train"
    kind, why = get(f"{key}.type"), ""
    columns: dict[str, str] = {}
    if kind in ALPACAS:
        section["prompt_template"], columns["completion"], why = "instruction", "output", ALPACA
    elif kind in ("completion", "pretrain"):
        columns["text"] = str(get(f"{key}.field", f"{key}.text_column", default="text"))
    elif kind in ("chat_template", None, "sharegpt", "chatml") and method == "sft":
        columns["messages"] = str(get(f"{key}.field_messages", default="messages"))
    elif method != "sft":
        why = PAIR_TYPES
    fields = [k for k in draft.under(key) if k.removeprefix("type.") in FIELDS]
    columns |= {FIELDS[k.removeprefix("type.")]: str(get(f"{key}.{k}")) for k in fields}
    if method == "sft" and kind not in KNOWN_TYPES:
        why = "the form of the rows is read from their columns: see docs/guide/data.md"
    renamed = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    if renamed:
        section["columns"] = renamed
    rows(
        draft,
        section,
        f"{key}.path",
        f"{key}.split",
        f"{key}.data_files",
        f"{key}.field",
        f"{key}.field_messages",
        f"{key}.text_column",
        *(f"{key}.{field}" for field in fields),
        why=f"the slice {split} is not read: use max_samples" if sliced else "",
    )
    draft.put("data", draft.recipe["data"], f"{key}.type", why=why)
    roles = listed(get(f"{key}.roles_to_train", default=["assistant"]))
    if roles in (["assistant"], ["gpt"], ["assistant", "gpt"], ["gpt", "assistant"]):
        draft.skip("assistant turns, as here", f"{key}.roles_to_train")
    for name in ("roles", "message_property_mappings"):
        for inner, value in draft.under(f"{key}.{name}").items():
            if all(str(part).lower() in SPEAKERS for part in listed(value)):
                draft.skip("a usual name, which is known", f"{key}.{name}.{inner}")
    for name in ("message_field_role", "message_field_content"):
        if str(get(f"{key}.{name}", default="role")) in SPEAKERS:
            draft.skip("a usual name, which is known", f"{key}.{name}")
    draft.skip(
        "how rows are loaded",
        f"{key}.ds_type",
        f"{key}.trust_remote_code",
        f"{key}.shards*",
        f"{key}.preprocess_shards",
    )
    if get(f"{key}.train_on_eos", default="turn") == "turn":
        draft.skip("the stop token is trained on, as here", f"{key}.train_on_eos")
    draft.refuse("as the chat template and the columns say: see docs/guide/data.md", f"{key}.*")


def trainer(draft: Draft, method: str) -> None:
    """Write the trainer and eval sections."""
    device, accumulation = (
        integer(draft.get(k, default=1))
        for k in ("micro_batch_size", "gradient_accumulation_steps")
    )
    total = device * accumulation * draft.processes
    whole = draft.get("batch_size")
    if whole is not None:
        total = int(whole) * draft.processes
        draft.skip("batch_size decides", "gradient_accumulation_steps")
    note = product(draft, device, accumulation)
    packed = truth(draft.get("sample_packing", default=False))
    if method == "grpo":
        group = int(draft.recipe["rollout.group_size"])
        note += f" = {total} completions / {group} of a prompt"
        total = max(1, round(total / group))
    draft.put(
        "trainer.batch_size",
        total,
        "micro_batch_size",
        "gradient_accumulation_steps",
        "batch_size",
        why=f"{note}; {hf.PACKED}" if packed else "",
        note=note,
    )
    draft.copy("trainer.learning_rate", "learning_rate", default=2e-5, convert=float)
    hf.duration(draft, 1.0, "num_epochs")
    schedule(draft)
    name = str(draft.get("optimizer", default="adamw_torch_fused"))
    if name in OPTIMISERS:
        draft.skip("AdamW, as here", "optimizer")
    hf.optimiser(draft, "optimizer")
    draft.copy("trainer.seed", "seed", default=42, convert=int)
    draft.copy("trainer.logging_steps", "logging_steps", convert=lambda n: max(1, int(number(n))))
    draft.copy("trainer.output_dir", "output_dir", convert=str)
    draft.copy("trainer.resume_from_checkpoint", "resume_from_checkpoint")
    if truth(draft.get("auto_resume_from_checkpoints", default=False)):
        draft.put("trainer.resume_from_checkpoint", "latest", "auto_resume_from_checkpoints")
    hf.saving(draft)
    if draft.has("saves_per_epoch"):
        draft.put(
            "trainer.save_steps",
            None,
            "saves_per_epoch",
            why="in steps here, of which an epoch's number is not known: the last step only",
        )
    hf.sharding(draft)
    evaluate(draft)
    draft.table(training_arguments.WITHOUT_EFFECT)
    draft.table(training_arguments.REFUSED, refuse=True)


def schedule(draft: Draft) -> None:
    """Write scheduler and warm-up."""
    key = "lr_scheduler" if draft.has("lr_scheduler") else "lr_scheduler_type"
    name = str(draft.get(key, default="cosine"))
    known = hf.SCHEDULERS.get(name)
    draft.put("trainer.scheduler", known or "cosine", key)
    if known is None:
        draft.decide(key, "refused", "", f"{name} has no counterpart: cosine is written")
    if draft.has("cosine_min_lr_ratio"):
        lowest = real(draft.get("cosine_min_lr_ratio")) * draft.recipe["trainer.learning_rate"]
        draft.put("trainer.min_learning_rate", lowest, "cosine_min_lr_ratio")
    draft.refuse("only the lowest rate is read", "lr_scheduler_kwargs*", "lr_div_factor")
    if draft.has("warmup_steps") or draft.has("warmup_ratio"):
        hf.warmup(draft)
    else:
        draft.put("trainer.warmup", 0.03, note="there at most 100 steps")


def evaluate(draft: Draft) -> None:
    """Write the eval section."""
    share = number(draft.get("val_set_size", default=0))
    section: dict[str, Any] = {}
    keys = ["val_set_size"]
    tests = [k for k in draft.settings if k.startswith("test_datasets.") and k.endswith(".path")]
    if tests:
        section["data"] = {"path": draft.get(tests[0])}
        split = draft.get(tests[0].replace(".path", ".split"))
        section["data"] |= {"split": str(split)} if split else {}
        keys = [tests[0], tests[0].replace(".path", ".split")]
    elif 0 < share < 1:
        section["split"] = share
    elif share >= 1:
        draft.refuse("a number of rows: give eval.split a share of the rows", "val_set_size")
    if not section:
        draft.skip(
            "no rows are held out",
            "val_set_size",
            "eval_*",
            "evals_per_epoch",
            "evaluation_strategy",
            "test_datasets*",
        )
        hf.early_stopping(draft, False)
        return
    if draft.has("evals_per_epoch"):
        draft.put(
            "trainer.eval_steps",
            500,
            "evals_per_epoch",
            why="in steps here, of which an epoch's number is not known: every 500",
        )
        draft.skip("evals_per_epoch decides", "eval_steps", "eval_strategy", "evaluation_strategy")
        for name, value in {"max_samples": None, **section}.items():
            draft.put(f"eval.{name}", value, *keys, note="all rows" if value is None else "")
        hf.early_stopping(draft, True)
    else:
        hf.evaluating(draft, section, *keys, always=True)
    draft.refuse("rows to evaluate on are read from their columns", "test_datasets.*")


SOURCE = Source(
    "Axolotl 0.18",
    recognise,
    convert,
    programs=(r"axolotl train", r"-m axolotl\.cli\.train", r"scripts/finetune\.py"),
)
