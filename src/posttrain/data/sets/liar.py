"""LIAR (Wang 2017, arXiv 1705.00648; for research only): statements rated by PolitiFact."""

from __future__ import annotations

from posttrain.data.files import find_file, read_lines
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_split

WORDS = {
    "pants-fire": "pants on fire",
    "false": "false",
    "barely-true": "barely true",
    "half-true": "half true",
    "mostly-true": "mostly true",
    "true": "true",
}
"""The files' labels -> ours, from the least to the most true."""
LABELS = tuple(WORDS.values())
FILES = {"train": ("train.tsv",), "validation": ("valid.tsv",), "test": ("test.tsv",)}
COLUMNS = (
    "id",
    "label",
    "statement",
    "subject",
    "speaker",
    "job",
    "state",
    "party",
    "barely true",
    "false",
    "half true",
    "mostly true",
    "pants on fire",
    "context",
)
HISTORY = COLUMNS[8:13]
PROMPT = f"How true is this statement? Answer with one of: {', '.join(LABELS)}.\nStatement: "
ORIGIN = Origin(
    licence="for research only; the sources keep their copyright",
    page="https://www.cs.ucsb.edu/~william/data/liar_dataset.zip",
    rows={"train": 10_269, "validation": 1_284, "test": 1_283},
    uses=("sft", "rl"),
    urls=("https://www.cs.ucsb.edu/~william/data/liar_dataset.zip",),
)


def load(
    split: str,
    *,
    path: str | None = None,
    metadata: bool = False,
    history: bool = False,
    instruction: bool = True,
) -> list[Row]:
    """Return rows with prompt (with the statement), completion (the label in words) and label.

    `metadata` adds the speaker, job, state, party, subject and context to the prompt. `history`
    adds how many of the speaker's statements got each verdict. Beware: these counts include the
    statement itself and so give its label away; there is no count for "true". Without
    `instruction` the prompt has no question and ends with the statement, as a classifier needs it.

    `path` is a folder with train.tsv, valid.tsv and test.tsv, or one of them. Quotation marks in
    them are plain text: read as CSV with quoting, lines would be merged.
    """
    check_split("liar", split, tuple(FILES))
    if path is None:
        raise ValueError(
            "liar: set data.path to a folder with train.tsv, valid.tsv and test.tsv; "
            "`posttrain data download liar` fetches them"
        )
    file = find_file(path, FILES[split])
    rows = []
    for number, line in enumerate(read_lines(file), 1):
        where = f"{file}, line {number}"
        cells = line.split("\t")
        if len(cells) != len(COLUMNS):
            raise ValueError(
                f"{where}: expected {len(COLUMNS)} tab-separated columns, got {len(cells)}; "
                "data.path must be LIAR's own .tsv, without a header"
            )
        row = dict(zip(COLUMNS, cells))
        if row["label"] not in WORDS:
            raise ValueError(
                f"{where}: column 2 (label) must be one of {', '.join(WORDS)}; got "
                f"{row['label'][:40]!r}"
            )
        if not row["statement"].strip():
            raise ValueError(f"{where}: column 3 (statement) is blank; remove the line")
        label = WORDS[row["label"]]
        about = _about(row) if metadata else []
        counts = [_history(row, where)] if history else []
        statement = row["statement"].strip()
        if instruction:
            prompt = "\n".join([PROMPT + statement, *about, *counts])
        else:
            prompt = "\n".join([*about, *counts, statement])
        rows.append({"prompt": prompt, "completion": label, "label": label})
    return rows


def _about(row: Row) -> list[str]:
    names = ("speaker", "job", "state", "party", "subject", "context")
    return [f"{name.capitalize()}: {row[name].strip()}" for name in names if row[name].strip()]


def _history(row: Row, where: str) -> str:
    for number, name in enumerate(HISTORY, 9):
        if not row[name].isdecimal():
            raise ValueError(
                f"{where}: column {number} ({name}) must be a count, got {row[name][:40]!r}; "
                "set data.options.history to false"
            )
    counts = ", ".join(f"{int(row[name])} {name}" for name in HISTORY)
    return f"Verdicts on the speaker: {counts}"
