"""The entries of a conversation as messages, whatever form a data set writes them in."""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, Any]
"""role, content, and whatever else the chat template reads."""
Notes = dict[str, str]
"""What was read differently from how it is written -> an example, or an empty text."""

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "developer",
    "observation": "tool",
    "tool": "tool",
    "function": "function",
}
"""Who speaks, as data sets write it in lower case -> the role that chat templates know."""
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""The keys under which a message may hold reasoning; transformers passes them all on."""


def read_messages(value: Any, name: str, notes: Notes | None = None) -> list[Message]:
    """Return the messages of a list of {role, content} or {from, value} entries, or of one entry.

    Other keys, such as tool_calls and name, are kept for the chat template. Nulls are left out: in
    Parquet every entry has the keys of all entries. Raise ValueError for anything else.
    """
    entries = [value] if isinstance(value, dict) else value
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise malformed(name, value)
    notes = {} if notes is None else notes
    return [_message(entry, number, name, notes) for number, entry in enumerate(entries, 1)]


def text_of(message: Message) -> str:
    """Return the text of a message's content, its parts joined; empty if it has none."""
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def malformed(name: str, value: Any) -> ValueError:
    """Return the error for a column that holds no messages."""
    shown = "null" if value is None else repr(str(value)[:60])
    forms = "a string, or messages with {role, content} or {from, value}"
    if name == "messages":
        forms = "a list of {role, content} messages"
    return ValueError(f"{name} must be {forms}; got {shown}")


def _message(entry: dict[str, Any], number: int, name: str, notes: Notes) -> Message:
    message = {key: value for key, value in entry.items() if value is not None}
    where = f"message {number} of {name}"
    if "from" in message and "role" not in message:
        speaker = message.pop("from")
        if str(speaker).lower() not in ROLES:
            raise ValueError(
                f"{name}: unknown speaker {speaker!r} in from; known: {', '.join(ROLES)}"
            )
        message = {"role": str(speaker).lower(), **message}
        if "value" in message and "content" not in message:
            message["content"] = message.pop("value")
        if message["role"] == "function_call":
            message = _call_of(message, where)
        message["role"] = ROLES[message["role"]]
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{name} must be a list of {{role, content}}; {where} has no role")
    role = message["role"]
    known = ROLES.get(role.strip().lower(), role)
    if known != role:
        notes[f"the role {role!r} is read as {known!r}"] = ""
        message["role"] = known
    if "function_call" in message and "tool_calls" not in message:
        message["tool_calls"] = [{"type": "function", "function": message.pop("function_call")}]
        notes["function_call is read as tool_calls"] = ""
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"], where, notes)
        if not message["tool_calls"]:
            del message["tool_calls"]
    if "content" in message:
        message["content"] = _content(message["content"], where)
    elif not any(key in message for key in ("tool_calls", *REASONING)):
        raise ValueError(
            f"{name} must be a list of {{role, content}}; {where} ({role}) has no content: got null"
        )
    return message


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """Return a content's text, or its parts if all of them are text."""
    if isinstance(content, str):
        return content
    entries = [content] if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError(
            f"messages must be a list of {{role, content}}; the content of {where} must be a text "
            f"or a list of parts, got {str(content)[:60]!r}"
        )
    parts = []
    for entry in entries:
        part = {"type": "text", "text": entry} if isinstance(entry, str) else entry
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise ValueError(
                f"{where} has a part of type {kind!r} without text: posttrain trains on text only; "
                "remove such rows"
            )
        parts.append({"type": "text", "text": part["text"]})
    return parts


def _calls(calls: Any, where: str, notes: Notes) -> list[Any]:
    """Return tool calls without the nulls that Parquet fills in."""
    if isinstance(calls, str) and calls.lstrip().startswith("["):
        try:
            calls = json.loads(calls)
        except json.JSONDecodeError as error:
            raise ValueError(f"tool_calls of {where} are no valid JSON: {error.msg}") from None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"tool_calls of {where} must be a list of calls; got {str(calls)[:60]!r}")
    whole = [without_nulls(call) for call in calls]
    for before, after in zip(calls, whole):
        outer, inner = (c.get("function", c) for c in (before, after))
        if not isinstance(outer, dict) or not isinstance(inner.get("name"), str):
            raise ValueError(f"a tool call of {where} has no name; got {str(before)[:60]!r}")
        if outer.get("arguments") != inner.get("arguments"):
            notes[
                "null arguments of tool calls are left out, since Parquet fills them in (write the "
                "arguments as JSON text to keep them)"
            ] = ""
    return whole


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null, at any depth; nulls in lists stay."""
    if isinstance(value, dict):
        return {key: without_nulls(x) for key, x in value.items() if x is not None}
    return [without_nulls(x) for x in value] if isinstance(value, list) else value


def _call_of(message: Message, where: str) -> Message:
    """Return an entry from function_call, whose value is JSON, as a message with tool_calls."""
    try:
        calls = json.loads(str(message.pop("content", None)))
    except json.JSONDecodeError:
        raise ValueError(
            f"{where} is from function_call: its value must be JSON, {{name, arguments}}"
        ) from None
    calls = calls if isinstance(calls, list) else [calls]
    return {**message, "tool_calls": [{"type": "function", "function": call} for call in calls]}
