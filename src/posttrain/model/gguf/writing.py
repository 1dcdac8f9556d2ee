"""From a model folder to a GGUF file, tensor by tensor, checked by reading the file back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.model.folder import generation_stops
from posttrain.model.gguf.architectures import (
    ARCHITECTURES,
    Architecture,
    Array,
    check_same,
    config_of,
    file_names,
    file_shape,
    head_size,
    settings_of,
    to_file,
)
from posttrain.model.gguf.header import Header, need_library, read_header
from posttrain.model.gguf.reading import expected_shapes, read_tensor
from posttrain.model.gguf.rotation import FACTORS, factors
from posttrain.model.gguf.tokens import INSTEAD, PROBE, build_tokenizer
from posttrain.model.gguf.tokens import settings_of as token_settings
from posttrain.model.integrity import INDEX, check_shards, check_tensors, read_json
from posttrain.model.load import load_tokenizer
from posttrain.model.suited import read_config

KINDS = {
    "f32": 0.0,
    "f16": 0.0,
    "bf16": 0.0,
    "q8_0": 0.01,
    "q5_1": 0.06,
    "q5_0": 0.07,
    "q4_1": 0.12,
    "q4_0": 0.14,
}
"""Kinds of numbers, and the largest error of a matrix that is accepted, relative to its norm; 0 is
equality with the weights rounded to that kind."""
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}
"""llama.cpp's numbers for general.file_type."""
LARGEST_F16 = 65504.0
ENDS_OF_MODEL = ("token_embd.weight", "output.weight")
"""Matrices that keep 8 bits if the others have fewer, since all errors pass through them."""


@dataclass(frozen=True)
class Written:
    """What was written, for the model card and the console."""

    num_bytes: int
    error: float
    """The largest error of a matrix relative to its norm, against the weights in fp32."""
    worst: str
    """The matrix that has it, by its name in the file."""


def architecture_for(config: Any) -> Architecture:
    """Return the entry for a config of transformers; raise ValueError if there is none."""
    for architecture in ARCHITECTURES.values():
        if config.model_type in (architecture.model_type, *architecture.also):
            return architecture
    known = sorted(t for a in ARCHITECTURES.values() for t in (a.model_type, *a.also))
    raise ValueError(
        f"a {config.model_type} model cannot be written to a GGUF file; {', '.join(known)} can: "
        "export it as merged or safetensors"
    )


