"""Labels of a classification: those of the run, those of a row, and the tokens they become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain.data.chat import read_by_template
from posttrain.data.encoding import encoded_after
from posttrain.data.rows import Row

if TYPE_CHECKING:
    from posttrain.data.render import Renderer


@dataclass(frozen=True)
class LabelSet:
    """The labels of a run in order, and how they are scored."""

    names: list[str]
    multi_label: bool
    """A row has any number of labels instead of exactly one."""
    as_tokens: bool = False
    """Scored by the language model's logits of the labels' words, not by a head."""
    words: dict[str, str] = field(default_factory=dict)
    """Label -> the text that is used instead of its name; read with `as_tokens`."""


def check_known(row_labels: list[str], labels: LabelSet, where: str) -> None:
    """Raise ValueError if one of a row's labels is not among those of the run."""
    for label in row_labels:
        if label not in labels.names:
            raise ValueError(
                f"{where}: unknown label {label!r}; expected one of {', '.join(labels.names)} "
                "(trainer.labels)"
            )


def asked(row: Row) -> Row:
    """Return the row with the text to classify in `prompt` or `messages`.

    Raise ValueError if there is none or it is blank.
    """
    for column in ("prompt", "text"):  # with a BOS token, the ids of a blank text are not empty
        if isinstance(row.get(column), str) and not row[column].strip():
            raise ValueError(f"{column} is blank: remove the row")
    if "prompt" in row or "messages" in row:
        return row
    if "text" not in row:
        raise ValueError(
            "expected the columns prompt+label, text+label or messages+label; got "
            f"{', '.join(row)} (map them with data.columns)"
        )
    if not isinstance(row["text"], str):
        raise ValueError(f"text must be a string; got {str(row['text'])[:60]!r}")
    return {"prompt": row["text"], **read_by_template(row)}


def labels_of(row: Row, multi_label: bool) -> list[str]:
    """Return the labels of a row as strings: exactly one, or with `multi_label` any number.

    Raise ValueError if they are missing or malformed.
    """
    if row.get("label") is None:
        raise ValueError(
            f"no label; the row has {', '.join(row)} (map the columns with data.columns)"
        )
    value = row["label"]
    if multi_label != isinstance(value, list):
        raise ValueError(
            f"label must be {'a list' if multi_label else 'one label'} with trainer.multi_label="
            f"{str(multi_label).lower()}; got {str(value)[:60]!r}"
            + (" (.csv and .tsv cannot hold lists: use .jsonl)" if multi_label else "")
        )
    labels = value if isinstance(value, list) else [value]
    for label in labels:
        if not isinstance(label, (str, int)) or not str(label).strip():
            raise ValueError(
                f"a label must be a non-blank string, an integer or a boolean; got {label!r}"
            )
    return [str(label) for label in labels]


def label_record(labels: LabelSet, renderer: Renderer) -> dict[str, Any]:
    """Return what is saved with the model to read its labels.

    `labels` and `multi_label`; if tokens are scored, also `before` and `tokens` of label_tokens().
    """
    record: dict[str, Any] = {"labels": labels.names, "multi_label": labels.multi_label}
    if labels.as_tokens:
        record["before"], record["tokens"] = label_tokens(labels, renderer)
    return record


def label_tokens(labels: LabelSet, renderer: Renderer) -> tuple[list[int], list[int]]:
    """Return the tokens that all labels' words begin with, and the next token of each label.

    The first ones (in many vocabularies, a mark of a word's beginning) are appended to the prompt;
    the others are scored. Raise ValueError if two labels do not differ in them.
    """
    words = [labels.words.get(label, label) for label in labels.names]
    before = _before_answers(renderer)
    ids = [encoded_after(renderer.tokenizer, word, before) for word in words]
    shared = 0
    while all(len(word) > shared + 1 for word in ids) and len({word[shared] for word in ids}) == 1:
        shared += 1
    tokens: dict[int, str] = {}
    for label, word, word_ids in zip(labels.names, words, ids):
        if not word_ids:
            raise ValueError(f"trainer.label_words: the tokenizer makes no token of {word!r}")
        if word_ids[shared] in tokens:
            as_text = renderer.tokenizer.convert_ids_to_tokens
            raise ValueError(
                f"the labels {tokens[word_ids[shared]]!r} and {label!r} begin with the same token "
                f"{as_text(word_ids[shared])!r}: choose other words in trainer.label_words, or use "
                f"trainer.mode: head (tokens: {', '.join(' '.join(as_text(word)) for word in ids)})"
            )
        tokens[word_ids[shared]] = label
    return ids[0][:shared], list(tokens)


def _before_answers(renderer: Renderer) -> list[int]:
    """Return the ids before an answer in a chat; none in plain text, where words follow spaces."""
    if not renderer.chat:
        return []
    try:
        return renderer.prompt_ids({"prompt": "x"})
    except ValueError:  # the template asks for more than a question; rows will give it
        return []
