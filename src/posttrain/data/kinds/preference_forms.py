"""Preference rows in the forms that data sets have, to pairs and to judged completions.

What a row may look like, told by its columns and their types:

    prompt, chosen, rejected       texts or messages; chosen may repeat the prompt's messages
    chosen, rejected               whole conversations, whose common beginning is the prompt
    conversations, chosen, rejected  ShareGPT: {from, value} entries
    instruction, input, chosen, rejected  Alpaca; history, a list of [asked, answered]
    prompt, completion, label      KTO; `messages, label` too, and any of the pairs, as two rows

The column `system` is a system message before a prompt that has none, its own or in messages.
A text that begins with "\\n\\nHuman:" is a dialogue in Anthropic's form (hh-rlhf).
"""

from __future__ import annotations

import re
from typing import Any

from posttrain.data.messages import Message
from posttrain.data.rows import Row

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bard": "assistant", "system": "system",
}  # fmt: skip
DIALOGUE = re.compile(r"\n\n(Human|Assistant):")


def as_pairs(row: Row) -> list[Row]:
    """as_pair() for each rejected completion, where the row has a list of texts or of
    conversations: a set of several is learned from pair by pair."""
    rejected = row.get("rejected")
    if isinstance(rejected, list) and rejected and not isinstance(rejected[0], dict):
        return [as_pair(row | {"rejected": one}) for one in rejected]
    return [as_pair(row)]


def as_pair(row: Row) -> Row:
    """The row with prompt, chosen and rejected: texts, or messages of which the completions' begin
    where the prompt's end. Raises ValueError for a row that is no pair."""
    row = _without_nulls(row)
    if not {"chosen", "rejected"} <= row.keys():
        raise ValueError(
            "expected the columns prompt+chosen+rejected, chosen+rejected, or "
            f"conversations+chosen+rejected; found {', '.join(row)} (map them with data.columns)"
        )
    pair = _pair_of(row)
    if row.get("system"):
        pair["prompt"] = _after_system(row["system"], pair["prompt"])
    return pair


