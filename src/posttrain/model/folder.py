"""Reading the folders that models are loaded from: models, adapters, classifiers, runs.

Every file name and format in such a folder is defined here; `save` writes them.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from posttrain.common.files import expanded
from posttrain.model.gguf.cache import gguf_folder, is_gguf
from posttrain.model.integrity import INDEX, check_tensors, read_json, refuse_quantised

if TYPE_CHECKING:
    from torch import Tensor

HEAD, SAVED_HEAD = "head.weight", "score.weight"
"""A head's name in the policy and in a transformers sequence classifier."""
ADAPTER_PREFIX = "base_model.model."
STEPS_FILE = "process_reward_model.json"
LABELS_FILE = "classification.json"
QUANTIZATION_FILE = "quantization.json"
CHECKPOINT_INFO = "checkpoint_info.json"
REFT_CONFIG, REFT_WEIGHTS = "reft_config.json", "reft_model.safetensors"


def is_adapter(name: str | Path) -> bool:
    """Whether a folder holds an adapter: one of PEFT, or the edits of ReFT."""
    return (Path(name) / "adapter_config.json").is_file() or is_reft(name)


def is_reft(name: str | Path) -> bool:
    """Whether a folder holds the edits of ReFT."""
    return (Path(name) / REFT_CONFIG).is_file()


def refuse_reft(name: str | Path, purpose: str) -> None:
    """Raise ValueError if a folder holds the edits of ReFT, which only posttrain runs."""
    if is_reft(name):
        raise ValueError(
            f"{name} holds edits of ReFT, which act at positions of the prompt and are no part of "
            f"the weights: they cannot be {purpose}"
        )


def adapter_config(name: str | Path) -> dict[str, Any]:
    """Return an adapter's settings; raise ValueError if it does not name its base model."""
    file = REFT_CONFIG if is_reft(name) else "adapter_config.json"
    config = read_json(Path(name) / file)
    if not config.get("base_model_name_or_path"):
        raise ValueError(f"{name}/{file} does not name its base model")
    revision = config.get("revision") or "main"
    if is_adapter(base := str(config["base_model_name_or_path"])):
        raise ValueError(
            f"model.name: {name} is an adapter of {base}, which is itself an adapter: merge that "
            "one into its base, and save the model under this name"
        )
    if revision != "main" and not Path(base).is_dir():
        raise ValueError(
            f"model.name: {name} is an adapter of {base} at the revision {revision}: download that "
            f"one, and name its folder as base_model_name_or_path in {name}/{file}"
        )
    return config


def base_model(name: str) -> str:
    """Return the base model of an adapter folder; for any other model, its own name.

    A GGUF file is the folder that it is expanded to.
    """
    base = str(adapter_config(name)["base_model_name_or_path"]) if is_adapter(name) else name
    return gguf_folder(base) if is_gguf(base) else base


def check_adapter_file(folder: Path) -> None:
    """Raise ValueError if an adapter folder has no weights in safetensors."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise ValueError(
            f"{folder} has no adapter_model.safetensors; pickled weights (.bin) can run code and "
            "are never loaded"
        )


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether a model's config.json is a sequence classifier's: a reward model or a classifier."""
    kinds = config.get("architectures") or []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def holds_classifier(folder: Path) -> bool:
    """Whether a folder holds a reward model or classifier, or an adapter of one.

    Such a folder has no output head, yet transformers loads it as a causal LM if heads are tied.
    """
    if is_adapter(folder):
        file = REFT_CONFIG if is_reft(folder) else "adapter_config.json"
        return bool(read_json(folder / file).get("task_type") == "SEQ_CLS")
    return is_classifier(read_json(folder / "config.json"))


def saved_head(folder: Path) -> Tensor | None:
    """Return the head [labels, width] of a reward model or classifier; None for other folders.

    Raises ValueError for a head in few bits, which is no frozen layer but trained."""
    from safetensors import safe_open  # imports torch

    quantised = refuse_quantised(str(folder), read_json(folder / "config.json"))

    keys = {
        "model.safetensors": SAVED_HEAD,
        "adapter_model.safetensors": ADAPTER_PREFIX + SAVED_HEAD,
        REFT_WEIGHTS: SAVED_HEAD,
    }
    if (shard := read_json(folder / INDEX).get("weight_map", {}).get(SAVED_HEAD)) is not None:
        keys[shard] = SAVED_HEAD  # of a large model
    for name, key in keys.items():
        if (folder / name).is_file():
            check_tensors(folder / name, quantised)
            with safe_open(folder / name, "pt") as file:
                head = file.get_tensor(key) if key in file.keys() else None  # noqa: SIM118
            if head is not None and not head.is_floating_point():
                raise ValueError(
                    f"model.name: {folder / name} holds {key} in few bits: save the model with its "
                    "head whole, as bitsandbytes does by llm_int8_skip_modules"
                )
            return head
    return None


def saved_separator(folder: Path) -> str | None:
    """Return the step separator of a process reward model; None for other folders."""
    return read_json(folder / STEPS_FILE).get("step_separator")


