"""LIAR-PLUS (Alhindi et al. 2018, W18-5513; CC0): LIAR's statements with justifications."""

from __future__ import annotations

from posttrain.data.files import find_file, read_file
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_split, check_texts, numbered
from posttrain.data.sets.liar import WORDS

FILES = {"train": ("train2.jsonl",), "validation": ("val2.jsonl",), "test": ("test2.jsonl",)}
PROMPT = "Explain in a few sentences why this claim was judged {label}.\nClaim: {claim}"
ORIGIN = Origin(
    licence="CC0 1.0",
    page="https://github.com/Tariq60/LIAR-PLUS",
    rows={"train": None, "validation": 1_284, "test": 1_283},
    uses=("sft",),
    urls=tuple(
        f"https://raw.githubusercontent.com/Tariq60/LIAR-PLUS/master/dataset/jsonl/{files[0]}"
        for files in FILES.values()
    ),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, completion (the justification), claim, label, speaker and state.

    The prompt has the claim and its verdict, the label in words. Rows without a justification are
    left out. `path` is a folder with train2.jsonl, val2.jsonl and test2.jsonl, or one of them. What
    these files call party is the state. Some of their texts still have the quoting of a CSV file,
    which is removed.
    """
    check_split("liar_plus", split, tuple(FILES))
    if path is None:
        raise ValueError(
            "liar_plus: set data.path to a folder with train2.jsonl, val2.jsonl and test2.jsonl; "
            "`posttrain data download liar_plus` fetches them"
        )
    file = find_file(path, FILES[split])
    rows = []
    for where, row in numbered(read_file(file), file):
        check_texts(row, ("claim", "label"), where)
        if row["label"] not in WORDS:
            raise ValueError(
                f"{where}: column label must be one of {', '.join(WORDS)}; got "
                f"{row['label'][:40]!r}"
            )
        if "justification" not in row or not isinstance(row["justification"] or "", str):
            raise ValueError(
                f"{where}: column justification must be a string; the row has {', '.join(row)}"
            )
        justification = unquoted(row["justification"] or "")
        if not justification:
            continue
        label, claim = WORDS[row["label"]], unquoted(row["claim"])
        rows.append(
            {
                "prompt": PROMPT.format(label=label, claim=claim),
                "completion": justification,
                "claim": claim,
                "label": label,
                "speaker": row.get("originator"),
                "state": row.get("party"),
            }
        )
    return rows


def unquoted(text: str) -> str:
    """Return the text that CSV writes as "He said ""no"".".

    If no mark is doubled, the outer ones may be the speaker's own and are kept.
    """
    text = text.strip()
    inner = text[1:-1]
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '""' in inner
    if not quoted or '"' in inner.replace('""', ""):
        return text
    return inner.replace('""', '"').strip()
