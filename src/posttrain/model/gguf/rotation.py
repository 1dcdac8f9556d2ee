"""Rotary embeddings in GGUF files: settings for most kinds, a tensor of factors for Llama 3's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.model.gguf.header import TensorInfo

Array = np.ndarray[Any, Any]
FACTORS = "rope_freqs.weight"
FOLDER = ": take the model's folder with safetensors"
"""What to do about a file that holds what is not read."""
LENGTHS = tuple(1 << n for n in range(4, 21))
"""Lengths of the first training that are tried for Llama 3's rotation."""


def rope_of(
    given: dict[str, Any], tensors: dict[str, TensorInfo], file: Path, size: int
) -> dict[str, Any]:
    """Return transformers' rope_parameters of a file with heads of `size` numbers.

    Raises ValueError for a rotation that is not read.
    """
    theta = float(str(np.float32(given.get("rope.freq_base", 10000.0))))
    factor = given.get("rope.scaling.factor")
    kind = given.get("rope.scaling.type", "linear" if factor else "none")  # as llama.cpp does
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if FACTORS in tensors:
        if kind != "none":
            raise ValueError(
                f"{file} scales its rotation twice, by {kind} and by {FACTORS}{FOLDER}"
            )
        place = tensors[FACTORS]
        if place.kind != 0 or place.shape != (size // 2,):
            raise ValueError(
                f"{file}: {FACTORS} {list(place.shape)} is not one fp32 number a pair; copy it "
                "again"
            )
        return rope | llama3_of(np.fromfile(file, "<f4", size // 2, offset=place.offset), theta)
    if kind == "none":
        return rope
    if kind not in ("linear", "yarn") or not isinstance(factor, float) or factor <= 0:
        raise ValueError(
            f"{file}: a rotation scaled by {kind} (factor {factor}) is not read{FOLDER}"
        )
    rope |= {"rope_type": kind, "factor": float(str(np.float32(factor)))}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = given.get("rope.scaling.original_context_length")
        if not rope["original_max_position_embeddings"]:
            raise ValueError(f"{file}: yarn needs rope.scaling.original_context_length{FOLDER}")
    return rope


def rope_settings(config: Any) -> dict[str, Any]:
    """Return a file's settings for the rotation of a config; Llama 3's has a tensor instead."""
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    settings: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    if kind in ("linear", "yarn"):
        settings |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    elif kind not in ("default", "llama3"):
        raise ValueError(
            f"a GGUF file cannot express the rotation {kind} of this model: export it as merged or "
            "safetensors"
        )
    if kind == "yarn":
        length = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        settings["rope.scaling.original_context_length"] = length
    return settings


def factors(rope: dict[str, Any], size: int) -> Array:
    """Return what Llama 3's rotation divides each frequency by [size / 2], in fp32."""
    frequencies = rope["rope_theta"] ** -(np.arange(0, size, 2) / size)
    length, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = length * frequencies / (2 * math.pi)
    smooth = (turns - low) / (high - low)
    with np.errstate(all="ignore"):  # beyond both ends, where it is not used
        between = 1 / ((1 - smooth) / factor + smooth)
    result = np.where(turns > high, 1.0, np.where(turns < low, factor, between))
    return np.asarray(result, np.float32)


def llama3_of(given: Array, theta: float) -> dict[str, Any]:
    """Return the parameters of Llama 3's rotation with these factors; raise ValueError if none."""
    largest = float(str(given.max()))
    for length in LENGTHS:
        rope = {"rope_type": "llama3", "rope_theta": theta, "factor": largest}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": length}
        if np.allclose(factors(rope, 2 * len(given)), given, rtol=1e-5, atol=0):
            return rope
    raise ValueError(
        f"{FACTORS} is not a rotation of Llama 3's kind, the only one with factors that is "
        f"read{FOLDER}"
    )
