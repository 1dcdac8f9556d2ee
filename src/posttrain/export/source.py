"""What is exported: the model of a run, a checkpoint or a folder, and the run that made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrain.common.files import sha256
from posttrain.model.folder import (
    CHECKPOINT_INFO,
    REFT_WEIGHTS,
    adapter_config,
    is_adapter,
    is_reft,
    not_found,
    read_info,
    resolve_model_path,
)
from posttrain.model.integrity import INDEX, check_folder, check_tensors

ADAPTER_FILE = "adapter_model.safetensors"
Kind = Literal["model", "adapter", "reft"]


@dataclass(frozen=True)
class Source:
    """A model on this machine."""

    folder: Path
    """The model or adapter folder; for a run, its best or newest checkpoint."""
    kind: Kind
    """model: whole weights. adapter: one of PEFT. reft: edits of ReFT."""
    run: Path | None
    """The run directory that made it; None if it is unknown."""
    name: str
    """A short name for files: of the run and its step, or of the folder."""
    dequantize: bool = False
    """Whether an adapter is merged into its base as training saw it: quantised and back."""

    @property
    def base(self) -> str | None:
        """An adapter's base, as it names it: a folder, GGUF file or hub name; else None."""
        if self.kind == "model":
            return None
        return str(adapter_config(self.folder)["base_model_name_or_path"])


def find_source(name: str) -> Source:
    """Return the model of a run, checkpoint, folder or GGUF file.

    Raises ValueError if there is none on this machine, or if it is damaged.
    """
    path = Path(resolve_model_path(name))
    if not path.is_dir():
        if path.exists():
            check_folder(str(path))
        raise ValueError(f"{not_found(str(path))}; a model of the hub is exported from its folder")
    check_folder(str(path))
    if not is_adapter(path) and not (path / "config.json").is_file():
        raise ValueError(not_found(str(path)))
    path = path.resolve()
    weights = ("model.safetensors", INDEX, ADAPTER_FILE, REFT_WEIGHTS)
    if not any((path / file).is_file() for file in weights):
        raise ValueError(f"{path} has no weights in safetensors: copy them there")
    check_weights(path)
    run = path.parent if (path.parent / "metrics.jsonl").is_file() else None
    kind: Kind = "reft" if is_reft(path) else "adapter" if is_adapter(path) else "model"
    given = Path(name).stem if name.lower().endswith(".gguf") else path.name
    return Source(path, kind, run, given if run is None else f"{run.name}-{path.name}")


def check_weights(folder: Path) -> None:
    """Raise ValueError for files of weights that are cut, or not those that a checkpoint lists."""
    listed = read_info(folder).get("files") or {} if (folder / CHECKPOINT_INFO).is_file() else {}
    for file in sorted(folder.glob("*.safetensors")):
        check_tensors(file, quantised=True)
        if file.name in listed and sha256(file) != listed[file.name]:
            raise ValueError(
                f"{folder} is damaged: {file.name} is not the file that was saved; copy it again, "
                "or take an earlier checkpoint"
            )
