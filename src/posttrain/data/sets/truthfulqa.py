"""TruthfulQA, multiple choice (Lin et al. 2022, arXiv 2109.07958; Apache-2.0): misconceptions."""

from __future__ import annotations

from typing import Any

from posttrain.data.files import find_file, read_file, read_hub
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, numbered

HUB = "truthfulqa/truthful_qa"
ORIGIN = Origin(
    licence="Apache-2.0",
    page="https://github.com/sylinrl/TruthfulQA",
    rows={"test": 790},
    uses=("evaluation",),
    urls=("https://raw.githubusercontent.com/sylinrl/TruthfulQA/main/data/mc_task.json",),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, choices, mc1_labels and mc2_labels.

    A label is 1 for a true choice, 0 for a false one, None for one that is not part of that task.
    `path` is mc_task.json or its folder; without it the rows are read from the hub. The only split
    is test, for evaluation. The file has empty answers (in 22 questions of the 2025 release), whose
    likelihood cannot be computed: they are left out.
    """
    if split != "test":
        raise ValueError(f"truthfulqa has only the split test, not {split!r}")
    if path is None:
        located_rows = numbered(read_hub(HUB, "validation", "multiple_choice"), f"{HUB} validation")
    else:
        file = find_file(path, ("mc_task.json",))
        located_rows = numbered(read_file(file), file)
    rows = []
    for where, row in located_rows:
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise ValueError(f"{where}: expected a string question; the row has {', '.join(row)}")
        mc1 = _labels(row.get("mc1_targets"), f"{where}: mc1_targets")
        mc2 = _labels(row.get("mc2_targets"), f"{where}: mc2_targets")
        if sum(mc1.values()) != 1:
            raise ValueError(f"{where}: mc1_targets must have exactly one true answer")
        choices = list({**mc1, **mc2})
        rows.append(
            {
                "prompt": f"Q: {row['question']}\nA:",
                "choices": choices,
                "mc1_labels": [mc1.get(choice) for choice in choices],
                "mc2_labels": [mc2.get(choice) for choice in choices],
            }
        )
    return rows


def _labels(value: Any, where: str) -> dict[str, int]:
    """Return answer -> 1 or 0; the hub has them as two lists, choices and labels."""
    pairs = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, dict) and set(value) == {"choices", "labels"}:
        lists = [part if isinstance(part, list) else [] for part in value.values()]
        pairs = list(zip(value["choices"], value["labels"])) if all(lists) else []
    if not all(isinstance(text, str) and n in (0, 1) for text, n in pairs):
        raise ValueError(f"{where} must map each answer to 1 (true) or 0 (false)")
    labels = {text: n for text, n in pairs if text.strip()}
    if set(labels.values()) != {0, 1}:
        raise ValueError(f"{where} must have at least one true answer and one false one")
    return labels
