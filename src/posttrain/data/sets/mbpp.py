"""MBPP (Austin et al. 2021, arXiv 2108.07732; CC BY 4.0): short Python tasks with three tests."""

from __future__ import annotations

from posttrain.data.files import find_file, read_file, read_hub
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_texts, numbered

HUB = "google-research-datasets/mbpp"
# by task_id, as in section 2.1 of the paper; "prompt" has its examples for few-shot prompts
SPLITS = {
    "train": range(601, 975),
    "validation": range(511, 601),
    "test": range(11, 511),
    "prompt": range(1, 11),
}
ORIGIN = Origin(
    licence="CC BY 4.0",
    page="https://github.com/google-research/google-research/tree/master/mbpp",
    rows={split: len(ids) for split, ids in SPLITS.items()},
    uses=("sft", "rl"),
    urls=(
        "https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl",
    ),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, completion (the program), test_list, test_setup_code and task_id.

    The prompt is the task and the first of its tests, which shows the function's name and the form
    of its arguments. The paper shows all three tests, but then in reinforcement learning a program
    that returns the three expected values would be correct; so the other two stay hidden.

    `path` is mbpp.jsonl or its folder; without it the rows are read from the hub.
    """
    if split not in SPLITS:
        raise ValueError(f"mbpp: unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if path is None:
        located_rows = numbered(read_hub(HUB, split, "full"), f"{HUB} {split}")
    else:
        file = find_file(path, ("mbpp.jsonl",))
        located_rows = numbered(read_file(file), file)
    rows = []
    for where, row in located_rows:
        check_texts(row, ("text", "code"), where)
        tests = row.get("test_list")
        checks = {
            "task_id, a number": isinstance(row.get("task_id"), int),
            "test_list, a list of strings": isinstance(tests, list)
            and tests != []
            and all(isinstance(test, str) for test in tests),
            "test_setup_code, a string": isinstance(row.get("test_setup_code") or "", str),
        }
        for expected, is_valid in checks.items():
            if not is_valid:
                value = str(row.get(expected.partition(",")[0]))[:40]
                raise ValueError(f"{where}: expected {expected}; got {value!r}; correct the row")
        if row["task_id"] in SPLITS[split]:
            rows.append(_row(row))
    return rows


def _row(row: Row) -> Row:
    setup = _unix(row.get("test_setup_code") or "")
    tests = [_unix(test) for test in row["test_list"]]
    shown = f"{setup}\n{tests[0]}" if setup else tests[0]
    return {
        "prompt": f"{row['text']}\nYour code should pass tests like this one:\n{shown}",
        "completion": _unix(row["code"]),
        "test_list": tests,
        "test_setup_code": setup,
        "task_id": row["task_id"],
    }


def _unix(text: str) -> str:
    """Return the text without the carriage returns that the file has at line ends."""
    return text.replace("\r\n", "\n").rstrip("\r")
