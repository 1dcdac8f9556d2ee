"""LLaMA-Factory 0.9.6 (hparams/*_args.py): YAML or the command `llamafactory-cli train`.

Its preference losses are those of TRL 0.18 to 0.24, where label smoothing is that of cDPO. Its ORPO
takes the likelihood of the completion alone. lora_alpha is twice the rank unless it is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.imports import hf
from posttrain.imports.draft import Draft, Source
from posttrain.imports.keys.llamafactory import REFUSED, WITHOUT_EFFECT
from posttrain.imports.parts import (
    adapter_form,
    dtype,
    integer,
    listed,
    lora,
    number,
    real,
    rows,
    to_set,
    truth,
)

STAGES = {
    "pt": "pretrain",
    "sft": "sft",
    "rm": "reward_model",
    "dpo": "dpo",
    "kto": "kto",
    "ppo": "ppo",
}
TEMPLATE = "the tokenizer's own chat template; a template of LLaMA-Factory's may render otherwise"
CUT = "the first tokens are kept; there, prompt and completion are both shortened"
PAIR_LOSSES = {
    "sigmoid": "dpo",
    "hinge": "dpo",
    "ipo": "ipo",
    "kto_pair": "kto_pair",
    "orpo": "orpo",
    "simpo": "simpo",
}


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of LLaMA-Factory."""
    return "finetuning_type" in settings or {"stage", "model_name_or_path"} <= settings.keys()


def convert(draft: Draft) -> None:
    """Write the recipe of LLaMA-Factory's settings."""
    stage = str(draft.get("stage", default="sft"))
    method = STAGES.get(stage, "")
    if not method:
        raise ValueError(f"stage: {stage} of LLaMA-Factory trains nothing that posttrain offers")
    model(draft)
    adapters(draft)
    data(draft, stage)
    draft.put("trainer.type", method, "stage")
    if method == "dpo":
        preferences(draft)
    elif method == "kto":
        draft.copy("trainer.beta", "pref_beta", default=0.1, convert=float)
        draft.copy("trainer.desirable_weight", "kto_chosen_weight", default=1.0, convert=float)
        draft.copy("trainer.undesirable_weight", "kto_rejected_weight", default=1.0, convert=float)
        draft.copy(
            "trainer.sft_coef",
            "pref_ftx",
            convert=float,
            why="a mean over tokens; there over sequences",
        )
    elif method == "ppo":
        ppo(draft)
    if method in ("dpo", "kto"):
        draft.copy("reference.name", "ref_model")
    hf.training(
        draft, method, gradient_checkpointing=not draft.get("disable_gradient_checkpointing")
    )
    packing(draft, method)
    evaluation(draft)
    draft.skip(
        f"not read by stage {stage}",
        "pref_*",
        "dpo_*",
        "kto_*",
        "simpo_*",
        "ppo_*",
        "ref_*",
        "reward_*",
    )
    draft.table(WITHOUT_EFFECT)
    draft.table(REFUSED, refuse=True)
    draft.skip("compute dtype follows bf16", "compute_dtype")


def model(draft: Draft) -> None:
    """Write the model section."""
    draft.copy("model.name", "model_name_or_path", default=to_set("model_name_or_path"))
    draft.copy("model.resize_embeddings", "resize_vocab", convert=truth)
    dtype(draft, "auto")
    if truth(draft.get("pure_bf16", default=False)):
        draft.put(
            "model.dtype", "bfloat16", "pure_bf16", why="trained weights stay in float32 beside it"
        )
    form = str(draft.get("finetuning_type", default="lora"))
    if form == "lora":
        rank = integer(draft.get("lora_rank", default=8))
        names = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target")
        lora(draft, 8, 2 * rank, 0.0, "all-linear", names=names)
        draft.put("model.adapter.type", "lora", "finetuning_type")
        adapter_form(draft, use_rslora="rslora", use_dora="dora", pissa_init="pissa")
        draft.copy("model.adapter.modules_to_save", "additional_target", convert=listed)
        draft.copy("model.adapter.lr_ratio", "loraplus_lr_ratio", convert=float)
    else:
        draft.put("model.adapter.type", "none", "finetuning_type")
        if form != "full":
            why = f"{form} has no counterpart: all weights are trained"
            draft.decide("finetuning_type", "refused", "", why)
        draft.skip("no adapter", "lora_*", "use_dora", "use_rslora", "additional_target")
    bits = draft.get("quantization_bit")
    if bits in (4, 8):
        four = bits == 4
        draft.put(
            "model.quantization.type",
            str(draft.get("quantization_type", default="nf4")) if four else "int8",
            "quantization_bit",
            *(["quantization_type"] if four else []),
        )
        if four:
            draft.copy("model.quantization.double_quant", "double_quantization", default=True)
    draft.refuse("only 4 and 8 bits of bitsandbytes", "quantization_bit")
    if str(draft.get("quantization_method", default="bnb")).lower() not in ("bnb", "bitsandbytes"):
        draft.refuse("only bitsandbytes", "quantization_method")
    draft.skip("nothing is quantised in 4 bits", "quantization_type", "double_quantization")


