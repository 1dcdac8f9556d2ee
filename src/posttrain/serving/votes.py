"""`POST /votes`: the better of two answers, written as a row that preference methods train on."""

from __future__ import annotations

import asyncio
import datetime
import errno
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from posttrain.common.errors import SettingError
from posttrain.data.contents import packed, suffix_of
from posttrain.data.files import placed_rows
from posttrain.data.kinds.preference_forms import as_pair
from posttrain.data.messages import messages_of
from posttrain.data.render import Renderer
from posttrain.data.rows import Row
from posttrain.serving.bodies import read_body
from posttrain.serving.errors import Refusal
from posttrain.serving.http import answer, json_answer, read
from posttrain.serving.service import Service


class Answered(BaseModel):
    """One of the two answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=500)]
    content: str
    finish_reason: Annotated[str, Field(max_length=40)] = "stop"

    @property
    def side(self) -> tuple[str, str, str]:
        """Return it as `vote_row` takes it."""
        return self.model, self.content, self.finish_reason


class VoteBody(BaseModel):
    """A vote: the conversation before the answers, and the answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    chosen: Answered
    rejected: Answered
    settings: dict[str, float | int | None] = Field(default_factory=dict, max_length=20)


class Votes:
    """A JSONL file of preference rows that grows by whole lines."""

    def __init__(self, file: Path) -> None:
        """Open a file, or make it; raise SettingError if it holds anything but votes."""
        self.file, self.lock, self.count = file, threading.Lock(), 0
        if suffix_of(file) != ".jsonl" or packed(file):
            raise SettingError("votes", f"expected the name of a .jsonl file, got {file}")
        if file.exists():
            try:
                for place, row in placed_rows(file):
                    as_pair_at(place, row)
                    self.count += 1
            except ValueError as error:
                raise SettingError("votes", f"{error}: give another file") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()  # fails now if it cannot be written

    def add(self, row: Row) -> int:
        """Append a row, and return the number of rows; raise OSError as `append` does."""
        with self.lock:
            append(self.file, row)
            self.count += 1
            return self.count

    def state(self) -> dict[str, Any]:
        """Return the file's name and its number of rows."""
        return {"file": self.file.name, "count": self.count}


def append(file: Path, row: Row) -> None:
    """Append a row to a JSONL file, as a line of its own; raise OSError and append nothing if not.

    A last line without an end, as an editor may leave it, is ended first."""
    with file.open("a+b", buffering=0) as rows:
        size = rows.seek(0, os.SEEK_END)
        if size:
            rows.seek(-1, os.SEEK_END)
        before = b"\n" if size and rows.read(1) != b"\n" else b""
        line = before + (json.dumps(row) + "\n").encode()
        try:
            if rows.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(rows.fileno())
        except OSError:
            rows.truncate(size)
            raise


def as_pair_at(place: str, row: Row) -> Row:
    """Return a row as a pair; raise ValueError, with the place in front, if it is none."""
    try:
        return as_pair(row)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def vote_row(
    messages: list[dict[str, Any]],
    chosen: tuple[str, str, str],
    rejected: tuple[str, str, str],
    settings: dict[str, Any],
    renderer: Renderer | None,
) -> Row:
    """Return the preference row of a vote; raise ValueError for one that teaches nothing.

    `messages` are the conversation before the answers. An answer is the model's name, its text and
    why it ended. `renderer` is that of the better answer's model: its system prompt is part of what
    was answered, and a model without a chat template read the last message as a bare text."""
    read = messages_of({"messages": messages}, "messages")
    if read[-1]["role"] == "assistant":
        raise ValueError("messages: the last one is the assistant's: end with what was answered")
    if not (chosen[1].strip() and rejected[1].strip()):
        raise ValueError("an answer is empty, which is no completion")
    if chosen[1] == rejected[1]:
        raise ValueError("the two answers are the same, which is no preference")
    if chosen[2] != "stop":
        raise ValueError(
            "the better answer is not whole, and a model that is trained on it would learn to end "
            f"there ({chosen[2]}): let it end, and choose again"
        )
    system = None if renderer is None else renderer.system_prompt
    if system and read[0]["role"] != "system":
        read = [{"role": "system", "content": system}, *read]
    asked: Row = {"prompt": read}
    if renderer is not None and not renderer.chat:
        asked = {"prompt": read[-1]["content"]}
        if read[0]["role"] == "system":
            asked["system"] = read[0]["content"]
    now = datetime.datetime.now(datetime.UTC)
    meta = {
        "chosen_model": chosen[0],
        "rejected_model": rejected[0],
        "rejected_finish_reason": rejected[2],
        "settings": settings,
        "time": now.isoformat(timespec="seconds"),
    }
    row = asked | {"chosen": chosen[1], "rejected": rejected[1], "meta": meta}
    as_pair(row)
    return row


def add_to(app: Any, services: Sequence[Service], votes: Votes | None) -> None:
    """Add the route; without a file it refuses votes."""
    service = services[0]

    def renderer_of(model: str) -> Renderer | None:
        for each in services:
            if model == each.name or model in each.adapters:
                return each.renderer_of(model)
        return None  # a page that was opened before the adapter was unloaded

    async def vote(request: Any) -> Any:
        body = read_body(VoteBody, await read(request, service.bounds.max_body))
        if votes is None:
            raise Refusal("votes are not kept: start the server with the option votes", 404)
        try:
            chosen, rejected = body.chosen.side, body.rejected.side
            renderer = renderer_of(body.chosen.model)
            row = vote_row(body.messages, chosen, rejected, body.settings, renderer)
        except ValueError as error:
            raise Refusal(str(error)) from None
        try:
            await asyncio.to_thread(votes.add, row)
        except OSError as error:
            raise Refusal(f"the vote was not written: {error.strerror or error}", 503) from None
        return json_answer(votes.state())

    app.add_api_route("/votes", answer(service, vote), methods=["POST"])
