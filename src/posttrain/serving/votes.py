"""`POST /votes`: the better of two answers, written as a row that preference methods train on."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import threading
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from posttrain.common.errors import SettingError
from posttrain.data.contents import packed, suffix_of
from posttrain.data.files import placed_rows
from posttrain.data.kinds.preference_forms import as_pair
from posttrain.data.messages import messages_of
from posttrain.data.rows import Row
from posttrain.serving.bodies import read_body
from posttrain.serving.errors import Refusal
from posttrain.serving.http import answer, json_answer, read
from posttrain.serving.service import Service

COLUMNS = ("prompt", "chosen", "rejected", "meta")


class Answered(BaseModel):
    """One of the two answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=500)]
    content: str
    finish_reason: Annotated[str, Field(max_length=40)] = "stop"


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
        with file.open("a+b") as rows:  # fails now if it cannot be written
            if rows.tell() and (rows.seek(-1, os.SEEK_END), rows.read(1))[1] != b"\n":
                rows.write(b"\n")

    def add(self, row: Row) -> int:
        """Append a row, and return the number of rows; raise OSError and append nothing if full."""
        line = (json.dumps(row) + "\n").encode()
        with self.lock, self.file.open("ab", buffering=0) as rows:
            size = rows.tell()
            try:
                if rows.write(line) != len(line):
                    raise OSError("the disk is full")
                os.fsync(rows.fileno())
            except OSError:
                rows.truncate(size)
                raise
            self.count += 1
        return self.count

    def state(self) -> dict[str, Any]:
        """Return the file's name and its number of rows."""
        return {"file": self.file.name, "count": self.count}


def as_pair_at(place: str, row: Row) -> Row:
    """Return a row as a pair; raise ValueError, with the place in front, if it is none."""
    try:
        return as_pair(row)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def row_of(body: VoteBody, now: datetime.datetime) -> Row:
    """Return the preference row of a vote; raise Refusal for one that teaches nothing."""
    chosen, rejected = body.chosen, body.rejected
    try:
        messages = messages_of({"messages": body.messages}, "messages")
    except ValueError as error:
        raise Refusal(str(error), param="messages") from None
    if messages[-1]["role"] == "assistant":
        raise Refusal(
            "messages: the last one is the assistant's: end with what was answered",
            param="messages",
        )
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side.content.strip():
            raise Refusal(f"{name}.content is empty, which is no completion", param=name)
    if chosen.content == rejected.content:
        raise Refusal("the two answers are the same, which is no preference", param="rejected")
    if chosen.finish_reason != "stop":
        raise Refusal(
            "the chosen answer is not whole, and a model that is trained on it would learn to stop "
            f"there (finish_reason is {chosen.finish_reason!r}): let it end, and vote again",
            param="chosen",
        )
    meta = {
        "chosen_model": chosen.model,
        "rejected_model": rejected.model,
        "rejected_finish_reason": rejected.finish_reason,
        "settings": body.settings,
        "time": now.isoformat(timespec="seconds"),
    }
    row = {"prompt": messages, "chosen": chosen.content, "rejected": rejected.content, "meta": meta}
    as_pair(row)
    return row


def add_to(app: Any, service: Service, votes: Votes | None) -> None:
    """Add the route; without a file it refuses votes."""

    async def vote(request: Any) -> Any:
        body = read_body(VoteBody, await read(request, service.bounds.max_body))
        if votes is None:
            raise Refusal("votes are not kept: start the server with the option votes", 404)
        row = row_of(body, datetime.datetime.now(datetime.UTC))
        try:
            await asyncio.to_thread(votes.add, row)
        except OSError as error:
            raise Refusal(f"the vote was not written: {error.strerror or error}", 503) from None
        return json_answer(votes.state())

    app.add_api_route("/votes", answer(service, vote), methods=["POST"])
