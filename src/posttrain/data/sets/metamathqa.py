"""MetaMathQA (Yu et al. 2023, arXiv 2309.12284; MIT): GSM8K and MATH problems, rewritten."""

from __future__ import annotations

from posttrain.data.files import find_file, read_file, read_hub
from posttrain.data.origin import HubFiles, Origin
from posttrain.data.rows import Row, check_split, check_texts, numbered

HUB = {"train": "meta-math/MetaMathQA", "test": "meta-math/GSM8K_Backward"}
FILES = {"train": ("MetaMathQA-395K.json",), "test": ("GSM8K_Backward.jsonl",)}
MARK = "The answer is:"
ORIGIN = Origin(
    licence="MIT",
    page="https://huggingface.co/datasets/meta-math/MetaMathQA",
    rows={"train": 395_000, "test": 1_270},
    uses=("sft", "rl"),
    hub=tuple(HubFiles(HUB[split], files[0]) for split, files in FILES.items()),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, completion, answer and original_question (what it was made from).

    train: problems from the training sets of GSM8K and MATH, rephrased, or with a number to find
    from the answer. The answer is what follows "The answer is:"; without that the row has none.
    test: GSM8K-Backward, 1,270 problems with an unknown x to find. Its completions are a model's
    solutions, not all of them right; rows without one have no completion.

    `path` is MetaMathQA-395K.json, GSM8K_Backward.jsonl, or a folder with them; without it the rows
    are read from the hub. A file is recognised by its columns, not by the split.
    """
    check_split("metamathqa", split, tuple(FILES))
    if path is None:
        located_rows = numbered(read_hub(HUB[split], split), f"{HUB[split]} {split}")
    else:
        file = find_file(path, FILES[split])
        located_rows = numbered(read_file(file), file)
    return [_row(where, row) for where, row in located_rows]


def _row(where: str, row: Row) -> Row:
    if "question" in row:
        check_texts(row, ("question", "answer"), where)
        prompt, answer = row["question"], row["answer"]
        solutions = [name for name in ("output", "inv_question_pred_answer") if row.get(name)]
        check_texts(row, solutions, where, blank=True)
        completion = row[solutions[0]] if solutions else ""
    else:
        check_texts(row, ("query", "response"), where)
        prompt, completion = row["query"], row["response"]
        answer = completion.rpartition(MARK)[2].strip() if MARK in completion else ""
    rest = {
        "completion": completion.strip(),
        "answer": answer,
        "original_question": row.get("original_question"),
    }
    return {"prompt": prompt} | {name: value for name, value in rest.items() if value}
