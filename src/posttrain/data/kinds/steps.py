"""Completions in steps, each right or wrong, for `process_reward_model`.

prompt        a string or a list of messages
completions   the steps of one completion, a list of strings
labels        true or false for each step
"""

from __future__ import annotations

import torch

from posttrain.common.batch import Example, Sequence
from posttrain.data.entries import Notes
from posttrain.data.kinds.kind import Kind
from posttrain.data.lengths import LengthTable, OnOverlong, overlong
from posttrain.data.render import Renderer
from posttrain.data.rows import Row

COLUMNS = ("prompt", "completions", "labels")


def to_examples(
    rows: list[Row],
    renderer: Renderer,
    name: str,
    max_length: int,
    on_overlong: OnOverlong,
    separator: str,
) -> tuple[list[Example], LengthTable]:
    """Return a sequence for each row, whose loss mask marks the token that closes each step.

    At these tokens per_token["label"] is 1 for a right step and 0 for a wrong one. A row that is
    cut keeps its whole steps; without any it is dropped. Raise ValueError naming a row that is
    malformed or, with on_overlong "error", overlong.
    """
    table = LengthTable(name, len(rows))
    kept: list[Example] = []
    for number, row in enumerate(rows, 1):
        try:
            sequence, notes = step_sequence(row, renderer, separator)
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: {error}") from None
        table.note(number, notes)
        table.lengths.append(len(sequence))
        if len(sequence) > max_length:
            if on_overlong == "error":
                raise ValueError(overlong(name, number, len(sequence), max_length, "row"))
            sequence = _cut(sequence, max_length)
            if on_overlong == "drop" or not sequence.loss_mask.any():
                table.drop("overlong" if on_overlong == "drop" else "without a step, after the cut")
                continue
            table.truncated += 1
        kept.append((sequence,))
        table.kept += 1
    table.trained_tokens = sum(int(sequence.loss_mask.sum()) for (sequence,) in kept)
    return kept, table.finish()


def step_sequence(row: Row, renderer: Renderer, separator: str) -> tuple[Sequence, Notes]:
    """Return the sequence of one row, and its notes; raise ValueError if it is malformed."""
    check(row, separator)
    rendered = renderer.steps(row, separator)
    (sequence,) = rendered.sequences
    label = torch.zeros(len(sequence))
    label[sequence.loss_mask] = torch.tensor(row["labels"], dtype=label.dtype)
    sequence.per_token = {"label": label}
    return sequence, rendered.notes


def check(row: Row, separator: str) -> None:
    """Raise ValueError if the row's columns, steps or labels are malformed."""
    if not set(COLUMNS) <= row.keys():
        raise ValueError(
            f"expected the columns {'+'.join(COLUMNS)}; got {', '.join(row)} (map them with "
            "data.columns)"
        )
    steps, labels = row["completions"], row["labels"]
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise ValueError(f"completions must be a list of strings; got {str(steps)[:60]!r}")
    if not isinstance(labels, list) or not all(isinstance(label, bool) for label in labels):
        raise ValueError(f"labels must be a list of true and false; got {str(labels)[:60]!r}")
    if not steps:
        raise ValueError("completions is empty: expected at least one step")
    if len(steps) != len(labels):
        raise ValueError(
            f"expected one label per step, got {len(labels)} for {len(steps)} steps (completions)"
        )
    for number, step in enumerate(steps, 1):
        if not step.strip():
            raise ValueError(f"step {number} of completions is empty")
    if steps_of(separator.join(steps), separator) != steps:
        raise ValueError(
            f"a step contains {separator!r} or a part of it, so that the steps could not be split "
            "again: choose another trainer.step_separator"
        )


def _cut(sequence: Sequence, max_length: int) -> Sequence:
    label = sequence.per_token["label"][:max_length]
    return Sequence(
        sequence.input_ids[:max_length], sequence.loss_mask[:max_length], {"label": label}
    )


def steps_of(completion: str, separator: str) -> list[str]:
    """Return the steps of a completion that are not blank."""
    return [step for step in completion.split(separator) if step.strip()]


KIND = Kind("a completion in steps and whether each is right", to_examples)