def adapters(draft: Draft) -> None:
    """Write the adapter that the run starts from; several cannot be stacked."""
    paths = listed(draft.get("adapter_name_or_path", default=[]))
    if len(paths) > 1:
        why = "several adapters are merged one by one there: see posttrain merge"
        draft.decide("adapter_name_or_path", "refused", "", why)
    else:
        draft.start_from_adapter("adapter_name_or_path")


def data(draft: Draft, stage: str) -> None:
    """Write the data and length sections; names of data sets come from dataset_info.json."""
    names = listed(draft.get("dataset", default=to_set("dataset")))
    folder = str(draft.get("dataset_dir", default="data"))
    info, where = dataset_info(draft, folder)
    common: dict[str, Any] = {}
    if draft.has("max_samples"):
        common["max_samples"] = integer(draft.get("max_samples"))
        draft.of_rows("max_samples", "max_samples")
    if draft.has("default_system"):
        common["system_prompt"] = str(draft.get("default_system"))
        draft.of_rows("system_prompt", "default_system")
    if truth(draft.get("mask_history", default=False)):
        common["turns"] = "last"
        draft.of_rows("turns", "mask_history")
    draft.skip("all turns are trained on, as here", "mask_history")
    missing = [name for name in names if str(name) not in info]
    for name in names:
        section = (
            described(info[str(name)], where, stage)
            if str(name) in info
            else {"path": to_set(f"file of {name}")}
        )
        why = (
            f"names of dataset_info.json, which does not have {', '.join(map(str, missing))}"
            if missing
            else ""
        )
        rows(draft, {**section, **common}, "dataset", why=why and f"{why}: set data.path")
    draft.of_rows("template", "template", why=TEMPLATE)
    draft.copy("length.max_length", "cutoff_len", default=2048, convert=int)
    draft.put("length.on_overlong", "split" if stage == "pt" else "truncate")
    draft.comments["length.on_overlong"] = [CUT] if stage != "pt" else []
    if stage == "ppo":
        draft.put("length.on_overlong", "drop")


def dataset_info(draft: Draft, folder: str) -> tuple[dict[str, Any], Path]:
    """Return the entries of dataset_info.json and its folder; none if it is not at hand."""
    for base in draft.folders:
        file = Path(base) / folder / "dataset_info.json"
        if file.is_file():
            try:
                entries = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file}: not valid JSON: {error}") from None
            return entries, file.parent
    return {}, Path(folder)


def described(entry: Mapping[str, Any], folder: Path, stage: str) -> dict[str, Any]:
    """Return the data section of an entry of dataset_info.json."""
    remote = entry.get("hf_hub_url") or entry.get("ms_hub_url")
    section: dict[str, Any] = {"path": remote or str(folder / str(entry.get("file_name", "")))}
    if entry.get("split"):
        section["split"] = entry["split"]
    columns = entry.get("columns", {})
    if entry.get("formatting", "alpaca") == "alpaca":
        if stage in ("sft", "ppo"):
            section["prompt_template"] = "instruction"
            renamed = {
                "instruction": columns.get("prompt", "instruction"),
                "input": columns.get("query", "input"),
            }
            if stage == "sft":
                renamed["completion"] = columns.get("response", "output")
        elif stage == "pt":
            renamed = {"text": columns.get("prompt", "text")}
        else:
            renamed = {k: v for k, v in columns.items() if k in ("chosen", "rejected")}
    else:
        renamed = {"messages": columns.get("messages", "conversations")}
        if entry.get("ranking"):
            renamed = {
                "conversations": columns.get("messages", "conversations"),
                "chosen": columns.get("chosen", "chosen"),
                "rejected": columns.get("rejected", "rejected"),
            }
        if columns.get("kto_tag"):
            renamed["label"] = columns["kto_tag"]
    renamed = {ours: theirs for ours, theirs in renamed.items() if ours != theirs}
    return {**section, **({"columns": renamed} if renamed else {})}