def _pair_of(row: Row) -> Row:
    rest = {k: v for k, v in row.items() if k not in PAIR_COLUMNS}
    prompt, chosen, rejected = _given_prompt(row), row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("chosen and rejected must both be texts, or both messages")
    if isinstance(chosen, str):
        if prompt is not None:
            return rest | {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if not (chosen.startswith("\n\nHuman:") and rejected.startswith("\n\nHuman:")):
            return rest | _split_texts(chosen, rejected)
        chosen, rejected = dialogue(chosen), dialogue(rejected)
    chosen, rejected = messages_from(chosen, "chosen"), messages_from(rejected, "rejected")
    if prompt is not None and all(m["role"] == "assistant" for m in (*chosen, *rejected)):
        return rest | {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    pair = _split_messages(chosen, rejected)
    if isinstance(prompt, list):
        pair["prompt"] = _joined(prompt, pair["prompt"])
    return rest | pair


def as_judged(row: Row) -> list[Row]:
    """Rows with prompt, completion and label (True: a good one); of a pair, both."""
    row = _without_nulls(row)
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
            f"found {', '.join(row)} (map them with data.columns)"
        )
    label = row["label"]
    if label not in (True, False):
        raise ValueError(f"label must be true or false; found {label!r}")
    if "messages" not in row:
        return [row | {"label": bool(label)}]
    messages = messages_from(row["messages"], "messages")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError("messages must end with the assistant's turn that is judged")
    rest = {k: v for k, v in row.items() if k != "messages"}
    return [rest | {"prompt": messages[:-1], "completion": messages[-1:], "label": bool(label)}]


PAIR_COLUMNS = ("prompt", "chosen", "rejected", "conversations", "instruction", "input", "system",
                "history")  # fmt: skip


def messages_from(value: Any, name: str) -> list[Message]:
    """Messages of {role, content} or {from, value} entries, or of one such entry. What else an
    entry holds, tool_calls for one, goes to the chat template."""
    entries = [value] if isinstance(value, dict) else value
    found = []
    for entry in entries if isinstance(entries, list) else [None]:
        if isinstance(entry, dict):
            entry = _without_nulls(entry)
        if isinstance(entry, dict) and "from" in entry:
            who = entry.pop("from")
            if who not in SHAREGPT_ROLES:
                known = ", ".join(SHAREGPT_ROLES)
                raise ValueError(f"{name}: unknown speaker from: {who!r}; known: {known}")
            entry = {"role": SHAREGPT_ROLES[who], "content": entry.pop("value", None)} | entry
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(
                f"{name} must be a text, or messages of {{role, content}} or {{from, value}}; "
                f"found {str(value)[:60]!r}"
            )
        found.append(entry)
    return found


def dialogue(text: str) -> list[Message]:
    """The messages of a text in Anthropic's form, "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    parts = DIALOGUE.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()} for who, said in zip(parts[0::2], parts[1::2])
    ]


def _without_nulls(row: Row) -> Row:
    """Every row of a Parquet file has the columns of all."""
    return {name: value for name, value in row.items() if value is not None}


def _given_prompt(row: Row) -> str | list[Message] | None:
    """The prompt that a row gives apart from its completions; None where it does not."""
    for name in ("conversations", "prompt"):
        if name in row:
            given = row[name]
            return given if isinstance(given, str) else messages_from(given, name)
    if "instruction" not in row:
        return None
    more = row.get("input")
    asked = f"{row['instruction']}\n\n{more}" if more else row["instruction"]
    if not (history := row.get("history")):
        return asked
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"history must be a list of [asked, answered]; found {str(pairs)[:60]!r}")
    roles = ("user", "assistant")
    earlier = [{"role": r, "content": said} for pair in pairs for r, said in zip(roles, pair)]
    return messages_from([*earlier, {"role": "user", "content": asked}], "history")


def _after_system(system: str, prompt: str | list[Message]) -> list[Message]:
    """The prompt after a system message, where it has none of its own."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    own = turns[0]["role"] == "system"
    return turns if own else [{"role": "system", "content": system}, *turns]


def _split_messages(chosen: list[Message], rejected: list[Message]) -> Row:
    shared = 0
    for a, b in zip(_said(chosen), _said(rejected)):
        if a != b:
            break
        shared += 1
    # of two equal conversations the last turn is what is judged
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    while shared > 0 and (
        chosen[shared]["role"] != "assistant" or chosen[shared - 1]["role"] == "assistant"
    ):
        shared -= 1
    if shared <= 0 or any(m["role"] != "assistant" for m in (chosen[shared], rejected[shared])):
        raise ValueError("chosen and rejected have no prompt in common that an answer follows")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _said(messages: list[Message]) -> list[Message]:
    """The messages without the ids and dates that make equal ones differ."""
    return [
        {k: v for k, v in m.items() if k in ("role", "content", "tool_calls")} for m in messages
    ]


def _joined(given: list[Message], shared: list[Message]) -> list[Message]:
    """The turns before the completions, where the column prompt has some of them and the
    conversations begin with some."""
    ours, theirs = _said(given), _said(shared)
    if ours[-len(theirs) :] == theirs:
        return given
    if any(theirs[i : i + len(ours)] == ours for i in range(len(theirs))):
        return shared
    raise ValueError(
        "chosen and rejected are conversations that do not repeat the turns of the prompt: leave "
        "only the assistant's turns in them"
    )


def _split_texts(chosen: str, rejected: str) -> Row:
    """The prompt ends with the last space before the two texts differ."""
    same = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b),
        min(len(chosen), len(rejected)),
    )
    edge = max((chosen.rfind(space, 0, same) for space in (" ", "\n")), default=-1)
    if edge < 1:
        raise ValueError("chosen and rejected have no prompt in common (column prompt)")
    return {"prompt": chosen[:edge], "chosen": chosen[edge:], "rejected": rejected[edge:]}
