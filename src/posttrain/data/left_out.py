"""What a chat template leaves out of a chat: cut reasoning, unread keys and roles."""

from __future__ import annotations

import re
from typing import Any

from posttrain.data.chat import Chat
from posttrain.data.entries import REASONING, Message, Notes, text_of

SPACE = re.compile(r"\s+")
PIECES = re.compile(r"\n|</?[\w|]+>")
"""Where a template may change a text: at line ends and tags."""


def left_out(chat: Chat, turns: dict[int, str], whole: str) -> Notes:
    """Return a note for each kind of text that the row has and its rendering lacks.

    `turns` holds the text of the trained turns by their index, `whole` the text of the chat.
    Templates may shorten earlier answers, which are compared only if they are trained on.
    """
    notes: Notes = {}
    squeezed = _squeezed(whole)
    for i, message in enumerate(chat.messages):
        role = message["role"]
        if role == "assistant" and i not in turns:
            continue
        rendered = _squeezed(turns[i]) if i in turns else squeezed
        if lacking := _lacking(text_of(message), rendered):
            what = (
                "or changes a part of the completion"
                if role == "assistant"
                else f"or changes text of role {role!r}"
            )
            notes[f"the template leaves out {what}"] = repr(lacking[:40])
        for key, text in _keys(message):
            if _squeezed(text) not in rendered:
                notes[f"the template does not write {key}"] = repr(text[:40])
    for tool in chat.options.get("tools", ()):
        name = str(tool.get("function", tool).get("name", ""))
        if name not in whole:
            notes["the template does not write tools"] = repr(name)
    return notes


def _keys(message: Message) -> list[tuple[str, str]]:
    """Return the texts of a message beside its content, with the names of their keys."""
    texts = [(key, message[key]) for key in (*REASONING, "name") if key in message]
    calls: list[Any] = message.get("tool_calls", [])
    texts += [("tool_calls", call.get("function", call)["name"]) for call in calls]
    return [(key, text) for key, text in texts if isinstance(text, str)]


def _lacking(text: str, rendered: str) -> str:
    """Return the first line of a text that its rendering lacks; empty if it has all of them."""
    if _squeezed(text) in rendered:
        return ""
    return next((p for p in PIECES.split(text) if _squeezed(p) not in rendered), "")


def _squeezed(text: str) -> str:
    return SPACE.sub("", text)
