"""A row with a chat: its messages, which turns are trained on, and what else its template reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from posttrain.data.entries import REASONING, Message, Notes, text_of, without_nulls
from posttrain.data.messages import messages_of
from posttrain.data.rows import Row

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Columns that a text model cannot read."""
TEMPLATE_COLUMNS = ("system", "tools", "functions", "chat_template_kwargs", *MEDIA)
"""Columns beside the messages that decide how a row is rendered, or that it is refused."""
WEIGHTS = ("weight", "train", "training")
"""Keys of a message that say whether it is trained on."""


@dataclass(frozen=True)
class Chat:
    """The messages of a row in the roles and keys that chat templates know."""

    messages: list[Message]
    trained: list[bool]
    """Whether each message is trained on; only assistant turns are."""
    options: dict[str, Any]
    """What else the template reads: tools and the row's chat_template_kwargs."""
    notes: Notes
    """What is read differently from how the row writes it."""

    def until(self, end: int) -> Chat:
        """Return the chat with its first `end` messages."""
        if end == len(self.messages):
            return self
        notes = self.notes | {"messages after the last turn that is trained on are left out": ""}
        return Chat(self.messages[:end], self.trained[:end], self.options, notes)


def chat_of(row: Row, system_prompt: str | None = None, asked: bool = False) -> Chat:
    """Return the chat of a row with `messages`, or with `prompt` and `completion`.

    The assistant turns of `prompt` are context. If only the prompt is `asked` for, a completion and
    a last assistant turn are left out. Raise ValueError for what cannot be read.
    """
    notes: Notes = {}
    refuse_media(row)
    column = "messages" if "messages" in row else "prompt"
    messages = messages_of(row, column, notes=notes)
    context = 0
    if asked:
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
            if column == "prompt":
                notes["a last assistant turn of the prompt is left out"] = ""
        context = len(messages)
    elif column == "prompt":
        context = len(messages)
        messages = messages + messages_of(row, "completion", role="assistant", notes=notes)
    if any(m["role"] == "user" and not text_of(m).strip() for m in messages):
        notes["messages of the user have no text"] = ""
    own = [text_of(m) for m in messages[:1] if m["role"] in ("system", "developer")]
    if row.get("system") and own and own[0] != row["system"]:
        notes["the column system is left out: the chat begins with a system message"] = repr(
            str(row["system"])[:40]
        )
    system = row.get("system") or system_prompt
    if system is not None and not (messages and messages[0]["role"] in ("system", "developer")):
        if not isinstance(system, str):
            raise ValueError(f"system must be a string; got {str(system)[:60]!r}")
        messages = [{"role": "system", "content": system}, *messages]
        context += 1
    trained = [
        i >= context and _is_trained(message, notes) and message["role"] == "assistant"
        for i, message in enumerate(messages)
    ]
    messages = [{k: v for k, v in m.items() if k not in WEIGHTS} for m in messages]
    if trained and trained[0]:
        trained[0] = False
        notes["the chat begins with the assistant: that turn has no prompt and is context"] = ""
    return Chat(messages, trained, template_options(row, notes), notes)


def read_by_template(row: Row) -> Row:
    """Return the columns beside the messages that rendering a row reads."""
    return {name: row[name] for name in TEMPLATE_COLUMNS if name in row}


def refuse_media(row: Row) -> None:
    """Raise ValueError if a row has images, videos or sound."""
    for column in MEDIA:
        if row.get(column):
            raise ValueError(
                f"the column {column} is not empty: posttrain trains on text only; remove the "
                "column, or such rows"
            )


def unread(row: Row) -> Notes:
    """Return what a row has that only a chat template reads; raise ValueError for images."""
    refuse_media(row)
    columns = [name for name in ("tools", "chat_template_kwargs") if row.get(name)]
    columns += ["functions"] if _functions(row) else []
    return {f"{name} is not read without a chat template": "" for name in columns}


def _is_trained(message: Message, notes: Notes) -> bool:
    """Return whether the message's own weight lets it be trained on; note it if it matters."""
    values = [(key, message[key]) for key in WEIGHTS if key in message]
    for key, value in values:
        if value not in (0, 1):
            raise ValueError(
                f"{key} of a message must be 0 or 1, true or false; got {str(value)[:60]!r}"
            )
    if message["role"] != "assistant":
        if any(key != "weight" and value for key, value in values):
            notes["only assistant turns are trained on, whatever train says in other turns"] = ""
        return False
    if all(value for _, value in values):
        return True
    key = next(key for key, value in values if not value)
    notes[f"assistant turns with {key} 0 or false are context"] = ""
    return False


def template_options(row: Row, notes: Notes) -> dict[str, Any]:
    """Return what the chat template reads beside the messages: `tools`, `chat_template_kwargs`.

    Both may be JSON text. Raise ValueError if they are anything else. `functions`, as tools were
    written before there were others, are read as tools.
    """
    options: dict[str, Any] = {}
    if functions := _functions(row):
        if row.get("tools"):
            notes["the column functions is left out: the row has tools"] = ""
        else:
            tools: Any = [{"type": "function", "function": f} for f in functions]
            # JSON text means its nulls, Parquet does not
            row = row | {"tools": json.dumps(tools) if type(row["functions"]) is str else tools}
            notes["functions are read as tools"] = ""
    kwargs = _from_json(row, "chat_template_kwargs")
    if kwargs:
        if not isinstance(kwargs, dict):
            raise ValueError(f"chat_template_kwargs must be an object; got {str(kwargs)[:60]!r}")
        options |= {k: v for k, v in kwargs.items() if v is not None}
    tools = _from_json(row, "tools")
    if tools:
        tools = [_from_json({"tools": tool}, "tools") for tool in _as_list(tools)]
        if not all(isinstance(tool, dict) for tool in tools):
            raise ValueError(
                f"tools must be a list of objects, or JSON text of one; got {str(tools)[:60]!r}"
            )
        if not isinstance(row["tools"], str) and tools != without_nulls(tools):
            notes["null entries of tools are left out, since Parquet fills them in"] = ""
            tools = without_nulls(tools)
        options["tools"] = tools
    return options


def _functions(row: Row) -> list[dict[str, Any]]:
    """Return the functions that a row offers; none if its `functions` are something else."""
    value = row.get("functions")
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return []
    functions = _as_list(value)
    described = all(isinstance(f, dict) and isinstance(f.get("name"), str) for f in functions)
    return functions if described else []


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _from_json(row: Row, column: str) -> Any:
    """Return the value of a column, read as JSON if it is a text."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        return value if not isinstance(value, str) else None
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{column} must be a list, or JSON text of one; got {value[:60]!r} ({error.msg})"
        ) from None


def is_silent(message: Message) -> bool:
    """Whether a turn says nothing: no text, no reasoning, no tool call."""
    return not text_of(message) and not any(message.get(k) for k in ("tool_calls", *REASONING))
