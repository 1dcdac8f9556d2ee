"""The forms that a model is exported in: its own files, merged into its base, GGUF."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.common.errors import SettingError
from posttrain.export.pyreft import to_pyreft
from posttrain.export.source import Source
from posttrain.model.classifiers import describe_classifier
from posttrain.model.folder import (
    LABELS_FILE,
    QUANTIZATION_FILE,
    REFT_CONFIG,
    STEPS_FILE,
    generation_stops,
    holds_classifier,
    refuse_reft,
    saved_labels,
    saved_quantization,
)
from posttrain.model.gguf.cache import is_gguf
from posttrain.model.gguf.writing import KINDS, write_gguf
from posttrain.model.integrity import INDEX, read_json
from posttrain.model.load import load_tokenizer
from posttrain.model.merge import merge_adapter
from posttrain.model.save import VALUE_FILE, without_idle_flags
from posttrain.model.suited import build_config, refuse_classifier

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
QUANTS = tuple(kind for kind in KINDS if kind not in DTYPES)
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    INDEX,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "chat_template*",
    "adapter_config.json",
    REFT_CONFIG,
    STEPS_FILE,
    LABELS_FILE,
    QUANTIZATION_FILE,
)
"""Files of a checkpoint that belong to the model; the others resume its training."""
OF_A_HEAD = (STEPS_FILE, LABELS_FILE)
ONE_FILE = "10000GB"


@dataclass
class Exported:
    """What was written, for the card and the console."""

    dtype: str
    """The kind of numbers of the weights."""
    notes: list[str] = field(default_factory=list)
    """What was measured or changed on the way."""
    arguments: str = ""
    """More arguments of the call that loads it, for the card."""


def own_files(source: Source, folder: Path, dtype: str | None) -> Exported:
    """Copy the model's or adapter's own files, its weights in `dtype` if it is given."""
    for path in sorted(source.folder.iterdir()):
        if path.name == VALUE_FILE or not any(fnmatch.fnmatch(path.name, p) for p in MODEL_FILES):
            continue
        if path.suffix == ".safetensors" and dtype is not None:
            recast(path, folder / path.name, dtype)
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)
            if path.suffix == ".safetensors":
                check_finite(folder / path.name)
    templates = source.folder / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, folder / templates.name)
    if dtype is not None and (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
        config.pop("torch_dtype", None)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if dtype is not None and (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        index["metadata"] = {"total_size": sum(f.stat().st_size for f in folder.glob("*.safe*rs"))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    result = Exported(dtype or stored_dtype(folder))
    if how := saved_quantization(folder):
        kind = how["type"]
        result.notes.append(
            f"The adapter was trained beside a base in {kind}. posttrain reads {QUANTIZATION_FILE} "
            f"and stores the base so; in other programs load the base in {kind} (bitsandbytes), or "
            f"expect answers that differ by what {kind} rounded."
        )
    return result


def recast(file: Path, target: Path, dtype: str) -> None:
    """Write a safetensors file with its numbers in another dtype.

    Raises ValueError if one of them is too large for it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    with safe_open(file, "pt") as content:
        metadata = content.metadata()
        for name in content.keys():  # noqa: SIM118
            tensors[name] = cast(name, content.get_tensor(name), dtype)
    save_file(tensors, target, metadata)


def cast(name: str, tensor: Tensor, dtype: str) -> Tensor:
    """Return a tensor in a dtype; integers stay. Raise ValueError if a number overflows."""
    if not tensor.is_floating_point():
        return tensor
    result = tensor.to(DTYPES[dtype])
    if not result.isfinite().all():
        largest = float(tensor.abs().max())
        reason = f"{largest:.3g}, too large for {dtype}: use bf16 or f32"
        reason = (
            reason
            if tensor.isfinite().all()
            else "numbers that are not finite: export an earlier checkpoint"
        )
        raise ValueError(f"{name} holds {reason}")
    return result


def check_finite(file: Path) -> None:
    """Raise ValueError if a tensor of a safetensors file holds NaN or an infinite number."""
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        for name in content.keys():  # noqa: SIM118
            if not content.get_tensor(name).isfinite().all():
                raise ValueError(
                    f"{name} holds numbers that are not finite: the run had diverged; export an "
                    "earlier checkpoint"
                )


def stored_dtype(folder: Path) -> str:
    """Return the kind of numbers that most weights of a folder's first file have."""
    from safetensors import safe_open

    counts = {"F32": 0, "BF16": 0, "F16": 0}
    for file in sorted(folder.glob("*.safetensors"))[:1]:
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118
                part = content.get_slice(name)
                count = 1
                for length in part.get_shape():
                    count *= length
                counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + count
    return max(counts, key=lambda name: counts[name]).lower()


def base_dtype(source: Source) -> str:
    """Return the kind of numbers that an adapter's base is stored in, by its config."""
    stored = build_config(str(source.folder)).dtype
    return next((name for name, dtype in DTYPES.items() if dtype == stored), "f32")