def saved_labels(folder: Path) -> dict[str, Any] | None:
    """Return what `save.save_labels` wrote, or the labels of another program's classifier.

    None for other folders.
    """
    if (folder / LABELS_FILE).is_file():
        return read_json(folder / LABELS_FILE)
    config = read_json(folder / "config.json")
    names = config.get("id2label") or {}
    if len(names) < 2 or not is_classifier(config):
        return None
    multi = config.get("problem_type") == "multi_label_classification"
    return {"labels": [names[k] for k in sorted(names, key=int)], "multi_label": multi}


def saved_quantization(folder: str | Path) -> dict[str, Any] | None:
    """Return how the weights below an adapter were stored in its training; None if unquantised."""
    file = Path(folder) / QUANTIZATION_FILE
    record = read_json(file)
    if file.is_file() and "type" not in record:
        raise ValueError(f"{file} is damaged: it names no type; copy it again")
    return record or None


def generation_stops(name: str | None) -> list[int]:
    """Return the stop tokens in the generation config of a folder's or hub's model.

    For an adapter without one, they are its base model's.
    """
    if name is None:
        return []
    folder = Path(name)
    if (file := folder / "generation_config.json").is_file():
        stops = read_json(file).get("eos_token_id")
    elif is_adapter(folder):
        return generation_stops(base_model(name))
    elif folder.is_dir():
        return []
    else:
        from transformers import GenerationConfig

        try:
            stops = GenerationConfig.from_pretrained(name).eos_token_id
        except OSError:  # the model has no generation config
            return []
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def checkpoints_in(run_dir: Path) -> list[Path]:
    """Return a run's finished checkpoints, oldest first."""
    numbered = [p for p in run_dir.glob("checkpoint-*") if p.name.rpartition("-")[2].isdecimal()]
    return sorted((p for p in numbered if (p / CHECKPOINT_INFO).is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def read_info(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's own description: step, hashes, versions, config, files."""
    return read_json(checkpoint / CHECKPOINT_INFO)


def best_or_newest(run_dir: Path) -> Path:
    """Return the checkpoint that represents a run: its best one, or its newest."""
    checkpoints = checkpoints_in(run_dir)
    if not checkpoints:
        raise ValueError(f"{run_dir} has no finished checkpoint")
    best = read_info(checkpoints[-1])["trainer"]["best_step"]
    return next((p for p in checkpoints if step_of(p) == best), checkpoints[-1])


def resolve_model_path(name: str) -> str:
    """Return the folder or hub name to load for `name`: for a run directory, its checkpoint.

    For a GGUF file it is the folder that it is expanded to. Raise ValueError for the name of runs
    without their date and time.
    """
    name = expanded(name)
    if is_gguf(name):
        return gguf_folder(name)
    path = Path(name)
    if path.is_dir() and (path / "metrics.jsonl").is_file():
        return str(best_or_newest(path))
    if "/" in name and not path.exists() and path.parent.is_dir():
        runs = sorted(run for run in path.parent.iterdir() if run.name.startswith(f"{path.name}_"))
        if runs:  # without asking the hub, which can take a minute
            raise ValueError(f"model.name: no folder {name}; did you mean {runs[-1]}?")
    return name


def trained_with(folder: str) -> tuple[Any, str | None, str | None]:
    """Return data.template, system_prompt and prompt_template of a checkpoint folder's run.

    For other folders they are auto, None and None.
    """
    section = _first_data(folder)
    return (
        section.get("template", "auto"),
        section.get("system_prompt"),
        section.get("prompt_template"),
    )


def trained_date(folder: str) -> datetime.date | None:
    """Return the date that the chat template wrote in the run of a checkpoint folder, if any."""
    return recorded_date({"data": _first_data(folder)})


def recorded_date(config: dict[str, Any]) -> datetime.date | None:
    """Return the data.date of a run's resolved config; None if its template writes none."""
    data = config.get("data")
    section = data[0] if isinstance(data, list) and data else data
    date = section.get("date") if isinstance(section, dict) else None
    return datetime.date.fromisoformat(str(date)) if date else None


def _first_data(folder: str) -> dict[str, Any]:
    """Return the first data section of a checkpoint folder's run; empty for other folders."""
    run = Path(folder).resolve().parent
    if not ((run / "config.yaml").is_file() and (run / "metrics.jsonl").is_file()):
        return {}
    config = yaml.safe_load((run / "config.yaml").read_text())
    data = config.get("data") if isinstance(config, dict) else None
    section = data[0] if isinstance(data, list) and data else data
    # other programs write files with these names
    return section if isinstance(section, dict) else {}


def not_found(name: str, adapter: str | None = None) -> str:
    """Return the message for a `model.name` that is not a model, or for the base of `adapter`."""
    path = Path(name)
    if adapter is not None and adapter != name:
        state = "holds no model" if path.is_dir() else "is not here"
        return (
            f"model.name: {adapter} is an adapter of {name}, which {state} (no such folder, and "
            "the model hub has no such model or cannot be reached): put the base there, or correct "
            f"base_model_name_or_path in {adapter}/adapter_config.json"
        )
    if path.is_dir():
        content = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        configs = [*path.glob("*/adapter_config.json"), *path.glob("*/config.json")]
        configs += path.glob("snapshots/*/config.json")
        hint = f"; did you mean {configs[0].parent}?" if configs else ""
        return (
            f"model.name: {name} is not a model folder (config.json + safetensors); "
            f"it holds {content}{hint}"
        )
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        return f"model.name: the folder {name} does not exist"
    return f"model.name: no folder {name}, and the model hub has no such model or cannot be reached"