def preferences(draft: Draft) -> None:
    """Write the choices of stage dpo."""
    loss = str(draft.get("pref_loss", default="sigmoid"))
    if loss in PAIR_LOSSES:
        draft.put("trainer.type", PAIR_LOSSES[loss], "pref_loss")
    else:
        draft.refuse("no loss of that name: sigmoid is written", "pref_loss")
    if loss == "hinge":
        draft.put("trainer.loss_type", "hinge", "pref_loss")
    if loss == "orpo":
        draft.put(
            "trainer.nll_over",
            "completion",
            "pref_loss",
            note="its likelihood is that of the completion, there a mean over sequences",
        )
    if loss == "simpo":
        draft.copy("trainer.gamma", "simpo_gamma", default=0.5, convert=float)
    draft.copy("trainer.beta", "pref_beta", default=0.1, convert=float)
    smoothing = real(draft.get("dpo_label_smoothing", default=0.0))
    if smoothing > 0 and loss == "sigmoid":
        draft.put("trainer.loss_type", "cdpo", "dpo_label_smoothing")
        draft.put("trainer.label_smoothing", smoothing, "dpo_label_smoothing")
    draft.refuse(f"not read with pref_loss {loss}", "dpo_label_smoothing")
    if loss not in ("orpo", "simpo") and number(draft.get("pref_ftx", default=0)) > 0:
        draft.put(
            "trainer.sft_coef",
            real(draft.get("pref_ftx")),
            "pref_ftx",
            why="a mean over tokens; there over sequences",
        )
    draft.refuse(f"not read with pref_loss {loss}", "pref_ftx", "simpo_gamma")


def ppo(draft: Draft) -> None:
    """Write the choices of stage ppo."""
    draft.put(
        "reward.type",
        "reward_model",
        "reward_model_type",
        why="a reward model of a folder, not a LoRA beside the policy",
    )
    draft.copy("reward.path", "reward_model", default=to_set("folder of the reward model"))
    draft.copy("trainer.num_inner_epochs", "ppo_epochs", default=4, convert=int)
    draft.copy(
        "trainer.kl_target",
        "ppo_target",
        default=6.0,
        convert=float,
        why="per token here, per completion there: choose it anew",
    )
    draft.put("trainer.beta", 0.2, note="the initial coefficient of its TRL")
    draft.copy("rollout.max_new_tokens", "max_new_tokens", default=1024, convert=int)
    draft.copy("rollout.temperature", "temperature", default=0.95, convert=float)
    draft.put("rollout.group_size", 1)
    draft.refuse("training samples without a cut: top_p 1", "top_p", "top_k")


def packing(draft: Draft, method: str) -> None:
    """Decide on the keys of packing."""
    packed = draft.get("packing", default=method == "pretrain")
    if truth(packed):
        why = f"rows are always packed, and never see each other; {hf.PACKED}"
        draft.put(
            "trainer.batch_size",
            draft.recipe["trainer.batch_size"],
            "packing",
            "neat_packing",
            why=why,
        )
    draft.skip("rows are packed without seeing each other", "packing", "neat_packing")


def evaluation(draft: Draft) -> None:
    """Write the eval section."""
    share = number(draft.get("val_size", default=0))
    section: dict[str, Any] = {}
    if draft.has("eval_dataset"):
        info, where = dataset_info(draft, str(draft.get("dataset_dir", default="data")))
        stage = str(draft.get("stage", default="sft"))
        names = [str(name) for name in listed(draft.get("eval_dataset"))]
        parts = [
            described(info[n], where, stage) if n in info else {"path": to_set(f"file of {n}")}
            for n in names
        ]
        section["data"] = parts if len(parts) > 1 else parts[0]
    elif 0 < share < 1:
        section["split"] = share
    elif share >= 1:
        draft.refuse("a number of rows: give eval.split a share of the rows", "val_size")
    hf.evaluating(draft, section, "eval_dataset" if "data" in section else "val_size")
    draft.skip("rows are not held out without evaluation", "val_size", "eval_dataset")


SOURCE = Source(
    "LLaMA-Factory 0.9.6",
    recognise,
    convert,
    programs=(
        r"llamafactory-cli train",
        r"lmf train",
        r"src/train(?:_bash)?\.py",
        r"llamafactory/launcher\.py",
    ),
)
