"""`posttrain export`, `merge` and `push`: from a name to a folder, or to the model hub."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.common.environment import versions
from posttrain.common.errors import SettingError
from posttrain.common.files import sha256
from posttrain.export.card import model_card, write_card
from posttrain.export.combine import Method, combine, write_adapter
from posttrain.export.facts import UNKNOWN, gather, gather_all
from posttrain.export.hub import check_repo, token, upload
from posttrain.export.source import Source, find_source
from posttrain.export.target import check_new, new_folder
from posttrain.export.weights import DTYPES, FORMATS, QUANTS, Exported, gguf, merged
from posttrain.model.folder import QUANTIZATION_FILE, holds_classifier, saved_quantization
from posttrain.model.load import load_tokenizer
from posttrain.model.merge import merge_adapter

RECORD = "posttrain_export.json"
"""What an export is: its format, versions and the SHA-256 of its files."""
CHOICES = (*FORMATS, "gguf")
Say = Callable[[str], None]


def export(
    name: str,
    form: str = "safetensors",
    output: Path | None = None,
    dtype: str | None = None,
    quant: str | None = None,
    base: str | None = None,
    licence: str | None = None,
    say: Say = print,
    title: str | None = None,
    dequantize: bool = False,
) -> Path:
    """Write a model in a format into a new folder, with its card, and return the folder.

    The card calls it `title`, by default as the folder is called. With `dequantize`, an adapter is
    merged into its base as a training in 4 or 8 bits saw it. Raises SettingError for a target
    that exists or settings that do not go together, and ValueError for a model that the format
    cannot hold; nothing is left then.
    """
    check_form(form, dtype, quant)
    if base is not None and not base.strip():
        raise SettingError("base_model", "is empty: leave it out, or give the base model's name")
    source = replace(find_source(name), dequantize=dequantize)
    if dequantize and (source.kind != "adapter" or form not in ("merged", "gguf")):
        raise SettingError(
            "dequantize", "only for an adapter that is merged: set format to merged or gguf"
        )
    output = output or Path(f"{source.name}-{quant or form}")
    check_new(output)
    with new_folder(output) as folder:
        result = write_form(source, folder, form, dtype, quant, licence)
        if base is not None and source.kind != "model" and form != "merged" and form != "gguf":
            rename_base(folder, base)
        kind = kind_of(source, form, folder)
        title = source.name if kind == "gguf" else title or output.name
        facts = gather(source, base)
        write_card(folder, model_card(title, facts, result, kind, licence))
        write_record(folder, form, result.dtype)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for file, size in sizes.items():
        say(f"{size:>14,}  {output / file}")
    for note in result.notes:
        say(note)
    return output


def check_form(form: str, dtype: str | None, quant: str | None) -> None:
    """Raise SettingError for a format, dtype or quantisation that does not exist or fit."""
    for field, value, known in (
        ("format", form, CHOICES),
        ("dtype", dtype, DTYPES),
        ("quant", quant, QUANTS),
    ):
        if value is not None and value not in known:
            raise SettingError(field, f"expected one of {', '.join(known)}, got {value!r}")
    if quant is not None and form != "gguf":
        raise SettingError(
            "quant", f"only gguf is quantised, not {form}: leave it out, or export as gguf"
        )
    if quant is not None and dtype is not None:
        raise SettingError("dtype", f"{dtype} and quant={quant} exclude each other: give one")


def write_form(
    source: Source,
    folder: Path,
    form: str,
    dtype: str | None,
    quant: str | None,
    licence: str | None,
) -> Exported:
    """Write the files of a format, without the card."""
    if form != "gguf":
        return FORMATS[form](source, folder, dtype)
    about = {"name": source.name}
    known = licence or gather(source).base_licence
    if known not in (UNKNOWN, "not applicable"):
        about["license"] = known
    return gguf(source, folder, dtype, quant, about)


def kind_of(source: Source, form: str, folder: Path) -> str:
    """Return how an export is loaded: a key of the card's recipes."""
    if form == "gguf":
        return "gguf"
    if form == "pyreft":
        return form
    if source.kind != "model" and form != "merged":
        return source.kind
    return "classifier" if holds_classifier(folder) else "model"


def write_record(folder: Path, form: str, dtype: str) -> None:
    """Write the record of an export's files."""
    files = {p.relative_to(folder).as_posix(): sha256(p) for p in _files(folder)}
    record = {"format": form, "dtype": dtype, "versions": versions(), "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def rename_base(folder: Path, base: str) -> None:
    """Make an exported adapter name its base by `base`, instead of a folder of this machine."""
    for name in ("adapter_config.json", "reft_config.json"):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text())
            config["base_model_name_or_path"] = base
            (folder / name).write_text(json.dumps(config, indent=2) + "\n")


