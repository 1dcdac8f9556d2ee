"""The JSON of answers: OpenAI's objects, with vLLM's fields for token ids."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from posttrain.rollout.native.row import Alternative, Row
from posttrain.serving.errors import Refusal
from posttrain.serving.text import HALF, TextStream
from posttrain.serving.worker import News, Since

LEAST = -9999.0
"""What JSON gets for a log-prob of minus infinity."""


@dataclass
class Wanted:
    """What a request wants to know beside the text."""

    chat: bool
    echo: bool = False
    logprobs: bool = False
    top: int = 0
    token_ids: bool = False
    """Whether ids are returned."""
    ids_for_tokens: bool = False
    """Whether tokens are written as token_id:7."""


@dataclass
class Part:
    """A piece of a completion, or all of it."""

    text: str
    ids: list[int]
    logprobs: list[float | None]
    tops: list[list[Alternative] | None]
    finish_reason: str | None


@dataclass
class Choice:
    """A completion as the request sees it: the row's tokens up to a stop string."""

    row: Row
    stream: TextStream
    finish_reason: str | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    tops: list[list[Alternative] | None] = field(default_factory=list)
    shown: int = 0
    """Characters of the pieces so far, as text_offset counts them."""
    versions: list[Since] = field(default_factory=list)
    """Of the weights that sampled the tokens so far; empty if weights never change."""

    def take(self, news: News) -> Part:
        """Return what is new, and keep it."""
        ids, reason = news.ids, news.finish_reason
        texts = ids[:-1] if reason == "stop" else ids  # the stop token has no text
        taken = self.stream.push(*texts) if texts else 0
        if self.stream.stopped:
            ids, reason = ids[:taken], "stop"
        self.finish_reason = reason
        logprobs: list[float | None] = list(news.logprobs[: len(ids)])
        tops: list[list[Alternative] | None] = list(news.tops[: len(ids)])
        self.ids += ids
        self.logprobs += logprobs
        self.tops += tops
        self.versions = news.versions
        return Part(self.stream.new(reason is not None), ids, logprobs, tops, reason)

    def whole(self) -> Part:
        """Return all of the completion."""
        return Part(self.stream.text, self.ids, self.logprobs, self.tops, self.finish_reason)

    def labels(self) -> dict[str, Any]:
        """Return which tokens which version of the weights sampled, as vLLM does; {} if none."""
        ends = [start for _, start in self.versions[1:]] + [len(self.ids)]
        spans = [
            {"version": version, "start": start, "end": min(end, len(self.ids))}
            for (version, start), end in zip(self.versions, ends)
            if start < min(end, len(self.ids))
        ]
        return {"weight_versions": spans} if self.versions else {}


def echoed(row: Row, prompt: str) -> Part:
    """Return the prompt as a part; its first token has no log-prob."""
    logprobs: list[float | None] = [None, *row.prompt_logprobs]
    tops: list[list[Alternative] | None] = [None, *row.prompt_tops] if row.top else []
    return Part(prompt, row.prompt_ids, logprobs, tops, None)


def joined(first: Part, second: Part) -> Part:
    """Return two parts as one."""
    return Part(
        first.text + second.text,
        first.ids + second.ids,
        first.logprobs + second.logprobs,
        first.tops + second.tops,
        second.finish_reason,
    )


@dataclass(frozen=True)
class Head:
    """What every object of one answer begins with."""

    chat: bool
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, choices: list[dict[str, Any]], chunk: bool = False) -> dict[str, Any]:
        """Return an answer, or a chunk of one, with these choices."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


Piece = Callable[[int], str]
"""The text of a single token."""


def choice_json(
    index: int,
    part: Part,
    wanted: Wanted,
    piece: Piece,
    offset: int,
    prompt_ids: list[int] | None,
    chunk: bool = False,
) -> dict[str, Any]:
    """Return a choice of an answer; `offset` is that of its first token in the text."""
    tree: dict[str, Any] = {"index": index, "finish_reason": part.finish_reason}
    tree["logprobs"] = None
    if wanted.logprobs:
        write = chat_logprobs if wanted.chat else legacy_logprobs
        tree["logprobs"] = write(part, wanted, piece, offset)
    if not wanted.chat:
        tree["text"] = part.text
    elif chunk:
        tree["delta"] = {"content": part.text} if part.text else {}
    else:
        tree["message"] = {"role": "assistant", "content": part.text}
    if wanted.token_ids:
        tree["token_ids"] = part.ids
        if prompt_ids is not None:
            tree["prompt_token_ids"] = prompt_ids
    return tree


def legacy_logprobs(part: Part, wanted: Wanted, piece: Piece, offset: int) -> dict[str, Any]:
    """Return the log-probs of a completion: parallel lists."""
    tops: list[dict[str, float] | None] = []
    offsets = []
    write = _writer(wanted, piece)
    for token, best in zip(part.ids, part.tops or [None] * len(part.ids), strict=True):
        offsets.append(offset)
        offset += len(piece(token))
        tops.append(None if best is None else {})
        for other, logprob in best or ():  # the likelier of two that read alike stays
            tops[-1].setdefault(write(other), _finite(logprob))  # type: ignore[union-attr]
    return {
        "tokens": [write(token) for token in part.ids],
        "token_logprobs": [None if x is None else _finite(x) for x in part.logprobs],
        "top_logprobs": tops if wanted.top else None,
        "text_offset": offsets,
    }


def chat_logprobs(part: Part, wanted: Wanted, piece: Piece, offset: int) -> dict[str, Any]:
    """Return the log-probs of a chat's turn: a list of objects."""
    write = _writer(wanted, piece)

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text = piece(token)
        return {
            "token": write(token),
            "logprob": _finite(LEAST if logprob is None else logprob),
            "bytes": None if HALF in text else list(text.encode()),
        }

    content = [
        entry(token, logprob) | {"top_logprobs": [entry(*other) for other in best or ()]}
        for token, logprob, best in zip(
            part.ids, part.logprobs, part.tops or [None] * len(part.ids), strict=True
        )
    ]
    return {"content": content, "refusal": None}


def usage_json(num_prompt: int, num_completion: int) -> dict[str, int]:
    """Return the numbers of tokens."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }


def _writer(wanted: Wanted, piece: Piece) -> Piece:
    return (lambda token: f"token_id:{token}") if wanted.ids_for_tokens else piece


def _finite(logprob: float) -> float:
    if math.isnan(logprob):
        raise Refusal("the model's log-probs are no numbers: its weights may be damaged", 500)
    return LEAST if logprob == -math.inf else logprob
