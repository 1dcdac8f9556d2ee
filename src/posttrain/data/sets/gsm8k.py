"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168; MIT): grade-school word problems."""

from __future__ import annotations

from pathlib import Path

from posttrain.common.errors import SettingError
from posttrain.data.files import read_hub, read_path
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_texts, numbered

HUB = "openai/gsm8k"
ORIGIN = Origin(
    licence="MIT",
    page="https://github.com/openai/grade-school-math",
    rows={"train": 7_473, "test": 1_319},
    uses=("sft", "rl"),
    urls=tuple(
        "https://raw.githubusercontent.com/openai/grade-school-math/master/"
        f"grade_school_math/data/{split}.jsonl"
        for split in ("train", "test")
    ),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, completion (with `<<3*4=12>>` annotations and `#### 12`), answer.

    `path` is a folder with train.jsonl and test.jsonl, or a file; without it the rows are read from
    the hub.
    """
    if path is not None and not Path(path).exists():
        raise SettingError("data.path", f"{path} does not exist")
    rows = read_hub(HUB, split, "main") if path is None else read_path(path, split)
    for where, row in numbered(rows, f"{path or HUB} ({split})"):
        check_texts(row, ("question", "answer"), where)
        if "####" not in row["answer"]:
            raise ValueError(
                f"{where}: column answer must end in '#### x', got {row['answer'][-40:]!r}; "
                "correct the row or remove it"
            )
    return [
        {
            "prompt": row["question"],
            "completion": row["answer"],
            "answer": str(row["answer"]).rpartition("####")[2].strip(),
        }
        for row in rows
    ]
