"""From a GGUF file to a model folder, tensor by tensor, in fp32, which loses nothing more."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from posttrain.model.gguf.architectures import (
    LEFT_OUT,
    Architecture,
    Array,
    architecture_of,
    config_of,
    file_names,
    file_shape,
    to_model,
)
from posttrain.model.gguf.header import (
    LICENCE,
    ORIGIN,
    Header,
    TensorInfo,
    need_library,
    read_header,
)
from posttrain.model.gguf.tokens import PROBE, build_tokenizer, stops_of

AT_ONCE = 1 << 22
"""Numbers that are expanded together."""


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer to a folder, as safetensors in fp32.

    Raises ValueError if the library that expands the weights is missing, and for a file that is
    damaged or holds what is not read.
    """
    need_library(file)
    header = read_header(file)
    architecture, config = architecture_of(header, file), config_of(header, file)
    tokenizer = build_tokenizer(header.settings, file)
    stops = stops_of(header.settings, file)
    rows = header.tensors["token_embd.weight"].shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"{file} is damaged: {len(tokenizer)} tokens, {rows} rows of embedding; copy it again"
        )
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    config.eos_token_id = (stops[0] if len(stops) == 1 else stops) or None
    names = tensor_names(header, architecture, config, file)
    tokenizer.model_max_length = getattr(config, "max_position_embeddings", None)
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [_class_of(config).__name__]
    config.dtype = "float32"
    config.save_pretrained(folder)
    _write_generation(folder, config)
    tokenizer.save_pretrained(folder)
    check_tokenizer(folder, tokenizer, file)
    record = {"licence": header.settings.get(LICENCE)}
    (folder / ORIGIN).write_text(json.dumps(record))
    change = to_model(architecture, config)
    with file.open("rb") as content:
        tensors = (
            (name, change(ours, read_tensor(content, header.tensors[ours], ours, file)))
            for name, ours in names.items()
        )
        write_safetensors(folder / "model.safetensors", expected_shapes(config), tensors)


def _class_of(config: Any) -> Any:
    from transformers.models.auto import modeling_auto

    causal: Any = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    return causal[type(config)]


def _write_generation(folder: Path, config: Any) -> None:
    from transformers import GenerationConfig

    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder)


def expected_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that a model of this config saves, without making it."""
    import torch

    with torch.device("meta"):
        model = _class_of(config)(config)
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else ()
    )
    return {name: tuple(x.shape) for name, x in model.state_dict().items() if name not in tied}


def tensor_names(
    header: Header, architecture: Architecture, config: Any, file: Path
) -> dict[str, str]:
    """Return the file's name of each of the model's tensors.

    Raises ValueError if one is missing, has another shape, or if the file holds another one.
    """
    shapes = expected_shapes(config)
    names = file_names(iter(shapes), architecture)
    for name, ours in names.items():
        if ours not in header.tensors:
            raise ValueError(
                f"{file} lacks {ours}, which its architecture has: it is not complete; copy it "
                "again"
            )
        shape, wanted = header.tensors[ours].shape, file_shape(architecture, ours, shapes[name])
        if shape != wanted:
            raise ValueError(
                f"{file} is damaged: {ours} is {list(shape)} in it, and {list(wanted)} by its "
                "settings; copy it again"
            )
    if others := sorted(header.tensors.keys() - set(names.values()) - set(LEFT_OUT)):
        raise ValueError(
            f"{file} holds {others[0]}, which its architecture {architecture.name} does not have: "
            "take the model's folder with safetensors"
        )
    return names


def check_tokenizer(folder: Path, tokenizer: Any, file: Path) -> None:
    """Raise ValueError if transformers loads another tokenizer than was saved.

    It chooses a class by the model's type, and some build their own rules.
    """
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if loaded(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"]:
        raise ValueError(
            f"{file}: transformers loads its tokenizer as {type(loaded).__name__}, which splits "
            "text otherwise: take the model's folder with tokenizer.json"
        )


def read_tensor(content: BinaryIO, place: TensorInfo, name: str = "", where: Any = "") -> Array:
    """Return a tensor in fp32, expanded part by part; raise ValueError for what is no number."""
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType(place.kind)
    width = place.shape[-1]
    rows = math.prod(place.shape[:-1])
    row_bytes = place.num_bytes // rows
    result = np.empty((rows, width), np.float32)
    content.seek(place.offset)
    step = max(1, AT_ONCE // width)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        raw = np.frombuffer(content.read(count * row_bytes), np.uint8).reshape(count, row_bytes)
        try:
            part = _numbers(raw, kind.name)
            if part is None:
                with np.errstate(all="ignore"):  # what is not finite is refused below
                    part = quants.dequantize(raw, kind)
        except (NotImplementedError, KeyError):
            raise ValueError(
                f"{where}: {name} has the type {kind.name}, which cannot be expanded: take another "
                "quantisation of the model"
            ) from None
        result[first : first + count] = part
    if not np.isfinite(result).all():
        raise ValueError(
            f"{where} is damaged: {name} holds numbers that are not finite; copy it again"
        )
    return result.reshape(place.shape)


def _numbers(raw: Array, kind: str) -> Array | None:
    """Return numbers that are not packed, as they are; None for those that are."""
    if kind == "BF16":
        return (raw.view("<u2").astype("<u4") << 16).view("<f4")
    dtypes = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
    return raw.view(dtypes[kind]).astype(np.float32) if kind in dtypes else None


def write_safetensors(
    target: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterator[tuple[str, Array]]
) -> None:
    """Write fp32 tensors, given in the order of `shapes`, so that one alone is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with target.open("wb") as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        for name, tensor in tensors:
            assert tensor.shape == shapes[name], (name, tensor.shape)
            out.write(np.ascontiguousarray(tensor, "<f4").data)
