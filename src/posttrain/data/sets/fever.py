"""FEVER (Thorne et al. 2018, arXiv 1803.05355; CC BY-SA 3.0): claims to check against Wikipedia."""

from __future__ import annotations

import hashlib
from pathlib import Path

from posttrain.data.files import find_file, read_file
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_texts, numbered

LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
FILES = {
    "train": ("train.jsonl",),
    "test": ("paper_test.jsonl", "shared_task_dev.jsonl", "paper_dev.jsonl"),
}
LABELLED = ("train.jsonl", "shared_task_dev.jsonl", "paper_dev.jsonl", "paper_test.jsonl")
PROMPT = (
    "Does Wikipedia support this claim, refute it, or say too little to decide? "
    f"Answer with one of {', '.join(LABELS)}.\nClaim: {{claim}}"
)
ORIGIN = Origin(
    licence="CC BY-SA 3.0",
    page="https://fever.ai/dataset/fever.html",
    rows={"train": 145_449, "test": 9_999},
    uses=("sft", "rl"),
    urls=tuple(
        f"https://fever.ai/download/fever/{name}.jsonl"
        for name in ("train", "paper_dev", "paper_test")
    ),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, completion (the label) and label, for the splits train and test.

    `path` is a folder with the official files: train is train.jsonl; test is paper_test,
    shared_task_dev or paper_dev, the first that exists. A single file, or a folder with only one of
    them, is split instead: a tenth of the claims, chosen by a hash of their text, is the test
    split.

    The evidence is left out: it refers to sentences of Wikipedia that the files do not contain.
    Some claims occur twice, a few of them with two labels; both rows are kept.
    """
    if split not in FILES:
        raise ValueError(f"fever: unknown split {split!r}: choose one of {', '.join(FILES)}")
    if path is None:
        raise ValueError(
            f"fever: set data.path to a folder with {', '.join(LABELLED)}, or to one of them; "
            "they are on https://fever.ai/dataset/fever.html"
        )
    present = [name for name in LABELLED if (Path(path) / name).is_file()]
    must_split = Path(path).is_file() or len(present) == 1
    file = find_file(path, LABELLED if must_split else FILES[split])
    rows = []
    for where, row in numbered(read_file(file), file):
        check_texts(row, ("claim", "label"), where)
        claim, label = row["claim"], row["label"]
        if label not in LABELS:
            raise ValueError(
                f"{where}: column label must be one of {', '.join(LABELS)}; got {label[:40]!r}"
            )
        if not must_split or side(claim) == split:
            prompt = PROMPT.format(claim=claim.strip())
            rows.append({"prompt": prompt, "completion": label, "label": label})
    return rows


def side(claim: str) -> str:
    """Return the split of a claim, by a hash that ignores case and whitespace."""
    text = " ".join(claim.casefold().split())
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % 10 == 0 else "train"
