"""Texts with a label, or several: rows for `classification`.

prompt, text or messages   what is judged; messages end with the user's turn
label                      a text, whole number or boolean; with multi_label a list of such
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from posttrain.algorithms.classification import ClassificationConfig, balanced
from posttrain.batch import Example, Sequence
from posttrain.data.load import Row
from posttrain.data.prepare import LengthTable, OnOverlong, overlong
from posttrain.data.render import Renderer


def with_labels(
    config: ClassificationConfig, rows: Iterable[tuple[str, Row]], known: dict[str, Any] | None
) -> ClassificationConfig:
    """The config with the labels of the run and a weight for each, where it has none of its own.

    `rows` come with the words that an error about them begins with; `known` is what the start
    model's folder says (`reward_head.saved_labels`). Raises ValueError for rows without labels,
    fewer than two labels, or others than the start model's.
    """
    found: list[list[str]] = []
    places: list[str] = []
    for where, row in rows:
        try:
            asked(row)
            found.append(labels_of(row, config.multi_label))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        places.append(where)
    labels = (
        config.labels or (known or {}).get("labels") or sorted({x for row in found for x in row})
    )
    if len(labels) < 2:
        raise ValueError(f"data: {len(labels)} label(s) in {len(found)} rows; two are the least")
    if known is not None and known["labels"] != labels:
        raise ValueError(
            f"model.name: the model has the labels {', '.join(known['labels'])}, this run "
            f"{', '.join(labels)}: give trainer.labels in the model's order, or start from a model "
            "without labels"
        )
    if known is not None and known["multi_label"] != config.multi_label:
        raise ValueError(
            f"model.name: the model was trained with trainer.multi_label={known['multi_label']}"
        )
    config = type(config).model_validate(config.model_dump() | {"labels": list(labels)})
    for where, given in zip(places, found):
        check_known(given, config, where)
    if config.class_weights != "balanced":
        return config
    numbers = [[labels.index(label) for label in row] for row in found]
    return config.model_copy(update={"class_weights": balanced(numbers, config)})


def check_known(given: list[str], config: ClassificationConfig, where: str) -> None:
    for label in given:
        if label not in config.names:
            raise ValueError(
                f"{where}: the label {label!r} is none of {', '.join(config.names)} "
                "(trainer.labels)"
            )


def to_labelled(
    rows: list[Row],
    renderer: Renderer,
    name: str,
    max_length: int,
    policy: OnOverlong,
    config: ClassificationConfig,
) -> tuple[list[Example], LengthTable]:
    """A sequence of each row, rendered as a prompt, with nothing under its loss mask.

    per_seq["label"] is the label's number, or per_seq["label/k"] 1 where the row has label k.
    `truncate` keeps the last tokens: the logits are read at the end. Raises ValueError naming the
    row for a malformed one and, under the policy "error", an overlong one.
    """
    before = label_record(config, renderer).get("before", [])
    room = max_length - len(before)
    if room < 1:
        raise ValueError(f"length.max_length={max_length} leaves no room beside the labels' tokens")
    places = {label: k for k, label in enumerate(config.names)}
    table = LengthTable(name)
    kept: list[Example] = []
    for number, row in enumerate(rows, 1):
        try:
            ids = renderer.prompt_ids(asked(row))
            labels = labels_of(row, config.multi_label)
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: {error}") from None
        check_known(labels, config, f"{name}, row {number}")
        table.lengths.append(len(ids) + len(before))
        if not ids:
            table.drop("empty")
            continue
        if len(ids) > room:
            if policy == "error":
                raise ValueError(overlong(name, number, table.lengths[-1], max_length, "row"))
            if policy == "drop":
                table.drop("overlong")
                continue
            ids = ids[-room:]
            table.truncated += 1
        numbers = {places[label] for label in labels}
        per_seq = {f"label/{k}": float(k in numbers) for k in range(len(places))}
        if not config.multi_label:
            per_seq = {"label": float(places[labels[0]])}
        tokens = torch.tensor([*ids, *before])
        kept.append((Sequence(tokens, torch.zeros(len(tokens), dtype=torch.bool), {}, per_seq),))
        table.kept += 1
    return kept, table.finish()


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


def labels_in(sequence: Sequence, config: ClassificationConfig) -> list[str]:
    """The labels that to_labelled() gave a sequence."""
    if not config.multi_label:
        return [config.names[int(sequence.per_seq["label"])]]
    return [name for k, name in enumerate(config.names) if sequence.per_seq[f"label/{k}"]]


def label_record(config: ClassificationConfig, renderer: Renderer) -> dict[str, Any]:
    """What is saved beside the model: the labels in their order, and their tokens, with what comes
    before those, where they are what is scored."""
    record: dict[str, Any] = {"labels": config.names, "multi_label": config.multi_label}
    if config.mode == "label_tokens":
        record["before"], record["tokens"] = label_tokens(config, renderer)
    return record


def label_tokens(config: ClassificationConfig, renderer: Renderer) -> tuple[list[int], list[int]]:
    """The tokens that all labels' words begin with (a mark of a word's beginning, in many
    vocabularies), which the prompt is given too, and the next one of each label. Raises ValueError
    where two labels do not differ there."""
    words = [config.label_words.get(label, label) for label in config.names]
    ids = [renderer.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    shared = 0
    while all(len(word) > shared + 1 for word in ids) and len({word[shared] for word in ids}) == 1:
        shared += 1
    tokens: dict[int, str] = {}
    for label, word, found in zip(config.names, words, ids):
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
