"""The labels of a classification: the set of a run, those of a row, and the tokens they become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain.data.rows import Row

if TYPE_CHECKING:
    from posttrain.data.render import Renderer


@dataclass(frozen=True)
class LabelSet:
    """The labels of a run in their order, and how they are scored."""

    names: list[str]
    multi_label: bool
    """A row has any number of labels, not exactly one."""
    as_tokens: bool = False
    """Scored by the language model's logits of the labels' words, not by a head."""
    words: dict[str, str] = field(default_factory=dict)
    """The text of a label that is not its name; read with `as_tokens`."""


def check_known(given: list[str], labels: LabelSet, where: str) -> None:
    for label in given:
        if label not in labels.names:
            raise ValueError(
                f"{where}: the label {label!r} is none of {', '.join(labels.names)} "
                "(trainer.labels)"
            )


def asked(row: Row) -> Row:
    """The row with what is judged in `prompt` or `messages`."""
    for column in ("prompt", "text"):  # where a tokenizer puts a token first, no prompt is empty
        if isinstance(row.get(column), str) and not row[column].strip():
            raise ValueError(f"{column} is blank: take the row out")
    if "prompt" in row or "messages" in row:
        return row
    if "text" not in row:
        raise ValueError(
            f"expected the columns prompt+label, text+label or messages+label; found "
            f"{', '.join(row)} (map them with data.columns)"
        )
    if not isinstance(row["text"], str):
        raise ValueError(f"text must be a text; found {str(row['text'])[:60]!r}")
    return {"prompt": row["text"]}


def labels_of(row: Row, multi_label: bool) -> list[str]:
    """The labels of a row as texts: one of them, or any number."""
    if row.get("label") is None:
        raise ValueError(
            f"no label; found the columns {', '.join(row)} (map them with data.columns)"
        )
    given = row["label"]
    if multi_label != isinstance(given, list):
        raise ValueError(
            f"label must be {'a list' if multi_label else 'one label'} with trainer.multi_label="
            f"{str(multi_label).lower()}; found {str(given)[:60]!r}"
            + (" (.csv and .tsv hold no lists: write .jsonl)" if multi_label else "")
        )
    labels = given if isinstance(given, list) else [given]
    for label in labels:
        if not isinstance(label, (str, int)) or not str(label).strip():
            raise ValueError(
                f"a label must be a text that is not blank, a whole number or a boolean; found "
                f"{label!r}"
            )
    return [str(label) for label in labels]


def label_record(labels: LabelSet, renderer: Renderer) -> dict[str, Any]:
    """Return what is saved beside the model: names, multi_label and, if the labels' tokens are
    scored, those tokens and what comes before them."""
    record: dict[str, Any] = {"labels": labels.names, "multi_label": labels.multi_label}
    if labels.as_tokens:
        record["before"], record["tokens"] = label_tokens(labels, renderer)
    return record


def label_tokens(labels: LabelSet, renderer: Renderer) -> tuple[list[int], list[int]]:
    """The tokens that all labels' words begin with (a mark of a word's beginning, in many
    vocabularies), which the prompt is given too, and the next one of each label. Raises ValueError
    where two labels do not differ there."""
    words = [labels.words.get(label, label) for label in labels.names]
    ids = [renderer.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    shared = 0
    while all(len(word) > shared + 1 for word in ids) and len({word[shared] for word in ids}) == 1:
        shared += 1
    tokens: dict[int, str] = {}
    for label, word, found in zip(labels.names, words, ids):
        if not found:
            raise ValueError(f"trainer.label_words: the tokenizer makes no token of {word!r}")
        if found[shared] in tokens:
            names = renderer.tokenizer.convert_ids_to_tokens
            raise ValueError(
                f"the labels {tokens[found[shared]]!r} and {label!r} begin with the same token "
                f"{names(found[shared])!r}: give other words in trainer.label_words, or use "
                f"trainer.mode: head (tokens: {', '.join(' '.join(names(word)) for word in ids)})"
            )
        tokens[found[shared]] = label
    return ids[0][:shared], list(tokens)
