"""Completions labelled good or bad one by one, for `kto`.

prompt, completion, label   label is true for a good completion; also `messages, label`, and any
                            form of a pair, as two rows
"""

from __future__ import annotations

from posttrain.common.batch import Example, Sequence
from posttrain.data.kinds.judged import cut, is_empty, render
from posttrain.data.kinds.kind import Kind, named
from posttrain.data.kinds.preference_forms import as_judged, notes_of
from posttrain.data.lengths import LengthTable, OnOverlong, overlong
from posttrain.data.render import Renderer
from posttrain.data.rows import Row


def to_examples(
    rows: list[Row],
    renderer: Renderer,
    name: str,
    max_length: int,
    on_overlong: OnOverlong,
    with_unrelated: bool,
) -> tuple[list[Example], LengthTable]:
    """Return the completions with per_seq["label"], each with an unrelated one if `with_unrelated`.

    The unrelated sequence, for KTO's KL term, is the same prompt with the completion of the nearest
    row before it that has another prompt; before the first row comes the last. Raise ValueError
    naming a row that is malformed or, with on_overlong "error", overlong.
    """
    table = LengthTable(name, len(rows))
    kept: list[tuple[Row, Sequence]] = []
    for number, row in enumerate(rows, 1):
        for judged in named(name, number, as_judged, row):
            side = named(name, number, render, judged, renderer)
            table.note(number, named(name, number, notes_of, row) | side.notes)
            table.lengths.append(len(side.sequence))
            reason = "empty" if is_empty(side, renderer) else None
            if reason is None and len(side.sequence) > max_length:
                if on_overlong == "error":
                    raise ValueError(overlong(name, number, len(side.sequence), max_length, "row"))
                reason = "overlong" if on_overlong == "drop" else None
                side = cut(side, max_length)
                if reason is None and not side.completion:
                    reason = "empty, after the cut"
                table.truncated += reason is None
            if reason is not None:
                table.drop(reason)
                continue
            side.sequence.per_seq = {"label": float(judged["label"])}
            kept.append((judged, side.sequence))
            table.kept += 1
    table.trained_tokens = sum(int(s.loss_mask.sum()) for _, s in kept)
    table.finish()
    if not with_unrelated:
        return [(sequence,) for _, sequence in kept], table
    prompts = [_prompt_of(sequence) for _, sequence in kept]
    groups: list[Example] = []
    for i, (judged, sequence) in enumerate(kept):
        earlier = ((i - k) % len(kept) for k in range(1, len(kept)))
        donor = next((kept[j][0] for j in earlier if prompts[j] != prompts[i]), None)
        if donor is None:
            raise ValueError(f"{name}: kto's KL term needs rows with more than one prompt")
        mismatched = judged | {"completion": donor["completion"]}
        unrelated = cut(render(mismatched, renderer), max_length).sequence
        if not unrelated.loss_mask.any():
            raise ValueError(
                f"{name}: a prompt of at least {len(unrelated)} tokens leaves no room for a "
                f"completion in length.max_length={max_length}"
            )
        unrelated.per_seq = dict(sequence.per_seq)
        groups.append((sequence, unrelated))
    return groups, table


def _prompt_of(sequence: Sequence) -> list[int]:
    """Return the ids before the completion; rows may write one prompt in several ways."""
    ids: list[int] = sequence.input_ids[: int(sequence.loss_mask.nonzero()[0])].tolist()
    return ids


KIND = Kind("a completion and whether it is a good one", to_examples, lambda row: as_judged(row)[0])
