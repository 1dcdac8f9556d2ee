"""MATH (Hendrycks et al. 2021, arXiv 2103.03874; MIT): competition problems with solutions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from posttrain.common.errors import SettingError
from posttrain.data.files import read_file, read_hub
from posttrain.data.origin import HubFiles, Origin
from posttrain.data.rows import Row, numbered

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
HUB = {"train": "DigitalLearningGmbH/MATH-lighteval", "test": "HuggingFaceH4/MATH-500"}
ORIGIN = Origin(
    licence="MIT",
    page="https://github.com/hendrycks/math",
    rows={"train": 7_500, "test": 500},
    uses=("sft", "rl"),
    hub=(
        HubFiles(HUB["train"], "data/train-*.parquet", "data/"),
        HubFiles(HUB["test"], "test.jsonl"),
    ),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, completion, answer (LaTeX) and level (1 to 5).

    The prompt ends with an instruction to box the answer. Rows without a worked solution have no
    completion, those of unknown level no level. Two forms are read: problem, solution, answer and
    level, in which a missing answer is taken from the solution's last box; and verl's prompt,
    reward_model.ground_truth and extra_info.

    `path` is a file, or a folder whose files have the split as a word in their name. Without it the
    rows are read from the hub: for test MATH-500, the 500 of the 5,000 test problems that are
    commonly reported (Lightman et al. 2023, arXiv 2305.20050); for train the authors' 7,500
    problems with their solutions, in MATH-lighteval's copy, which has all subjects in one set.
    """
    if path is None:
        if split not in HUB:
            raise ValueError(f"math: unknown split {split!r}: choose one of {', '.join(HUB)}")
        located_rows = numbered(read_hub(HUB[split], split), f"{HUB[split]} {split}")
        return [_row(where, row) for where, row in located_rows]
    return [
        _row(where, row)
        for file in _files(Path(path), split)
        for where, row in numbered(read_file(file), file)
    ]


def _files(location: Path, split: str) -> list[Path]:
    if location.is_file():
        return [location]
    if not location.is_dir():
        raise SettingError("data.path", f"{location} does not exist")
    files = sorted(f for f in location.iterdir() if f.is_file())
    chosen = [f for f in files if split in re.split(r"[^a-z0-9]+", f.name.lower())]
    if not chosen:
        found = ", ".join(f.name for f in files) or "nothing"
        raise SettingError(
            "data.path", f"{location} has no file for split {split!r}; found {found}"
        )
    return chosen


def _row(where: str, row: Row) -> Row:
    verl = isinstance(row.get("reward_model"), dict)
    problem, solution, answer, level = _verl_form(row) if verl else _plain_form(row)
    if not isinstance(problem, str) or not isinstance(answer, str):
        raise ValueError(
            f"{where}: expected problem and answer (or a solution that boxes it), or prompt and "
            f"reward_model.ground_truth; the row has {', '.join(row)}"
        )
    made = {"prompt": problem, "answer": answer}
    if isinstance(solution, str):
        made["completion"] = solution
    digit = re.search(r"[1-5]", str(level))  # 4, or "Level 4"
    return made | ({"level": int(digit[0])} if digit else {})


def _plain_form(row: Row) -> tuple[Any, Any, Any, Any]:
    problem, solution, answer = row.get("problem"), row.get("solution"), row.get("answer")
    if isinstance(problem, str):
        problem = f"{problem} {INSTRUCTION}"
    if answer is None and isinstance(solution, str):
        answer = last_box(solution)
    return problem, solution, answer, row.get("level")


def _verl_form(row: Row) -> tuple[Any, Any, Any, Any]:
    """Return the fields of a row of verl's form, whose prompt includes the instruction."""
    prompt, extra = row.get("prompt"), row.get("extra_info") or {}
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        prompt = prompt[0].get("content")
    solutions = extra.get("teacher_cots") or [None]
    return prompt, solutions[0], row["reward_model"].get("ground_truth"), extra.get("level")


def last_box(solution: str) -> str | None:
    r"""Return the content of a solution's last \boxed{...} (or \fbox{...}, or \boxed 7)."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return None
    rest = re.sub(r"^\\(boxed|fbox)", "", solution[start:])
    if not rest.lstrip().startswith("{"):
        return rest.split("$")[0].strip()
    depth = 0
    for match in re.finditer(r"\\.|[{}]", rest, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return rest[rest.index("{") + 1 : match.start()]
    return None
