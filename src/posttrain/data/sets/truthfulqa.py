"""TruthfulQA (Lin et al. 2022, arXiv 2109.07958; Apache-2.0), multiple choice: popular errors."""

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
    """Rows prompt, choices, mc1_labels and mc2_labels: of each choice 1 (true), 0 (false), or None
    where it does not belong to that task.

    `path` is mc_task.json or its folder; without it the hub is asked. There is a test split only:
    this is for evaluation. The file has empty answers (22 questions of the release of 2025), which
    a model can not be asked about: they are left out.
    """
    if split != "test":
        raise ValueError(f"truthfulqa has the split test only, not {split!r}")
    if path is None:
        numbers = numbered(read_hub(HUB, "validation", "multiple_choice"), f"{HUB} validation")
    else:
        file = find_file(path, ("mc_task.json",))
        numbers = numbered(read_file(file), file)
    rows = []
    for where, row in numbers:
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise ValueError(f"{where}: expected a text question; found columns {', '.join(row)}")
        mc1 = _labels(row.get("mc1_targets"), f"{where}: mc1_targets")
        mc2 = _labels(row.get("mc2_targets"), f"{where}: mc2_targets")
        if sum(mc1.values()) != 1:
            raise ValueError(f"{where}: mc1_targets must hold one true answer alone")
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
    """Answers with 1 or 0. The hub has them as two lists, choices and labels."""
    pairs = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, dict) and set(value) == {"choices", "labels"}:
        lists = [part if isinstance(part, list) else [] for part in value.values()]
        pairs = list(zip(value["choices"], value["labels"])) if all(lists) else []
    if not all(isinstance(text, str) and n in (0, 1) for text, n in pairs):
        raise ValueError(f"{where} must map each answer to 1 (true) or 0 (false)")
    labels = {text: n for text, n in pairs if text.strip()}
    if set(labels.values()) != {0, 1}:
        raise ValueError(f"{where} must hold a true answer and a false one at least")
    return labels