def merge(
    adapters: Sequence[str],
    output: Path,
    weights: Sequence[float] | None = None,
    method: Method = "linear",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    into_base: bool = False,
    dtype: str | None = None,
    say: Say = print,
) -> Path:
    """Merge LoRA adapters of one base into a new adapter folder, or into the base itself.

    Without weights, each has 1 / n. The result is loaded beside its base as a probe. Raises
    SettingError or ValueError, and leaves nothing then."""
    check_form("merged", dtype, None)
    if dtype is not None and not into_base:
        raise SettingError(
            "dtype", "only a model is cast (into_base); a merged adapter is in f32: leave it out"
        )
    check_new(output)
    sources = [find_source(name) for name in adapters]
    even = [1 / max(1, len(adapters))] * len(adapters)
    folders = [str(source.folder) for source in sources]
    config, tensors, error = combine(folders, weights or even, method, rank, density, seed)
    with new_folder(output) as folder:
        place = folder / "adapter" if into_base else folder
        place.mkdir(exist_ok=True)
        write_adapter(place, config, tensors)
        load_tokenizer(folders[0]).save_pretrained(place)
        stops = Path(folders[0]) / "generation_config.json"
        if stops.is_file():
            (place / stops.name).write_bytes(stops.read_bytes())
        stored = share_quantization(folders, place)
        new = Source(place, "adapter", None, output.name)
        parts = ", ".join(f"{w:g} x {s.name}" for w, s in zip(weights or even, sources))
        notes = [f"Merged adapters ({method}): {parts}. Rank {config['r']}; of a layer's matrix, "]
        notes[0] += f"at most {error:.2%} is left out."
        if stored and not into_base:
            notes.append(stored)
        result = Exported("f32", notes)
        try:
            probe = merge_adapter(str(place))
        except ValueError as error:  # of the folder that is no longer there
            raise ValueError(str(error).replace(str(place), f"merged, {output}")) from error
        facts = gather_all(sources)
        notes.append(
            f"Loaded beside {facts.base}; merged into it, logits differ by {probe.difference:.2g} "
            "on a probe."
        )
        if into_base:
            result = merged(new, folder, dtype)
            result.notes = notes = notes + (result.notes[1:] or [stored] * bool(stored))
            shutil.rmtree(place)
        kind = "model" if into_base else "adapter"
        write_card(folder, model_card(output.name, facts, result, kind, None))
        write_record(folder, "merged" if into_base else "peft", result.dtype)
    for note in notes:
        say(note)
    say(f"{output}")
    return output


def share_quantization(adapters: Sequence[str], folder: Path) -> str:
    """Record beside a new adapter how the base of its parts was stored, if it was in one way.

    Return what to know about it; empty if no part was trained on quantised weights."""
    records = [saved_quantization(adapter) for adapter in adapters]
    if records[0] is not None and all(record == records[0] for record in records):
        (folder / QUANTIZATION_FILE).write_text(json.dumps(records[0]))
        kind = records[0]["type"]
        return f"Trained on a base in {kind}: posttrain reads it on one in {kind} (quantization)."
    kinds = [str(record["type"]) if record else "whole" for record in records]
    if set(kinds) == {"whole"}:
        return ""
    return (
        f"The adapters were trained on bases stored otherwise ({', '.join(kinds)}) and fit none "
        "exactly: the result is read on the whole weights, unless model.quantization names "
        "another form; evaluate it (posttrain eval)."
    )


def push(
    name: str,
    repo: str,
    form: str | None = None,
    dry_run: bool = False,
    public: bool = False,
    base: str | None = None,
    licence: str | None = None,
    api: Any = None,
    say: Say = print,
) -> str | None:
    """Upload an export, or the export of a model, to the hub; return its address.

    Private unless `public`. The token is HF_TOKEN of the environment. With `dry_run`, the files and
    the card are shown and nothing is sent. Raises SettingError for a name that is none and for a
    format, base or licence of what is an export already, and ValueError without a token, for a
    damaged export, and for whatever the hub refuses."""
    check_repo(repo)
    if not dry_run:
        token()  # so that its lack is known before anything is written
    with tempfile.TemporaryDirectory(prefix="posttrain-push-") as temporary:
        folder = Path(name)
        if (folder / RECORD).is_file():
            given = {"format": form, "base_model": base, "license": licence}
            for field, value in given.items():
                if value is not None:
                    reason = f"{name} is an export already, whose files and card are sent as they"
                    raise SettingError(field, f"{reason} are: leave it out, or export it again")
            check_record(folder)
        else:
            folder = Path(temporary) / repo.split("/")[-1]
            form, quiet = form or "safetensors", lambda line: None
            export(name, form, folder, base=base, licence=licence, say=quiet, title=repo)
        for path in _files(folder):
            say(f"{path.stat().st_size:>14,}  {path.relative_to(folder).as_posix()}")
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        if folder.name != repo and f'"{folder.name}"' in card:
            say(f"note: its README.md loads the model as {folder.name}: edit it to {repo}")
        if dry_run:
            say(card)
            say(f"nothing was sent; {repo} would be {'public' if public else 'private'}")
            return None
        address = upload(folder, repo, public, api)
    say(address)
    return address


def check_record(folder: Path) -> None:
    """Raise ValueError if the files of an export are not those that were written."""
    recorded = json.loads((folder / RECORD).read_text())["files"]
    for name, digest in recorded.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{folder} is damaged: {name} is missing; export the model again")
        if name != "README.md" and sha256(file) != digest:
            raise ValueError(f"{folder} is damaged: {name} has changed; export the model again")
    strange = [p for p in _files(folder) if p.relative_to(folder).as_posix() not in recorded]
    strange = [p for p in strange if p.name != RECORD]
    if strange:
        where = os.path.relpath(strange[0], folder)
        raise ValueError(f"{folder} holds {where}, which is no part of the export: take it away")