def write_gguf(folder: Path, file: Path, kind: str, about: dict[str, str]) -> Written:
    """Write a model folder as one GGUF file and return its size and error.

    `about` holds texts for the settings general.*, such as name and license. The file is read back:
    its config, tokenizer and weights are compared with the folder's. Raises ValueError for what a
    GGUF file cannot express.
    """
    import gguf

    need_library(file)
    config = read_config(str(folder))
    architecture, tokenizer = architecture_for(config), load_tokenizer(str(folder))
    shapes = expected_shapes(config)
    names, places = file_names(iter(shapes), architecture), tensor_places(folder, shapes)
    settings = settings_of(config, architecture)
    rows = shapes[next(n for n, ours in names.items() if ours == "token_embd.weight")][0]
    settings |= token_settings(tokenizer, rows, stops_for(folder, config, tokenizer))
    settings |= {f"general.{key}": value for key, value in about.items()}
    settings["general.file_type"] = FILE_TYPES[kind]
    settings["general.quantization_version"] = 2
    writer = gguf.GGUFWriter(str(file), architecture.name)
    for key, value in settings.items():
        _add(writer, key, value)
    change = to_file(architecture, config)
    kinds: dict[str, str] = {}
    for name, ours in names.items():
        shape = file_shape(architecture, ours, shapes[name])
        kinds[ours] = kind_for(ours, shape, kind)
        _announce(writer, ours, shape, kinds[ours])
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        _announce(writer, FACTORS, (head_size(config) // 2,), "f32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for ours, tensor in _tensors(places, names):
        writer.write_tensor_data(packed(change(ours, tensor), kinds[ours], ours))
    if rope.get("rope_type") == "llama3":
        writer.write_tensor_data(factors(rope, head_size(config)))
    writer.close()
    header = read_header(file)
    check_same(config, config_of(header, file))
    check_tokens(tokenizer, header, file)
    read = ((ours, change(ours, tensor)) for ours, tensor in _tensors(places, names))
    return compared(file, header, read, kinds)


def stops_for(folder: Path, config: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a completion, the tokenizer's EOS first if it is one of them."""
    stops = generation_stops(str(folder)) or config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    stops = [stop for stop in stops if stop is not None] or [tokenizer.eos_token_id]
    if stops == [None]:
        raise ValueError(
            f"{folder} names no token that ends a completion, which GGUF files need: set "
            "eos_token_id in its generation_config.json"
        )
    return sorted(dict.fromkeys(stops), key=lambda stop: stop != tokenizer.eos_token_id)


def tensor_places(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """Return the file of each tensor; raise ValueError if one is missing or has another shape."""
    single = folder / "model.safetensors"
    if single.is_file():
        saved, where = check_tensors(single), dict.fromkeys(shapes, single)
    elif (folder / INDEX).is_file():
        saved, index = check_shards(folder), read_json(folder / INDEX)["weight_map"]
        where = {name: folder / file for name, file in index.items()}
    else:
        raise ValueError(f"{folder} has no weights in safetensors: copy them there")
    for name, shape in shapes.items():
        if tuple(saved.get(name, ())) != shape:
            found = f"{saved[name]} there" if name in saved else "not there"
            raise ValueError(
                f"{folder}: {name} {list(shape)} of its config.json is {found}: write the folder "
                "again with transformers' save_pretrained"
            )
    return where


def _tensors(places: dict[str, Path], names: dict[str, str]) -> Iterator[tuple[str, Array]]:
    """Yield each tensor's name in the GGUF file and its numbers in fp32, as transformers has it."""
    from safetensors import safe_open

    for name, ours in names.items():
        with safe_open(places[name], "pt") as content:
            yield ours, content.get_tensor(name).float().numpy()


def kind_for(name: str, shape: tuple[int, ...], kind: str) -> str:
    """Return the kind of numbers for a tensor of a file whose matrices are of `kind`.

    Vectors and positions are few and stay in fp32. A row that a block does not divide is f16.
    """
    if len(shape) < 2 or name.startswith("position_embd"):
        return "f32"
    if not kind.startswith("q"):
        return kind
    if shape[-1] % 32:
        return "f16"
    return "q8_0" if name in ENDS_OF_MODEL else kind


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a setting with the type that llama.cpp expects."""
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    adders |= {str: writer.add_string, list: writer.add_array}
    adders[type(value)](key, value)


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Add a tensor to the directory of a file, without its numbers."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    raw = GGMLQuantizationType[kind.upper()]
    per_block, block_bytes = GGML_QUANT_SIZES[raw]
    in_bytes = (*shape[:-1], shape[-1] // per_block * block_bytes)
    writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), math.prod(in_bytes), raw)


def packed(tensor: Array, kind: str, name: str) -> Array:
    """Return a matrix's bytes in a kind of numbers; raise ValueError if it does not hold them."""
    from gguf import GGMLQuantizationType, quants

    tensor = np.ascontiguousarray(tensor, np.float32)
    if not np.isfinite(tensor).all():
        raise ValueError(
            f"{name} holds numbers that are not finite: the run had diverged; export an earlier "
            "checkpoint"
        )
    if kind == "f32":
        return tensor
    if kind == "f16":
        if (largest := float(np.abs(tensor).max())) > LARGEST_F16:
            raise ValueError(f"{name} holds {largest:.3g}, too large for f16: use bf16 or f32")
        return tensor.astype(np.float16)
    return np.asarray(quants.quantize(tensor, GGMLQuantizationType[kind.upper()]))


def check_tokens(tokenizer: Any, header: Header, file: Path) -> None:
    """Raise ValueError if the file's tokenizer, read back, is not the one that was written."""
    again = build_tokenizer(header.settings, file)
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    texts = [PROBE, PROBE.lower(), " ", "", *(f"a{token} b{token}" for token in added[:64])]
    for text in texts:
        if again(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise ValueError(
                f"a GGUF file cannot express this tokenizer: {text[:40]!r} would be split "
                f"otherwise{INSTEAD}"
            )
    if again.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"a GGUF file cannot express this tokenizer: its tokens are not all kept{INSTEAD}"
        )


def compared(
    file: Path, header: Header, tensors: Iterator[tuple[str, Array]], kinds: dict[str, str]
) -> Written:
    """Return the size and error of a file whose tensors were to be these.

    Raises ValueError if the error is more than the kind of numbers explains.
    """
    worst, most = "", 0.0
    with file.open("rb") as content:
        for name, tensor in tensors:
            read = read_tensor(content, header.tensors[name], name, file)
            kind, norm = kinds[name], float(np.linalg.norm(tensor)) or 1.0
            error = float(np.linalg.norm(read - tensor)) / norm
            if not kind.startswith("q"):
                exact = np.array_equal(read, rounded(tensor, kind))
            else:
                exact = error <= KINDS[kind]
            if not exact:
                raise ValueError(
                    f"{name} was not written as it is ({kind}, error {error:.2%}): check the disk, "
                    "and export it again; if it recurs, report it"
                )
            if error > most:
                worst, most = name, error
    return Written(file.stat().st_size, most, worst)


def rounded(tensor: Array, kind: str) -> Array:
    """Return numbers rounded to f32, f16 or bf16 by torch, in fp32."""
    import torch

    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    return np.asarray(torch.from_numpy(tensor.copy()).to(dtypes[kind]).float().numpy())
