"""Whether a model folder is whole: checked in our own words before any library reads it.

Only headers and JSON files are read, never the weights, so that the check takes milliseconds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.common.files import refuse_pointer

INDEX = "model.safetensors.index.json"
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "sentencepiece.bpe.model",
)
READ = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    INDEX,
)
"""JSON files that posttrain or the libraries below it read."""
NUMBERS = ("F64", "F32", "F16", "BF16")
"""The dtypes of weights that are read as they are."""
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
SIZES |= {"BOOL": 1, "U16": 2, "U32": 4, "U64": 8}
OURS = "model.name: "
"""How this package's own messages about a model begin."""
SMALL = (".json", ".model", ".txt", ".jinja", ".safetensors")
LONGEST_POINTER = 1024  # bytes
LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors


def check_folder(name: str) -> None:
    """Raise ValueError if a model or adapter folder is damaged; hub names are not checked."""
    folder = Path(name)
    if folder.is_file():
        raise ValueError(
            f"{OURS}{name} is a file: name the folder that holds config.json and the weights"
        )
    if not folder.is_dir():
        return
    for file in sorted(folder.iterdir()):
        if file.suffix in SMALL and file.is_file() and file.stat().st_size < LONGEST_POINTER:
            refuse_pointer(file, file.read_bytes()[:64])
    for listed in READ:
        read_json(folder / listed)
    refuse_tokenizer_code(name)
    if (folder / "adapter_config.json").is_file():
        return
    config = read_json(folder / "config.json")
    if not config:
        return
    refuse_custom_code(name, config)
    quantised = refuse_quantised(name, config)
    if (folder / "model.safetensors").is_file():
        check_tensors(folder / "model.safetensors", quantised)
    elif (folder / INDEX).is_file():
        check_shards(folder, quantised)
    elif any(folder.glob("*.bin")):
        raise ValueError(
            f"model.name: {name} has its weights in .bin files only, which can run code and are "
            "never loaded: save them as safetensors"
        )


def refuse_custom_code(name: str, config: dict[str, Any]) -> None:
    """Raise ValueError for a model that only Python files of its own can build."""
    from transformers import CONFIG_MAPPING

    code, kind = config.get("auto_map"), config.get("model_type")
    if isinstance(code, dict) and code and str(kind) not in CONFIG_MAPPING:
        file = str(next(iter(code.values()))).split("--")[-1].split(".")[0]
        raise ValueError(
            f"model.name: {name} needs Python code of its own ({file}.py, by auto_map in "
            f"config.json), which is never run; transformers itself has no model type {kind}"
        )


def refuse_quantised(name: str, config: dict[str, Any]) -> bool:
    """Return whether weights are quantised by bitsandbytes, on which an adapter is trained.

    Raises ValueError for other quantised weights, except those that transformers expands: mxfp4.
    """
    record = config.get("quantization_config")
    method = record.get("quant_method", "unknown") if isinstance(record, dict) else None
    if method not in (None, "mxfp4", "bitsandbytes"):
        raise ValueError(
            f"{OURS}{name} has quantised weights ({method}, by quantization_config in "
            "config.json), which cannot be trained: take the model's unquantised weights"
        )
    return method == "bitsandbytes"