def merged(source: Source, folder: Path, dtype: str | None) -> Exported:
    """Write the whole model, an adapter merged into its base.

    By default in the dtype that the base is stored in. Raises ValueError for edits of ReFT, which
    are no part of the weights."""
    import transformers

    refuse_reft(source.folder, "merged; export them as safetensors, which copies their folder")
    if source.kind == "model":
        return own_files(source, folder, dtype)
    transformers.logging.disable_progress_bar()
    result = merge_adapter(str(source.folder), source.dequantize)
    tokenizer = load_tokenizer(str(source.folder))
    model: Any = result.model
    kind = dtype or base_dtype(source)
    for name, tensor in model.named_parameters():
        tensor.data = cast(name, tensor.data, kind)
    model = model.to(DTYPES[kind])
    scores = holds_classifier(source.folder)
    if stops := generation_stops(str(source.folder)):
        for settings in (model.config,) if scores else (model.config, model.generation_config):
            settings.eos_token_id = stops[0] if len(stops) == 1 else stops
    if scores:
        describe_classifier(model.config, saved_labels(source.folder))
    else:
        without_idle_flags(model.generation_config)
    model.config.dtype = DTYPES[kind]
    model.save_pretrained(folder, max_shard_size=ONE_FILE)
    tokenizer.save_pretrained(folder)
    for name in OF_A_HEAD:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    notes = [
        "The adapter was merged into its base in fp32; on a probe, logits differ by at most "
        f"{result.difference:.2g} from those of the adapter beside the base."
    ]
    if result.trained_on:
        notes.append(of_quantised(str(result.trained_on["type"]), source.dequantize))
    return Exported(kind, notes)


def of_quantised(kind: str, dequantized: bool) -> str:
    """Return what a user needs to know of an adapter that was trained beside quantised weights."""
    if dequantized:
        return (
            f"It was trained beside a base in {kind} and merged into what training saw: the base's "
            f"weights, rounded to {kind} and back."
        )
    return (
        f"It was trained beside a base in {kind} and merged into the whole weights, so that its "
        f"answers differ from the run's by what {kind} rounded: evaluate it (posttrain eval), use "
        f"the adapter unmerged, or merge it into the rounded weights (dequantize)."
    )


def adapter_files(source: Source, folder: Path, dtype: str | None) -> Exported:
    """Copy an adapter of PEFT; raise ValueError for anything else."""
    refuse_reft(source.folder, "exported as peft: PEFT has no ReFT; use the format safetensors")
    if source.kind == "model":
        raise ValueError(
            f"{source.folder} holds whole weights, no adapter: export it as merged or safetensors"
        )
    result = own_files(source, folder, dtype)
    if is_gguf(source.base or ""):
        result.notes.append(
            "The adapter names a GGUF file as its base, which PEFT does not load: give PEFT the "
            "weights that the file was made of, or export it as merged."
        )
    return result


def gguf(
    source: Source, folder: Path, dtype: str | None, quant: str | None, about: dict[str, str]
) -> Exported:
    """Write one GGUF file, of the merged model if the source is an adapter."""
    refuse_reft(source.folder, "part of a GGUF file")
    refuse_classifier(str(source.folder))
    whole = source.folder
    notes: list[str] = []
    if source.kind == "adapter":
        whole = folder / "merged"
        whole.mkdir()
        notes = merged(source, whole, "f32").notes
    stored = stored_dtype(whole) if source.kind == "model" else base_dtype(source)
    if stored not in DTYPES:
        notes.append(f"The weights are stored in {stored} and were read as fp32.")
    kind = quant or dtype or (stored if stored in DTYPES else "f32")
    file = folder / f"{source.name}-{kind.upper()}.gguf"
    written = write_gguf(whole, file, kind, about)
    if source.kind == "adapter":
        shutil.rmtree(whole)
    if written.error > 0:
        notes.append(
            f"Largest error of a matrix, relative to its norm: {written.error:.2%} "
            f"({written.worst}). The file was read back and compared with the weights."
        )
    else:
        notes.append("The file was read back; its weights are equal, bit for bit.")
    return Exported(kind, notes)


def pyreft_files(source: Source, folder: Path, dtype: str | None) -> Exported:
    """Write the edits of ReFT as pyreft does, in fp32."""
    if dtype not in (None, "f32"):
        raise SettingError("dtype", f"pyreft is written in f32, not {dtype}: leave it out")
    arguments, note = to_pyreft(source.folder, folder)
    return Exported("f32", [note], arguments)


Writer = Callable[[Source, Path, str | None], Exported]
FORMATS: dict[str, Writer] = {
    "safetensors": own_files,
    "merged": merged,
    "peft": adapter_files,
    "pyreft": pyreft_files,
}
"""Formats apart from gguf, which has more settings."""
