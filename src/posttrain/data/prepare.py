"""Rows to sequences or prompts: columns checked, one overlong policy, and the table that tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from posttrain.batch import Sequence
from posttrain.data.load import Row
from posttrain.data.render import Renderer, messages_of

OnOverlong = Literal["error", "drop", "truncate", "split"]
COLUMNS: dict[str, list[tuple[str, ...]]] = {
    "text": [("text",)],
    "completion": [("prompt", "completion"), ("messages",)],
    "prompt": [("prompt",), ("messages",)],
}


@dataclass
class Prompt:
    """What the sampler gets, and the row whose other columns the reward gets."""

    input_ids: list[int]
    row: Row


@dataclass
class LengthTable:
    """What became of the rows of one source. Lengths are in tokens, before any cut."""

    name: str
    rows: int = 0
    kept: int = 0
    dropped: int = 0
    truncated: int = 0
    trained_tokens: int = 0
    length_p50: int = 0
    length_p95: int = 0
    length_max: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Why rows were dropped, where it is not their length alone."""
    lengths: list[int] = field(default_factory=list, repr=False)

    def drop(self, reason: str) -> None:
        self.dropped += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def finish(self) -> LengthTable:
        lengths = sorted(self.lengths)
        self.rows = len(lengths)
        self.length_p50 = lengths[len(lengths) // 2]
        self.length_p95 = lengths[int(len(lengths) * 0.95)]
        self.length_max = lengths[-1]
        if self.kept == 0:
            why = ", ".join(f"{n} {reason}" for reason, n in self.reasons.items())
            raise ValueError(
                f"{self.name}: none of the {self.rows} rows is left "
                f"({why + '; ' if why else ''}shortest {lengths[0]} tokens); "
                + ("look at the data" if why else "raise length.max_length")
            )
        return self

    def as_row(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "lengths"}


def check_rows(rows: list[Row], kind: str, name: str) -> None:
    """What can be told of rows before there is a tokenizer, which takes seconds to load. Raises
    ValueError naming a row without its columns, or with neither texts nor messages in them."""
    if kind not in COLUMNS:
        return

    def check(row: Row) -> None:
        forms = [wanted for wanted in COLUMNS[kind] if set(wanted) <= row.keys()]
        if len(forms) == 1:  # of two it is the tokenizer that decides which is read
            for column in forms[0]:
                if column == "text":
                    _check_text(row)
                else:
                    messages_of(row, column)

    for number, row in enumerate(rows, 1):
        _render(row, number, name, COLUMNS[kind], check)


def to_sequences(
    rows: list[Row], kind: str, renderer: Renderer, name: str, max_length: int, policy: OnOverlong
) -> tuple[list[Sequence], LengthTable]:
    """Sequences of rows for language modelling ("text") or with completions ("completion").

    Raises ValueError naming the row for a missing column, a row without trained token and, under
    the policy "error", an overlong row.
    """
    make = _text_sequence if kind == "text" else Renderer.training_sequence
    table = LengthTable(name)
    kept: list[Sequence] = []
    for number, row in enumerate(rows, 1):
        sequence = _render(row, number, name, COLUMNS[kind], lambda r: make(renderer, r))
        table.lengths.append(len(sequence))
        trained = sequence.input_ids[sequence.loss_mask].tolist()
        if set(trained) <= {*renderer.stop_token_ids}:
            empty = "text" if kind == "text" else "completion"
            raise ValueError(f"{name}, row {number}: nothing to train on (the {empty} is empty)")
        pieces = [sequence]
        if len(sequence) > max_length:
            pieces = _shorten(sequence, max_length, policy, name, number)
            table.truncated += bool(pieces)
        kept += pieces
        table.kept += bool(pieces)
        table.dropped += not pieces
    table.trained_tokens = sum(int(s.loss_mask.sum()) for s in kept)
    return kept, table.finish()


def to_prompts(
    rows: list[Row], renderer: Renderer, name: str, max_length: int, policy: OnOverlong
) -> tuple[list[Prompt], LengthTable]:
    """Prompts for sampling. An overlong one is an error or dropped, never cut."""
    table = LengthTable(name)
    kept: list[Prompt] = []
    for number, row in enumerate(rows, 1):
        ids = _render(row, number, name, COLUMNS["prompt"], renderer.prompt_ids)
        table.lengths.append(len(ids))
        if len(ids) <= max_length:
            kept.append(Prompt(ids, row))
            table.kept += 1
        elif policy == "drop":
            table.dropped += 1
        else:
            raise ValueError(overlong(name, number, len(ids), max_length, "prompt"))
    return kept, table.finish()


def _render(
    row: Row, number: int, name: str, columns: list[tuple[str, ...]], make: Callable[[Row], Any]
) -> Any:
    if not any(set(wanted) <= row.keys() for wanted in columns):
        expected = " or ".join("+".join(wanted) for wanted in columns)
        raise ValueError(
            f"{name}, row {number}: expected the columns {expected}; found {', '.join(row)} "
            "(map them with data.columns)"
        )
    try:
        return make(row)
    except ValueError as error:
        raise ValueError(f"{name}, row {number}: {error}") from None


def _check_text(row: Row) -> None:
    if not isinstance(row["text"], str):
        raise ValueError(f"text must be a string; found {str(row['text'])[:60]!r}")


def _text_sequence(renderer: Renderer, row: Row) -> Sequence:
    _check_text(row)
    ids = torch.tensor(renderer.text_ids(row["text"]))
    return Sequence(ids, torch.arange(len(ids)) > 0)


def _shorten(
    sequence: Sequence, max_length: int, policy: OnOverlong, name: str, number: int
) -> list[Sequence]:
    if policy == "error":
        raise ValueError(overlong(name, number, len(sequence), max_length, "row"))
    if policy == "drop":
        return []
    starts = range(0, len(sequence), max_length) if policy == "split" else [0]
    pieces = []
    for start in starts:
        ids = sequence.input_ids[start : start + max_length]
        mask = sequence.loss_mask[start : start + max_length].clone()
        mask[0] = False
        if mask.any():
            pieces.append(Sequence(ids, mask))
    return pieces


def overlong(name: str, number: int, length: int, max_length: int, what: str) -> str:
    choices = "drop" if what == "prompt" else "drop or truncate"
    return (
        f"{name}, row {number}: the {what} has {length} tokens, more than length.max_length="
        f"{max_length}; raise it or set length.on_overlong: {choices}"
    )
