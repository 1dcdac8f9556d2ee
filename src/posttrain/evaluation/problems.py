"""Problems of a task as the model is asked about them, with few-shot examples before them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.common.errors import SettingError
from posttrain.common.files import short_hash
from posttrain.data.messages import messages_of
from posttrain.data.render import Renderer
from posttrain.data.rows import Row, numbered
from posttrain.data.templates import fill

NEXT_QUESTION = "\n\nQuestion:"
"""Where a model without a chat template has left its answer: it goes on with the next example."""


@dataclass(frozen=True)
class Problem:
    id: str
    """Of the row's content, so that it is the same for every model."""
    input_ids: list[int]
    row: Row


def with_reply(row: Row, where: str) -> Row:
    """A row with a prompt; of a conversation what stands before the assistant's last turn, with
    that turn as its completion."""
    if "messages" not in row:
        if "prompt" not in row or not isinstance(row.get("completion") or "", str):
            raise ValueError(
                f"{where}: expected messages, or a prompt and perhaps a completion that is a text; "
                f"found columns {', '.join(row)}"
            )
        return row
    try:
        turns = messages_of(row, "messages")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    replies = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i > 0]
    if not replies:
        raise ValueError(f"{where}: messages must hold a turn of the assistant after another's")
    return {"prompt": turns[: replies[-1]], "completion": turns[replies[-1]]["content"]}


def to_problems(
    rows: list[Row],
    shots: list[Row],
    renderer: Renderer,
    name: str,
    max_length: int,
    prompt_template: str | None = None,
) -> tuple[list[Problem], int]:
    """The problems, and the number of those that are dropped since their prompt has more than
    max_length tokens. Raises ValueError for a shot that stands among the problems.

    The template makes the prompts of problems and shots; a problem's id does not depend on it, so
    that two of them can be compared."""
    evaluated = {json.dumps(row["prompt"]) for row in rows}
    for shot in shots:
        if json.dumps(shot["prompt"]) in evaluated:
            raise ValueError(
                f"{name}: a shot stands among the problems that are evaluated: give a folder in "
                "which the splits lie apart"
            )
    asked = [row["prompt"] for row in rows]
    if prompt_template is not None:
        asked = [fill(prompt_template, row, where)["prompt"] for where, row in numbered(rows, name)]
        shots = [fill(prompt_template, row, where) for where, row in numbered(shots, name)]
    problems, lengths = [], []
    for number, (key, row, prompt) in enumerate(zip(problem_ids(rows), rows, asked), 1):
        try:
            ids = renderer.prompt_ids({"prompt": with_shots(prompt, shots, renderer.chat)})
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
    """A hash of each row; of equal rows the second is `hash-2`."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        text = json.dumps(row, sort_keys=True, default=str)
        key = short_hash(text)
        seen[key] += 1
        ids.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return ids


def check_shots(rows: Sequence[Row], num_shots: int, name: str) -> list[Row]:
    """The first rows; ValueError where there are too few, or one without a completion to show."""
    if len(rows) < num_shots:
        problem = f"{num_shots}, but {name} has {len(rows)} rows to show"
        raise SettingError("shots", problem)
    for number, row in enumerate(rows[:num_shots], 1):
        if not isinstance(row.get("completion"), str) or "prompt" not in row:
            raise ValueError(f"{name}, row {number}: a shot needs a prompt and a completion")
    return list(rows[:num_shots])


def with_shots(prompt: object, shots: Sequence[Row], chat: bool) -> object:
    """The shots before a prompt: as turns of a conversation, or as text with questions and answers
    marked as such. Without shots the prompt as it is."""
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
    shown = [f"{_question(shot['prompt'])} {shot['completion'].strip()}" for shot in shots]
    return "\n\n".join([*shown, _question(prompt)])


def _question(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise SettingError("shots", "needs prompts that are texts if there is no chat template")
    return f"Question: {prompt.strip()}\nAnswer:"
