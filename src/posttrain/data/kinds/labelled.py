"""Texts with one label or several, for `classification`.

prompt, text or messages   what is classified; messages end with the user's turn
label                      a string, integer or boolean; with multi_label, a list of these
"""

from __future__ import annotations

import torch

from posttrain.common.batch import Example, Sequence
from posttrain.data.kinds.kind import Kind
from posttrain.data.labels import LabelSet, asked, check_known, label_record, labels_of
from posttrain.data.lengths import LengthTable, OnOverlong, overlong
from posttrain.data.render import Renderer
from posttrain.data.rows import Row


def to_examples(
    rows: list[Row],
    renderer: Renderer,
    name: str,
    max_length: int,
    on_overlong: OnOverlong,
    labels: LabelSet,
) -> tuple[list[Example], LengthTable]:
    """Return a sequence for each row, rendered as a prompt, with an empty loss mask.

    per_seq["label"] is the index of the label; with multi_label, per_seq["label/k"] is 1 if the row
    has label k, else 0. `truncate` keeps the last tokens, since the logits are read at the end.
    Raise ValueError naming a row that is malformed or, with on_overlong "error", overlong.
    """
    label_prefix = label_record(labels, renderer).get("before", [])
    room = max_length - len(label_prefix)
    if room < 1:
        raise ValueError(
            f"length.max_length={max_length} leaves no room for text: the tokens that all labels "
            f"begin with take {len(label_prefix)}"
        )
    index_of = {label: k for k, label in enumerate(labels.names)}
    table = LengthTable(name, len(rows))
    kept: list[Example] = []
    for number, row in enumerate(rows, 1):
        try:
            ids, notes = renderer.prompt(asked(row))
            row_labels = labels_of(row, labels.multi_label)
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: {error}") from None
        check_known(row_labels, labels, f"{name}, row {number}")
        table.note(number, notes)
        table.lengths.append(len(ids) + len(label_prefix))
        if not ids:
            table.drop("empty")
            continue
        if len(ids) > room:
            if on_overlong == "error":
                raise ValueError(overlong(name, number, table.lengths[-1], max_length, "row"))
            if on_overlong == "drop":
                table.drop("overlong")
                continue
            ids = ids[-room:]
            table.truncated += 1
        indices = [index_of[label] for label in row_labels]
        if labels.multi_label:
            per_seq = {f"label/{k}": float(k in indices) for k in range(len(index_of))}
        else:
            per_seq = {"label": float(indices[0])}
        tokens = torch.tensor([*ids, *label_prefix])
        kept.append((Sequence(tokens, torch.zeros(len(tokens), dtype=torch.bool), {}, per_seq),))
        table.kept += 1
    return kept, table.finish()


def labels_in(sequence: Sequence, labels: LabelSet) -> list[str]:
    """Return the labels that to_examples() stored in a sequence."""
    if not labels.multi_label:
        return [labels.names[int(sequence.per_seq["label"])]]
    return [name for k, name in enumerate(labels.names) if sequence.per_seq[f"label/{k}"]]


KIND = Kind("a text with its label or labels", to_examples, asked)
