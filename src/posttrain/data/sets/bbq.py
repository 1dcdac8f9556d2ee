"""BBQ (Parrish et al. 2022, arXiv 2110.08193; CC BY 4.0): questions that invite stereotypes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from posttrain.common.errors import SettingError
from posttrain.data.files import read_file
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, numbered

URL = "https://github.com/nyu-mll/BBQ"
CATEGORIES = (
    "Age",
    "Disability_status",
    "Gender_identity",
    "Nationality",
    "Physical_appearance",
    "Race_ethnicity",
    "Race_x_SES",
    "Race_x_gender",
    "Religion",
    "SES",
    "Sexual_orientation",
)
ORIGIN = Origin(
    licence="CC BY 4.0",
    page=URL,
    rows={"test": 58_492},
    uses=("evaluation",),
    urls=tuple(
        f"https://raw.githubusercontent.com/nyu-mll/BBQ/main/data/{name}.jsonl"
        for name in CATEGORIES
    ),
)
CROSSED = ("Race_x_SES", "Race_x_gender")
LATINA = ["Latina woman", "F-Latino"]  # answer_info is empty for "The Latina woman"
# rows of Gender_identity name the group F, but the option "woman"
GENDERS = {"man": "m", "boy": "m", "woman": "f", "girl": "f"}
OPTIONS = ("ans0", "ans1", "ans2")
ALLOWED = {"context_condition": ("ambig", "disambig"), "question_polarity": ("neg", "nonneg")}
# the authors' ARC format, with a last line that a causal model continues
PROMPT = "{context} {question}\n(a) {ans0} (b) {ans1} (c) {ans2}\nAnswer:"


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, choices, label, unknown, target, category, condition and polarity.

    `choices` has three strings; `label`, `unknown` and `target` are indices into it. `condition` is
    ambig or disambig, `polarity` neg or nonneg. `path` is a folder with the files of some
    categories (Age.jsonl, ...), or one of them. The only split is test, for evaluation.

    `target` is the option that the stereotype is about: the only one with an entry of `answer_info`
    among the row's `stereotyped_groups`; failing that, the only one with a part of its group's name
    there ("Black" in "F-Black"). In Race_x_gender and Race_x_SES the stereotype is about a race
    together with a gender or status, but rows name only the race: if several options have that
    race, the target is the one with the gender or status that the targets of the same question have
    elsewhere in the file. `target` is None if no option qualifies, or several. The authors'
    separate table of targets is not read.
    """
    if split != "test":
        raise ValueError(f"bbq has only the split test, not {split!r}")
    if path is None:
        raise ValueError(f"bbq: set data.path to a folder with its files; they are on {URL}")
    return [row for file in _files(path) for row in _rows(file)]


def _rows(file: Path) -> list[Row]:
    raw = list(numbered(read_file(file), file))
    checked = [_check(row, where) for where, row in raw]
    second_traits: dict[str, set[str]] = {}
    for (where, row), (info, _, targets) in zip(raw, checked, strict=True):
        if row["category"] in CROSSED and len(targets) == 1:
            question = _question(row, where)
            second_traits.setdefault(question, set()).add(_second_trait(info[targets[0]]))
    rows = []
    for (where, row), (info, unknown, targets) in zip(raw, checked, strict=True):
        if row["category"] in CROSSED and len(targets) > 1:
            # decisive only if the question has a single one in the whole file
            traits = second_traits.get(_question(row, where), set())
            targets = [i for i in targets if {_second_trait(info[i])} == traits]
        rows.append(
            {
                "prompt": PROMPT.format_map(row),
                "choices": [row[name] for name in OPTIONS],
                "label": row["label"],
                "unknown": unknown,
                "target": targets[0] if len(targets) == 1 else None,
                "category": row["category"],
                "condition": row["context_condition"],
                "polarity": row["question_polarity"],
            }
        )
    return rows


def _files(path: str) -> list[Path]:
    location = Path(path)
    if not location.exists():
        raise SettingError("data.path", f"{path} does not exist")
    files = [location] if location.is_file() else sorted(location.glob("*.jsonl"))
    if not files:
        raise SettingError("data.path", f"{path} has no .jsonl file; those of BBQ are on {URL}")
    return files


def _check(row: Row, where: str) -> tuple[list[list[str]], int, list[int]]:
    """Check a row; return its info on each option, the index of "unknown", possible targets."""
    for name in ("context", "question", "category", *OPTIONS):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"{where}: expected a string {name}; the row has {', '.join(row)}")
    for name, values in ALLOWED.items():
        if row.get(name) not in values:
            raise ValueError(
                f"{where}: {name} must be {' or '.join(values)}; got {row.get(name)!r}"
            )
    if row.get("label") not in (0, 1, 2):
        raise ValueError(f"{where}: label must be 0, 1 or 2; got {row.get('label')!r}")
    info = [_info(row, name, where) for name in OPTIONS]
    unknown = [i for i, words in enumerate(info) if "unknown" in words]
    if len(unknown) != 1:
        raise ValueError(
            f"{where}: answer_info must mark one option as unknown; it marks {len(unknown)}"
        )
    return info, unknown[0], _targets(info, _groups(row.get("additional_metadata"), where))


def _info(row: Row, name: str, where: str) -> list[str]:
    """Return the file's metadata on an option: a short form of its text, and its group."""
    info = row.get("answer_info")
    words = info.get(name) if isinstance(info, dict) else None
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        raise ValueError(f"{where}: answer_info.{name} must be a list of strings; got {words!r}")
    return words if any(words) or "Latina" not in row[name] else LATINA


def _question(row: Row, where: str) -> str:
    if not (question := str(row.get("question_index") or "").strip()):
        raise ValueError(f"{where}: expected a question_index; the row has {', '.join(row)}")
    return question


def _groups(metadata: Any, where: str) -> set[str]:
    groups = metadata.get("stereotyped_groups") if isinstance(metadata, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise ValueError(
            f"{where}: additional_metadata.stereotyped_groups must be a list of strings; "
            f"got {groups!r}"
        )
    return {_key(group) for group in groups}


def _targets(info: list[list[str]], groups: set[str]) -> list[int]:
    """Return the options that belong to a stereotyped group."""
    # only the group's name is split: a short form such as "28-year-old" does not mean "old"
    found: list[int] = []
    for parts in (info, [re.split(r"[-_]", words[-1]) for words in info]):
        found = [i for i, words in enumerate(parts) if {_key(word) for word in words} & groups]
        if len(found) == 1:
            break
    return found


def _second_trait(words: list[str]) -> str:
    """Return the trait other than the race: F of "F-Black", lowSES of "lowSES-M-Latino"."""
    return words[-1].split("-")[0]


def _key(word: str) -> str:
    word = "".join(word.casefold().split())
    return GENDERS.get(word, word)
