"""A task's problems as prompts for a model, with few-shot examples before them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.common.errors import SettingError
from posttrain.common.files import short_hash
from posttrain.data.chat import read_by_template
from posttrain.data.entries import text_of
from posttrain.data.messages import messages_of
from posttrain.data.render import Renderer
from posttrain.data.rows import Row, numbered
from posttrain.data.templates import fill

NEXT_QUESTION = "\n\nQuestion:"
"""Begins a few-shot example; a model without a chat template continues with it after its answer."""


@dataclass(frozen=True)
class Problem:
    """A row to evaluate and its prompt."""

    id: str
    """A hash of the row's content, so that it is the same for every model."""
    input_ids: list[int]
    row: Row


def with_reply(row: Row, where: str) -> Row:
    """Return a row with a prompt and, if it has one, a completion, the reference.

    In a conversation the assistant's last turn is the completion and the turns before it are the
    prompt. Raises ValueError for other rows.
    """
    if "messages" not in row:
        if "prompt" not in row or not isinstance(row.get("completion") or "", str):
            raise ValueError(
                f"{where}: expected messages, or a prompt and optionally a completion that is a "
                f"text; got columns {', '.join(row)}"
            )
        return row
    try:
        turns = messages_of(row, "messages")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    replies = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i > 0]
    if not replies:
        raise ValueError(f"{where}: messages need an assistant turn after a turn of another role")
    prompt, completion = turns[: replies[-1]], text_of(turns[replies[-1]])
    return {"prompt": prompt, "completion": completion, **read_by_template(row)}


def to_problems(
    rows: list[Row],
    shots: list[Row],
    renderer: Renderer,
    name: str,
    max_length: int,
    prompt_template: str | None = None,
) -> tuple[list[Problem], int]:
    """Return the problems, and how many were dropped for a prompt of more than max_length tokens.

    `prompt_template` makes the prompts of problems and shots; a problem's id does not depend on it,
    so that results of two templates can be compared. Raises ValueError if a shot is also among the
    problems, or if no prompt fits.
    """
    evaluated = {json.dumps(row["prompt"]) for row in rows}
    for shot in shots:
        if json.dumps(shot["prompt"]) in evaluated:
            raise ValueError(
                f"{name}: a few-shot example is also among the problems to evaluate: give a folder "
                "whose splits do not overlap"
            )
    asked = [row["prompt"] for row in rows]
    if prompt_template is not None:
        asked = [fill(prompt_template, row, where)["prompt"] for where, row in numbered(rows, name)]
        shots = [fill(prompt_template, row, where) for where, row in numbered(shots, name)]
    problems, lengths = [], []
    for number, (key, row, prompt) in enumerate(zip(problem_ids(rows), rows, asked), 1):
        try:
            ids = renderer.prompt_ids(
                {"prompt": with_shots(prompt, shots, renderer.chat), **read_by_template(row)}
            )
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: {error}") from None
        lengths.append(len(ids))
        if len(ids) <= max_length:
            problems.append(Problem(key, ids, row))
    if not problems:
        raise ValueError(
            f"{name}: no prompt fits: the shortest has {min(lengths)} tokens, and the model has "
            f"room for {max_length} before max_new_tokens"
        )
    return problems, len(rows) - len(problems)


def problem_ids(rows: Sequence[Row]) -> list[str]:
    """Return a hash of each row; the second of equal rows is `hash-2`."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        text = json.dumps(row, sort_keys=True, default=str)
        key = short_hash(text)
        seen[key] += 1
        ids.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return ids


def check_shots(rows: Sequence[Row], num_shots: int, name: str) -> list[Row]:
    """Return the first rows; raise ValueError if there are too few, or one has no completion."""
    if len(rows) < num_shots:
        raise SettingError(
            "shots", f"expected at most {len(rows)} (rows of {name}), got {num_shots}"
        )
    for number, row in enumerate(rows[:num_shots], 1):
        if not isinstance(row.get("completion"), str) or "prompt" not in row:
            raise ValueError(f"{name}, row {number}: a shot needs a prompt and a completion")
    return list(rows[:num_shots])


def with_shots(prompt: object, shots: Sequence[Row], chat: bool) -> object:
    """Return the prompt with the shots before it; without shots, the prompt unchanged.

    For a chat template they are turns, else a text in which questions and answers are labelled.
    """
    if not shots:
        return prompt
    if chat:
        turns = [
            turn
            for shot in shots
            for turn in (
                *messages_of(shot, "prompt"),
                {"role": "assistant", "content": shot["completion"]},
            )
        ]
        return [*turns, *messages_of({"prompt": prompt}, "prompt")]
    examples = [f"{_question(shot['prompt'])} {shot['completion'].strip()}" for shot in shots]
    return "\n\n".join([*examples, _question(prompt)])


def _question(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise SettingError("shots", "need prompts that are texts if there is no chat template")
    return f"Question: {prompt.strip()}\nAnswer:"
