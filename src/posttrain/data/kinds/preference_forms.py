r"""Preference rows in the forms that data sets use, as pairs and as judged completions.

The columns of a row and their types decide its form:

    prompt, chosen, rejected       strings or messages; chosen may repeat the prompt's messages
    chosen, rejected               whole conversations, whose common beginning is the prompt
    conversations, chosen, rejected  ShareGPT: {from, value} entries
    instruction, input, chosen, rejected  Alpaca; history, a list of [question, answer]
    prompt, completion, label      KTO; also `messages, label`, and any form of a pair, as two rows

The column `system` becomes a system message if the prompt does not begin with one.
A string that begins with "\n\nHuman:" is a dialogue in Anthropic's form (hh-rlhf).
"""

from __future__ import annotations

import re
from typing import Any

from posttrain.data.entries import Message, Notes, read_messages, text_of
from posttrain.data.rows import Row

PAIR_COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "conversations",
    "instruction",
    "input",
    "system",
    "history",
)
DIALOGUE = re.compile(r"\n\n(Human|Assistant):")
QUESTIONS = ("question", "query", "problem", "instruction", "input", "context", "post")
"""Columns in which data sets keep the prompt."""


PROMPT_UNUSED = "the column prompt is left out: chosen and rejected are whole conversations"


def as_pairs(row: Row) -> list[Row]:
    """Return a pair of the chosen completion with each rejected one.

    `rejected` holds several if it is a list of strings or of conversations.
    """
    rejected = row.get("rejected")
    if isinstance(rejected, list) and rejected and not isinstance(rejected[0], dict):
        return [as_pair(row | {"rejected": completion}) for completion in rejected]
    return [as_pair(row)]


def as_pair(row: Row) -> Row:
    """Return the row with prompt, chosen and rejected, as strings or as messages.

    The messages of the completions begin where those of the prompt end. Raise ValueError if the row
    is not a pair.
    """
    row, nulls = _without_nulls(row), [name for name, value in row.items() if value is None]
    if not {"chosen", "rejected"} <= row.keys():
        raise ValueError(
            "expected the columns prompt+chosen+rejected, chosen+rejected, or "
            f"conversations+chosen+rejected; got {_got(row, nulls)}"
        )
    pair = _pair_of(row)
    if row.get("system"):
        pair["prompt"] = _with_system(row["system"], pair["prompt"])
    return pair


def _pair_of(row: Row) -> Row:
    rest = {k: v for k, v in row.items() if k not in PAIR_COLUMNS}
    prompt, chosen, rejected = _explicit_prompt(row), row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("chosen and rejected must both be strings or both be messages")
    if isinstance(chosen, str):
        if prompt is not None:
            return rest | {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if not (_is_dialogue(chosen) and _is_dialogue(rejected)):
            questions = [name for name in QUESTIONS if isinstance(row.get(name), str)]
            if questions:
                raise ValueError(
                    f"no column prompt, but {questions[0]}: if it is the prompt, set data.columns: "
                    f"{{prompt: {questions[0]}}}, else remove it"
                )
            return rest | _split_texts(chosen, rejected)
        chosen, rejected = dialogue(chosen), dialogue(rejected)
    chosen, rejected = messages_from(chosen, "chosen"), messages_from(rejected, "rejected")
    if prompt is not None and all(m["role"] == "assistant" for m in (*chosen, *rejected)):
        return rest | {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    pair = _split_messages(chosen, rejected)
    if isinstance(prompt, list):
        pair["prompt"] = _merged_prompt(prompt, pair["prompt"])
    return rest | pair


def as_judged(row: Row) -> list[Row]:
    """Return rows with prompt, completion and label (True: a good one); one per side of a pair."""
    row, nulls = _without_nulls(row), [name for name, value in row.items() if value is None]
    if {"chosen", "rejected"} <= row.keys():
        pairs = as_pairs(row)
        sides = [(pairs[0], "chosen"), *((pair, "rejected") for pair in pairs)]
        return [
            {k: v for k, v in pair.items() if k not in ("chosen", "rejected")}
            | {"completion": pair[side], "label": side == "chosen"}
            for pair, side in sides
        ]
    if "label" not in row or not ("messages" in row or {"prompt", "completion"} <= row.keys()):
        raise ValueError(
            "expected the columns prompt+completion+label, messages+label, or a pair; "
            f"got {_got(row, nulls)}"
        )
    label = row["label"]
    if label not in (True, False):
        raise ValueError(f"label must be true or false; got {label!r}")
    if "messages" not in row:
        return [row | {"label": bool(label)}]
    messages = messages_from(row["messages"], "messages")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError("messages must end with the assistant turn that is judged")
    rest = {k: v for k, v in row.items() if k != "messages"}
    return [rest | {"prompt": messages[:-1], "completion": messages[-1:], "label": bool(label)}]


def messages_from(value: Any, name: str) -> list[Message]:
    """Return the messages of a list of {role, content} or {from, value} entries, or of one entry.

    Other keys of an entry, such as tool_calls, are kept for the chat template.
    """
    return read_messages(value, name)


def notes_of(row: Row) -> Notes:
    """Return what the messages of a row that is a pair, or judged, write otherwise."""
    notes: Notes = {}
    columns: tuple[str, ...] = ("prompt", "conversations", "chosen", "rejected")
    if not {"chosen", "rejected"} <= row.keys():
        columns = ("messages",) if "messages" in row else ("prompt", "completion")
    for column in columns:
        value = row.get(column)
        if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
            read = read_messages(value, column, notes)
            asked = [text_of(m).strip() for m in read if m["role"] != "assistant"]
            prompt = row.get("prompt")
            given = prompt.strip() if isinstance(prompt, str) else ""
            if column == "chosen" and asked and given and given not in asked:
                notes[PROMPT_UNUSED] = repr(given[:40])
    return notes


def dialogue(text: str) -> list[Message]:
    r"""Return the messages of a dialogue "\n\nHuman: ...\n\nAssistant: ..." (hh-rlhf)."""
    parts = DIALOGUE.split("\n\n" + text.lstrip())[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.strip()}
        for speaker, content in zip(parts[0::2], parts[1::2])
    ]


def _got(row: Row, nulls: list[str]) -> str:
    """Return a row's columns in words for an error, with those that are null."""
    missing = f"; null: {', '.join(nulls)}" if nulls else ""
    return f"{', '.join(row) or 'none'} (map them with data.columns){missing}"


def _is_dialogue(text: str) -> bool:
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _without_nulls(row: Row) -> Row:
    """Return the row without nulls: in Parquet every row has the columns of all rows."""
    return {name: value for name, value in row.items() if value is not None}


def _explicit_prompt(row: Row) -> str | list[Message] | None:
    """Return the prompt that has columns of its own; None if the completions include it."""
    for name in ("conversations", "prompt"):
        if name in row:
            value = row[name]
            return value if isinstance(value, str) else messages_from(value, name)
    if "instruction" not in row:
        return None
    extra = row.get("input")
    question = f"{row['instruction']}\n\n{extra}" if extra else row["instruction"]
    if not (history := row.get("history")):
        return question
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"history must be a list of [question, answer]; got {str(pairs)[:60]!r}")
    roles = ("user", "assistant")
    earlier = [{"role": r, "content": text} for pair in pairs for r, text in zip(roles, pair)]
    return messages_from([*earlier, {"role": "user", "content": question}], "history")