def refuse_tokenizer_code(name: str) -> None:
    """Raise ValueError for a tokenizer that only Python files of its own can build."""
    config = read_json(Path(name) / "tokenizer_config.json")
    code, kind = config.get("auto_map"), str(config.get("tokenizer_class"))
    if isinstance(code, dict) and code.get("AutoTokenizer"):
        import transformers

        if not (hasattr(transformers, kind) or hasattr(transformers, f"{kind}Fast")):
            raise ValueError(
                f"{OURS}{name} has a tokenizer, {kind}, that needs Python code of its own "
                "(auto_map in tokenizer_config.json), which is never run"
            )


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object, empty if there is no such file; raise ValueError if it is damaged."""
    if not file.is_file():
        return {}
    raw = file.read_bytes()
    refuse_pointer(file, raw[:64])
    try:
        content = json.loads(raw)
    except UnicodeDecodeError:
        raise ValueError(f"{file} is damaged: it is not UTF-8 text; copy it again") from None
    except json.JSONDecodeError as error:
        cut = ": it is empty" if not raw.strip() else f": not JSON from line {error.lineno} on"
        raise ValueError(f"{file} is damaged or cut{cut}; copy it again") from None
    except (ValueError, RecursionError):  # a number or nesting beyond the limits
        raise ValueError(f"{file} is damaged: it cannot be read as JSON; copy it again") from None
    if not isinstance(content, dict):
        # some of a tokenizer's files hold lists
        if file.name.endswith("config.json") or file.name in (INDEX, "tokenizer.json"):
            raise ValueError(f"{file} is damaged: expected a JSON object; copy it again")
        return {}
    return content


def check_tensors(file: Path, quantised: bool = False) -> dict[str, list[int]]:
    """Return the shape of each tensor in a safetensors file; raise ValueError if it is damaged.

    Weights that are not floating-point numbers are refused too, unless they may be `quantised`.
    """
    size = file.stat().st_size
    with file.open("rb") as content:
        start = content.read(64)
        refuse_pointer(file, start)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise ValueError(
                f"{file} is damaged or cut ({size:,} bytes): it has no safetensors header; copy it "
                "again"
            )
        content.seek(8)
        try:
            header = json.loads(content.read(length))
        except (ValueError, RecursionError):
            raise ValueError(
                f"{file} is damaged: its safetensors header cannot be read; copy it again"
            ) from None
    try:
        return _shapes(file, header, size - 8 - length, quantised)
    except (AttributeError, KeyError, TypeError, IndexError):
        raise ValueError(
            f"{file} is damaged: its safetensors header describes no tensors; copy it again"
        ) from None


def _shapes(file: Path, header: Any, num_bytes: int, quantised: bool) -> dict[str, list[int]]:
    """Return the shapes in a header; raise ValueError if they do not fit the bytes after it."""
    shapes, spans = {}, []
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        shape, dtype, (begin, end) = tensor["shape"], tensor["dtype"], tensor["data_offsets"]
        spans.append((begin, end))
        count = 1
        for length in shape:
            count *= length
        whole = not name.endswith(("weight", "weight_scale", "qweight"))
        if dtype not in NUMBERS and not (whole or quantised):
            raise ValueError(
                f"{file}: the weight {name} has the dtype {dtype}, not one of "
                f"{', '.join(NUMBERS)}: quantised weights cannot be trained; take the model's "
                "unquantised weights"
            )
        if dtype in SIZES and count * SIZES[dtype] != end - begin:
            raise ValueError(
                f"{file} is damaged: {name} {shape} of {dtype} does not have {end - begin:,} bytes"
            )
        shapes[name] = list(shape)
    last = max((end for _, end in spans), default=0)
    if last != num_bytes:
        state = "cut" if last > num_bytes else "damaged"
        raise ValueError(
            f"{file} is {state}: its header describes {last:,} bytes of weights, the file has "
            f"{num_bytes:,}; copy it again"
        )
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise ValueError(f"{file} is damaged: its tensors overlap or leave gaps; copy it again")
        place = end
    return shapes


def check_shards(folder: Path, quantised: bool = False) -> dict[str, list[int]]:
    """Return the shapes of sharded weights; raise ValueError for a shard that lacks or is cut."""
    index = read_json(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise ValueError(f"{folder / INDEX} is damaged: it has no weight_map; copy it again")
    shapes: dict[str, list[int]] = {}
    for shard in sorted(set(places.values())):
        if os.sep in shard or not (folder / shard).is_file():
            count = len(set(places.values()))
            raise ValueError(
                f"model.name: {folder} lacks {shard}, one of the {count} files of its weights that "
                f"{INDEX} names: copy it"
            )
        here = check_tensors(folder / shard, quantised)
        lost = [name for name, file in places.items() if file == shard and name not in here]
        if lost:
            raise ValueError(
                f"{folder / shard} lacks {lost[0]}, which {INDEX} says it holds: the files are not "
                "of one model; copy them again"
            )
        shapes |= here
    return shapes


def has_tokenizer(name: str) -> bool:
    """Whether a folder holds any file that a tokenizer is built from."""
    return any((Path(name) / file).is_file() for file in TOKENIZERS)


@contextmanager
def in_one_line(name: str, problem: str, quote: bool = True) -> Iterator[None]:
    """Raise ValueError with `problem` for whatever a library raises about the folder `name`.

    transformers, PEFT and torch raise errors of any type for a config that makes no sense. Running
    out of memory is not such an error. Without `quote` the library's own words are left out.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        text = str(error).strip()
        if "out of memory" in text or (isinstance(error, ValueError) and text.startswith(OURS)):
            raise
        reason = re.split(r"[\n\r]|(?<=[a-z)]{3})\. ", text)[0].strip(" :.")[:160]
        reason = f" ({reason})" if reason else f" ({type(error).__name__})"
        reason = reason if quote else ""
        raise ValueError(f"model.name: {name}: {problem}{reason}") from error
