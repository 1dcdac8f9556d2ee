"""Files of safetensors, written one tensor at a time and read one part at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.common.files import sha256
from posttrain.model.integrity import INDEX, read_json
from posttrain.model.parts import Part, local, part_of, whole

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
RANKS = {name: k for k, name in enumerate(("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32"))}
RANKS |= {"F64": len(RANKS), "I64": len(RANKS) + 1}
"""The order in which safetensors writes dtypes, the last first."""
AT_ONCE = 2**24
"""Bytes that are written, and hashed, together."""


def write_tensors(
    file: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Write tensors as safetensors' own writer does, byte for byte; return the file's SHA-256.

    No tensor is copied, where safetensors copies all of them. What is on the disk is read back:
    OSError if it is not what was written. `check` is called between pieces and may raise.
    """
    order = sorted(tensors, key=lambda name: (-RANKS[NAMES[tensors[name].dtype]], name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype = NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": [*tensor.shape], "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    digest = hashlib.sha256()
    with file.open("wb") as out:

        def put(piece: Any) -> None:
            check()
            digest.update(piece)
            out.write(piece)

        put(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            content = bytes_of(tensors[name])
            for begin in range(0, len(content), AT_ONCE):
                put(content[begin : begin + AT_ONCE])
    if sha256(file) != digest.hexdigest():
        raise OSError(f"{file.name} is not on the disk as it was written")
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes; those of a contiguous one on the CPU are not copied."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


class TensorFiles:
    """The tensors in a folder's safetensors files, read when they are asked for."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self.places = dict(places)
        self.opened: dict[Path, Any] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def read(self, name: str, part: Part) -> Tensor:
        """Return a part of a tensor; nothing else of it is read."""
        if not part.shape:
            return self._file(name).get_tensor(name)  # type: ignore[no-any-return]
        content: Tensor = self._file(name).get_slice(name)[part.box]
        assert tuple(content.shape) == part.shape, f"{name}: {content.shape}, not {part.shape}"
        return content

    def fill(self, name: str, tensor: Tensor) -> None:
        """Read this rank's part of a tensor from the file into it, in the tensor's dtype.

        Raises ValueError if the file's has another shape.
        """
        if self.shape(name) != tuple(tensor.shape):
            raise ValueError(
                f"{self.places[name]}: {name} is {list(self.shape(name))} there, and "
                f"{list(tensor.shape)} in the model"
            )
        part = part_of(tensor)
        if not part.is_empty:
            with torch.no_grad():
                local(tensor).copy_(self.read(name, part))

    def read_whole(self, name: str) -> Tensor:
        """Return a whole tensor."""
        return self.read(name, whole(self.shape(name)))

    def _file(self, name: str) -> Any:
        from safetensors import safe_open

        file = self.places[name]
        if file not in self.opened:
            self.opened[file] = safe_open(file, "pt")
        return self.opened[file]


def names_in(file: Path) -> list[str]:
    """Return the names of a file's tensors."""
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        return list(content.keys())


def weights_in(folder: Path) -> TensorFiles:
    """Return the weights of a model's folder, in one file or in several with an index."""
    single = folder / "model.safetensors"
    if single.is_file():
        return TensorFiles(dict.fromkeys(names_in(single), single))
    places = read_json(folder / INDEX).get("weight_map", {})
    return TensorFiles({name: folder / file for name, file in places.items()})
