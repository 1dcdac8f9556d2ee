"""SFT on verl by shell scripts: variables such as MODEL_NAME, BATCH_SIZE, LORA_RANK.

BATCH_SIZE counts rows of one device. The same settings as overrides of a verl command are read by
the import of verl; a script whose command is verl's is read there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.imports.draft import Draft, Source
from posttrain.imports.parts import dtype, number, rows, to_set


def recognise(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are variables of such a script."""
    return "MODEL_NAME" in settings and "TRAIN_FILE" in settings


def convert(draft: Draft) -> None:
    """Write the recipe of the variables."""
    draft.copy("model.name", "MODEL_NAME", default=to_set("MODEL_NAME"))
    dtype(draft, "bfloat16")
    rank = int(number(draft.get("LORA_RANK", default=0)))
    if rank > 0:
        draft.put("model.adapter.type", "lora", "LORA_RANK")
        draft.put("model.adapter.r", rank, "LORA_RANK")
        draft.copy("model.adapter.alpha", "LORA_ALPHA", default=16, convert=number)
    else:
        draft.put("model.adapter.type", "none", "LORA_RANK")
        draft.skip("no adapter", "LORA_ALPHA")
    columns = {"completion": "generated_solution"}
    rows(
        draft,
        {"path": draft.get("TRAIN_FILE"), "columns": columns},
        "TRAIN_FILE",
        note="rows of prompt and generated_solution; of prepared files, leave columns out",
    )
    draft.copy("length.max_length", "MAX_LENGTH", default=1024, convert=int)
    draft.put("length.on_overlong", "truncate")
    draft.put("trainer.type", "sft")
    draft.comments.pop("trainer.type", None)
    per_node = int(number(draft.get("NPROC_PER_NODE", default=draft.processes)))
    total = int(number(draft.get("BATCH_SIZE", default=8))) * per_node
    draft.put(
        "trainer.batch_size",
        total,
        "BATCH_SIZE",
        "NPROC_PER_NODE",
        note=f"rows of a device x {per_node} process(es)",
    )
    draft.copy("trainer.learning_rate", "LEARNING_RATE", default=1e-5, convert=float)
    draft.copy("trainer.num_epochs", "EPOCHS", default=4, convert=number)
    draft.put("trainer.weight_decay", 0.01)
    draft.put("trainer.adam_betas", [0.9, 0.95])
    draft.put("trainer.warmup", 0.1)
    draft.put("trainer.scheduler", "cosine")
    draft.copy("trainer.output_dir", "OUTPUT_DIR", convert=str)
    if draft.has("VAL_FILE"):
        draft.put("eval.data", {"path": draft.get("VAL_FILE"), "columns": columns}, "VAL_FILE")
        draft.put("eval.max_samples", None)
        draft.put("trainer.eval_steps", 500)
        draft.comments["trainer.eval_steps"] = ["there at the end of an epoch"]
    draft.skip("of the machine", "MASTER_*", "NNODES", "NODE_RANK", "CUDA_*", "NCCL_*")


SOURCE = Source("SFT on verl by shell variables", recognise, convert)