def _with_system(system: str, prompt: str | list[Message]) -> list[Message]:
    """Return the prompt's messages, with a system message first unless they begin with one."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(system, str):
        raise ValueError(f"system must be a string; got {str(system)[:60]!r}")
    has_system = bool(turns) and turns[0]["role"] in ("system", "developer")
    return turns if has_system else [{"role": "system", "content": system}, *turns]


def _split_messages(chosen: list[Message], rejected: list[Message]) -> Row:
    """Split two conversations where they differ, into a prompt and two completions."""
    shared = 0
    for a, b in zip(_comparable(chosen), _comparable(rejected)):
        if a != b:
            break
        shared += 1
    # if the conversations are equal, the last turn is the completion
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    while shared > 0 and (
        chosen[shared]["role"] != "assistant" or chosen[shared - 1]["role"] == "assistant"
    ):
        shared -= 1
    if shared <= 0 or any(m["role"] != "assistant" for m in (chosen[shared], rejected[shared])):
        raise ValueError(
            "chosen and rejected have no common prompt that is followed by an assistant turn"
        )
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _comparable(messages: list[Message]) -> list[Message]:
    """Return the messages without what makes equal ones differ: ids, dates, content in parts."""
    return [
        {"role": m["role"], "content": text_of(m), "tool_calls": m.get("tool_calls")}
        for m in messages
    ]


def _merged_prompt(prompt: list[Message], shared: list[Message]) -> list[Message]:
    """Return all turns before the completions.

    The column prompt has some of them, and so has the common beginning of the conversations.
    """
    ours, theirs = _comparable(prompt), _comparable(shared)
    if ours[-len(theirs) :] == theirs:
        return prompt
    if any(theirs[i : i + len(ours)] == ours for i in range(len(theirs))):
        return shared
    raise ValueError(
        "chosen and rejected are conversations that do not repeat the prompt's turns: leave only "
        "the assistant turns in them"
    )


def _split_texts(chosen: str, rejected: str) -> Row:
    """Split two strings at the last space or line end before they differ."""
    same = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b),
        min(len(chosen), len(rejected)),
    )
    edge = max((chosen.rfind(space, 0, same) for space in (" ", "\n")), default=-1)
    if edge < 1:
        raise ValueError(
            "chosen and rejected have no common beginning as the prompt: add a column prompt"
        )
    return {"prompt": chosen[:edge], "chosen": chosen[edge:], "rejected": rejected[edge:]}
