"""What `text` and `completion` rows share: checking columns, making and cutting sequences."""

from __future__ import annotations

from collections.abc import Callable

from posttrain.common.batch import Example, Sequence
from posttrain.data.kinds.kind import render_row
from posttrain.data.lengths import LengthTable, OnOverlong, overlong
from posttrain.data.messages import check_text, messages_of
from posttrain.data.render import Rendered, Renderer
from posttrain.data.rows import Row

Form = tuple[str, ...]
"""The columns of a row in one form."""


def check_columns(rows: list[Row], name: str, forms: list[Form]) -> None:
    """Raise ValueError naming a row without the columns of a form, or with malformed values."""

    def check(row: Row) -> None:
        matching = [form for form in forms if set(form) <= row.keys()]
        if len(matching) == 1:  # if it has several, the chat template decides which one is read
            for column in matching[0]:
                if column == "text":
                    check_text(row)
                else:
                    messages_of(row, column)

    for number, row in enumerate(rows, 1):
        render_row(row, number, name, forms, check)


def to_sequences(
    rows: list[Row],
    renderer: Renderer,
    name: str,
    max_length: int,
    on_overlong: OnOverlong,
    forms: list[Form],
    make: Callable[[Row], Rendered],
) -> tuple[list[Example], LengthTable]:
    """Return the sequences of each row by `make`; overlong ones are shortened as on_overlong says.

    Sequences without a token to train on are dropped and counted. Raise ValueError naming a row
    that lacks columns or, with on_overlong "error", is overlong.
    """
    table = LengthTable(name, len(rows))
    kept: list[Example] = []
    stops = {*renderer.stop_token_ids}
    for number, row in enumerate(rows, 1):
        rendered = render_row(row, number, name, forms, make)
        table.note(number, rendered.notes)
        for sequence in rendered.sequences:
            table.lengths.append(len(sequence))
            trained = sequence.input_ids[sequence.loss_mask].tolist()
            if not trained or (set(trained) <= stops and not renderer.train_empty):
                table.drop("empty")
                continue
            pieces = [sequence]
            if len(sequence) > max_length:
                pieces = _shorten(sequence, max_length, on_overlong, name, number)
                table.truncated += bool(pieces)
            kept += [(piece,) for piece in pieces]
            table.kept += bool(pieces)
            table.dropped += not pieces
    table.trained_tokens = sum(int(s.loss_mask.sum()) for (s,) in kept)
    return kept, table.finish()


def _shorten(
    sequence: Sequence, max_length: int, on_overlong: OnOverlong, name: str, number: int
) -> list[Sequence]:
    if on_overlong == "error":
        raise ValueError(overlong(name, number, len(sequence), max_length, "row"))
    if on_overlong == "drop":
        return []
    starts = range(0, len(sequence), max_length) if on_overlong == "split" else [0]
    pieces = []
    for start in starts:
        ids = sequence.input_ids[start : start + max_length]
        mask = sequence.loss_mask[start : start + max_length].clone()
        mask[0] = False  # a first token has no context in its piece
        if mask.any():
            pieces.append(Sequence(ids, mask))
    return pieces
