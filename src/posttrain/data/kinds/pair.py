"""A chosen and a rejected completion of one prompt, for the preference methods and reward models.

prompt, chosen, rejected   or any form in `preference_forms`
margin                     a number that `reward_model` reads; 0 by default
"""

from __future__ import annotations

import math

import torch

from posttrain.common.batch import Example, Sequence
from posttrain.data.kinds.judged import Judged, cut, is_empty, render
from posttrain.data.kinds.kind import Kind, named
from posttrain.data.kinds.preference_forms import as_pairs, notes_of
from posttrain.data.lengths import LengthTable, OnOverlong, overlong
from posttrain.data.render import Renderer
from posttrain.data.rows import Row


def to_examples(
    rows: list[Row],
    renderer: Renderer,
    name: str,
    max_length: int,
    on_overlong: OnOverlong,
    train_prompt: bool = False,
    score_only: bool = False,
) -> tuple[list[Example], LengthTable]:
    """Return (chosen, rejected) for each pair whose completions differ as tokens.

    per_token["completion"] marks the completion. The loss mask is the same; with `train_prompt`,
    that of the chosen side also covers the prompt; with `score_only`, both are empty.
    per_seq["margin"] is the row's margin, or 0. Pairs with equal or empty completions, and pairs
    that differ only beyond max_length, are dropped and counted. Raise ValueError naming a row that
    is malformed or, with on_overlong "error", overlong.
    """
    table = LengthTable(name, len(rows))
    kept: list[Example] = []
    pairs = (
        (number, pair)
        for number, row in enumerate(rows, 1)
        for pair in named(name, number, as_pairs, row)
    )
    for number, pair in pairs:
        sides = named(name, number, _render_sides, pair, renderer)
        notes = named(name, number, notes_of, rows[number - 1])
        table.note(number, notes | sides[0].notes | sides[1].notes)
        longest = max(len(side.sequence) for side in sides)
        table.lengths.append(longest)
        reason = _drop_reason(sides, renderer)
        if reason is None and longest > max_length:
            if on_overlong == "error":
                raise ValueError(overlong(name, number, longest, max_length, "pair"))
            reason = "overlong"
            if on_overlong == "truncate":
                sides = [cut(side, max_length) for side in sides]
                reason = _drop_reason(sides, renderer)
                reason = f"{reason}, after the cut" if reason else None
                table.truncated += reason is None
        if reason is not None:
            table.drop(reason)
            continue
        margin = named(name, number, _margin, pair)
        chosen, rejected = (side.sequence for side in sides)
        kept.append(
            (
                _final_sequence(chosen, margin, train_prompt, score_only),
                _final_sequence(rejected, margin, False, score_only),
            )
        )
        table.kept += 1
    table.trained_tokens = sum(
        int(side.per_token["completion"].sum()) for pair in kept for side in pair
    )
    return kept, table.finish()


def _render_sides(pair: Row, renderer: Renderer) -> list[Judged]:
    names = ("chosen", "rejected")
    rest = {k: v for k, v in pair.items() if k not in names}
    return [render(rest | {"completion": pair[name]}, renderer) for name in names]


def _drop_reason(sides: list[Judged], renderer: Renderer) -> str | None:
    """Return why a pair has nothing to learn from; None if it does."""
    if any(is_empty(side, renderer) for side in sides):
        return "empty"
    return "equal" if sides[0].completion == sides[1].completion else None


def _final_sequence(
    sequence: Sequence, margin: float, train_prompt: bool, score_only: bool
) -> Sequence:
    completion = sequence.loss_mask
    mask = completion
    if score_only:
        mask = torch.zeros_like(completion)
    elif train_prompt:
        mask = torch.arange(len(sequence)) > 0
    return Sequence(
        sequence.input_ids, mask, {"completion": completion.float()}, {"margin": margin}
    )


def _margin(row: Row) -> float:
    value = row.get("margin", 0.0)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value)):
        raise ValueError(f"margin must be a finite number; got {value!r}")
    return float(value)


KIND = Kind(
    "a chosen and a rejected completion of one prompt",
    to_examples,
    lambda row: as_pairs(row)[0],
)
