"""What a run's own files say of a model, for its card; what they do not say is unknown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain.data.origin import origin_of
from posttrain.data.sets import DATASETS
from posttrain.export.source import Source
from posttrain.model.folder import CHECKPOINT_INFO, read_info, step_of
from posttrain.model.gguf.cache import licence_in, origin
from posttrain.tracking.report import read_config, read_json, read_metrics, task_results

UNKNOWN = "unknown"
FOLDER_CARD = "README.md"
LOCAL = re.compile(r"([a-z0-9+]+:/{2,}(?=/)|file:|/|~|\.{1,2}/)")
"""The beginning of a path on this machine, with or without a scheme and no host."""
WORDS = ("system_prompt", "prompt_template")
"""Settings that are no paths, though a prompt may begin as one does, as /no_think."""
Json = dict[str, Any]


@dataclass
class Facts:
    """What is known of an exported model."""

    base: str = UNKNOWN
    base_licence: str = UNKNOWN
    method: str = UNKNOWN
    step: int | None = None
    config: Json = field(default_factory=dict)
    """The run's resolved config, without the folders of this machine."""
    data: list[Json] = field(default_factory=list)
    """name, licence, page, and the counts that the run recorded, of each data set."""
    metrics: Json = field(default_factory=dict)
    """Training metrics of the checkpoint's step."""
    evaluation: Json = field(default_factory=dict)
    """Metrics of the last evaluation up to the checkpoint's step, with its `step`."""
    tasks: list[Json] = field(default_factory=list)
    """Results of `posttrain eval` and of a pipeline in the run directory, with their intervals;
    `checkpoint` is None if the file does not say which checkpoint of the run was evaluated."""
    versions: Json = field(default_factory=dict)
    machine: str = UNKNOWN


def gather(source: Source, base: str | None = None) -> Facts:
    """Return what is known of a model; `base` is the name to give for its base model."""
    facts = Facts()
    info = read_info(source.folder) if (source.folder / CHECKPOINT_INFO).is_file() else {}
    config = info.get("config") or {}
    start = source.base
    if source.run is not None:
        config = read_config(source.run / "config.yaml") or config
    model = config.get("model") or {}
    start = start or model.get("name") or str(source.folder)
    start = origin(str(start)) or start
    if start != str(source.folder):
        facts.base_licence = licence_of(str(start))
        facts.base = base or public_name(str(start))
    elif model.get("scratch"):
        facts.base, facts.base_licence = "none: trained from random weights", "not applicable"
    if base is not None:
        facts.base = base
    facts.method = str((config.get("trainer") or {}).get("type") or UNKNOWN)
    facts.config = without_folders(config)
    facts.versions = info.get("versions") or {}
    facts.data = data_of(config, source.run)
    if source.run is None:
        return facts
    run = read_json(source.run / "run.json", dict)
    facts.versions = run.get("versions") or facts.versions
    facts.machine = str(run.get("machine") or UNKNOWN)
    facts.step = step_of(source.folder)
    lines = read_metrics(
        source.run / "metrics.jsonl", lambda step, name: is_eval(name) or step == facts.step
    )
    facts.metrics = {k: v for k, v in lines.get(facts.step, {}).items() if not is_eval(k)}
    for step in sorted(lines):
        if step <= facts.step and any(map(is_eval, lines[step])):
            line = {k: v for k, v in lines[step].items() if is_eval(k)}
            facts.evaluation = line | {"step": step}
    facts.tasks = tasks_of(source.run, source.folder)
    return facts


def tasks_of(run: Path, checkpoint: Path) -> list[Json]:
    """Return the results in a run directory, except those of other models than the checkpoint.

    Those that name the run alone, or nothing, have None as their `checkpoint`."""
    named = read_json(run / "results.json", dict)
    stages = read_json(run / "evaluation.json", dict).get("stages") or []
    named_by_stage = [{"checkpoint": None} | stage for stage in stages]
    found = [s for s in named_by_stage if s["checkpoint"] in (None, checkpoint.name)]
    for task in task_results(run):
        model = Path(str(named[task["name"]].get("model") or run)).expanduser().resolve()
        if model.parts[-2:] == (run.name, checkpoint.name):
            found.append(task | {"checkpoint": checkpoint.name})
        elif model.name == run.name:
            found.append(task | {"checkpoint": None})
    return found


def gather_all(sources: Sequence[Source]) -> Facts:
    """Return what is known of the adapters that are merged into one."""
    each = [gather(source) for source in sources]
    return Facts(
        base=each[0].base,
        base_licence=each[0].base_licence,
        method=f"merged adapters ({', '.join(dict.fromkeys(facts.method for facts in each))})",
        config={s.name: facts.config for s, facts in zip(sources, each) if facts.config},
        data=[entry for facts in each for entry in facts.data],
        versions=each[0].versions,
    )


def is_eval(name: str) -> bool:
    """Whether a metric is one of an evaluation."""
    return name.startswith("eval")


def data_of(config: Json, run: Path | None) -> list[Json]:
    """Return each data section with its licence, by its origin, and what the run counted."""
    sections = config.get("data") or []
    sections = sections if isinstance(sections, list) else [sections]
    counted = read_json(run / "data.json", list) if run is not None else []
    found = []
    for number, section in enumerate(sections):
        name, path = section.get("name"), section.get("path")
        known = origin_of(name) if name in DATASETS else None
        entry: Json = {
            "name": name or public_name(str(path)) if name or path else UNKNOWN,
            "split": section.get("split") or UNKNOWN,
            "licence": UNKNOWN if known is None else known.licence,
            "page": UNKNOWN if known is None else known.page,
        }
        if number < len(counted):
            keys = ("rows", "kept", "dropped", "trained_tokens")
            entry |= {key: counted[number][key] for key in keys if key in counted[number]}
        found.append(entry)
    return found


def licence_of(model: str) -> str:
    """Return the licence that a model's folder or GGUF file records, else unknown."""
    folder = Path(model)
    if folder.is_file():
        return licence_in(folder) or UNKNOWN
    if (recorded := licence_in(folder)) is not None:
        return recorded
    card = folder / FOLDER_CARD
    if not card.is_file():
        return UNKNOWN
    front = re.match(r"---\n(.*?)\n---\n", card.read_text(encoding="utf-8", errors="replace"), re.S)
    try:
        record = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return UNKNOWN
    value = record.get("license") if isinstance(record, dict) else None
    return value if isinstance(value, str) and value else UNKNOWN


def public_name(name: str) -> str:
    """Return a name without the folders of this machine that lead to it."""
    local = name.startswith(".") or LOCAL.match(name) or Path(name).exists()
    return Path(name).name if local else name


def without_folders(value: Any) -> Any:
    """Return settings in which a path is its last part, since the rest is this machine's."""
    if isinstance(value, dict):
        return {
            without_folders(key): inner if key in WORDS else without_folders(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and "\n" not in value and LOCAL.match(value):
        return Path(value).name
    return value
