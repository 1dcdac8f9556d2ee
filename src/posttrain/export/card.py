"""The model card of an export: README.md, written from the run's own records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.algorithms import ALGORITHMS
from posttrain.export.facts import UNKNOWN, Facts, Json
from posttrain.export.weights import Exported

LOADING = {
    "model": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")""",
    "classifier": """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")""",
    "adapter": """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "{name}")""",
    "reft": """import posttrain

print(posttrain.generate("{name}", "Hello")[0])""",
    "pyreft": """import pyreft
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base!r})
model = pyreft.ReftModel.load("{name}", base{arguments})""",
}
"""How to load each kind of folder, in Python."""
FROM_FILE = """llama-cli -m {name} -p "Hello"
posttrain generate {name} "Hello\""""
LIBRARIES = {"model": "transformers", "classifier": "transformers", "adapter": "peft"}


def model_card(title: str, facts: Facts, exported: Exported, form: str, licence: str | None) -> str:
    """Return a model card: front matter and sections, with `unknown` where nothing is recorded."""
    front: Json = {"tags": ["posttrain", *([facts.method] if facts.method in ALGORITHMS else [])]}
    if licence is not None:
        front["license"] = licence
    if "/" in facts.base and " " not in facts.base:
        front["base_model"] = facts.base
    if form != "gguf" and (library := LIBRARIES.get(form)):
        front["library_name"] = library
    names = [entry["name"] for entry in facts.data if entry["licence"] != UNKNOWN]
    if names:
        front["datasets"] = names
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {title}", ""]
    lines += _about(facts, exported, form, licence)
    lines += _data(facts)
    lines += _results(facts)
    lines += ["## Settings", ""]
    if facts.config:
        text = yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True).strip()
        lines += ["The run's resolved config, without the folders of its machine:", ""]
        lines += _fenced(text, "yaml")
    else:
        lines += ["Unknown: no record of a run of posttrain was found beside the model.", ""]
    lines += _loading(title, facts, form, exported)
    return "\n".join(lines)


def _about(facts: Facts, exported: Exported, form: str, licence: str | None) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in facts.versions.items())
    rows = [
        ("Base model", facts.base),
        ("Licence of the base model", facts.base_licence),
        ("Licence of this model", licence or f"{UNKNOWN}: not given at the export"),
        ("Method", facts.method),
        ("Step", str(facts.step) if facts.step is not None else UNKNOWN),
        ("Form", _form(form, exported)),
        ("Versions", versions or UNKNOWN),
        ("Trained on", facts.machine),
    ]
    return [*_table(("", ""), rows), *(f"{note}\n" for note in exported.notes)]


def _form(form: str, exported: Exported) -> str:
    names = {
        "model": "whole weights (safetensors)",
        "classifier": "whole weights of a sequence classifier (safetensors)",
        "adapter": "adapter of PEFT, which needs the base model",
        "reft": "edits of ReFT, which need the base model and posttrain",
        "pyreft": "edits of ReFT as pyreft stores them, which need the base model",
        "gguf": "GGUF",
    }
    return f"{names[form]}, {exported.dtype}"


def _data(facts: Facts) -> list[str]:
    if not facts.data:
        return ["## Data", "", "Unknown.", ""]
    head = ("data set", "split", "licence", "page", "rows kept", "trained tokens")
    rows = [
        (
            entry["name"],
            entry["split"],
            entry["licence"],
            entry["page"],
            _count(entry.get("kept")),
            _count(entry.get("trained_tokens")),
        )
        for entry in facts.data
    ]
    return ["## Data", "", *_table(head, rows)]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else UNKNOWN


def _results(facts: Facts) -> list[str]:
    lines = ["## Results", ""]
    evaluation = {k: v for k, v in facts.evaluation.items() if k != "step" and _is_number(v)}
    if evaluation:
        lines += [f"Evaluation during training, at step {facts.evaluation['step']}:", ""]
        lines += _table(("metric", "value"), [(k, f"{v:.6g}") for k, v in evaluation.items()])
    for task in facts.tasks:
        if task.get("checkpoint") is None:
            lines += ["Of this run; which checkpoint was evaluated is not recorded:", ""]
        rows = [
            (f"{task.get('name', UNKNOWN)}{part}", *_figures(figures))
            for part, figures in _parts(task)
        ]
        lines += _table(("task", "result", "95 % interval", "problems"), rows)
    shown = {k: v for k, v in facts.metrics.items() if k in ("loss", "reward", "kl", "accuracy")}
    shown = {k: v for k, v in shown.items() if _is_number(v)}
    if shown:
        lines += [f"Training metrics of step {facts.step}:", ""]
        lines += _table(("metric", "value"), [(k, f"{v:.6g}") for k, v in shown.items()])
    return lines if len(lines) > 2 else [*lines, "No evaluation is recorded.", ""]


def _parts(task: Json) -> list[tuple[str, Json]]:
    parts = [("", task)] if "accuracy" in task else []
    return parts + [(f" {name}", part) for name, part in (task.get("splits") or {}).items()]


def _figures(figures: Json) -> tuple[str, str, str]:
    value, interval = figures.get("accuracy"), figures.get("ci95")
    bounds = UNKNOWN
    if isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval)):
        bounds = f"{interval[0]:.4f} to {interval[1]:.4f}"
    elif _is_number(interval):
        bounds = f"± {interval:.4f}"
    result = f"{value:.4f}" if _is_number(value) else UNKNOWN
    return result, bounds, _count(figures.get("num_problems"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _loading(title: str, facts: Facts, form: str, exported: Exported) -> list[str]:
    lines = ["## Loading", ""]
    if form == "gguf":
        return lines + _fenced(
            FROM_FILE.format(name=f"{title}-{exported.dtype.upper()}.gguf"), "sh"
        )
    text = LOADING[form].format(name=title, base=facts.base, arguments=exported.arguments)
    return lines + _fenced(text, "python")


def _fenced(text: str, language: str) -> list[str]:
    """Return a code block, fenced by more backticks than the text has in a row."""
    longest = max(
        (len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0
    )
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text, fence, ""]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [head, ("---",) * len(head), *rows]
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells]
    return [*lines, ""]


def _cell(text: str) -> str:
    """Return text that stays within a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def write_card(folder: Path, text: str) -> None:
    """Write the card into the folder of an export."""
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")
