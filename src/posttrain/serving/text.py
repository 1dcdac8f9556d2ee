"""The text of a completion as its tokens come, and the strings that end it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.encoding import encoded
from posttrain.data.render import Renderer

WINDOW = 8  # tokens that are decoded again with each new one
HALF = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no whole character yet."""
UNSURE = 8  # characters at the end of a text that the next token may still change


@dataclass(frozen=True)
class Decoder:
    """From the ids of a completion to its text, as `Renderer.decode` has it."""

    tokenizer: Any
    before: list[int]
    """Ids that are put in front, so that the text keeps a space that it begins with."""
    skip_special_tokens: bool
    byte_ids: frozenset[int]
    """Tokens of single bytes, whose text depends on the bytes that follow."""
    skipped: int = 0
    """Length of the text of `before`."""

    def __call__(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        skip = self.skip_special_tokens
        text = self.tokenizer.decode([*self.before, *ids], skip_special_tokens=skip)
        return str(text)[self.skipped :]


def decoder(renderer: Renderer, skip_special_tokens: bool = False) -> Decoder:
    """Return the decoder of a renderer's completions."""
    tokenizer: Any = renderer.tokenizer
    before = [] if renderer.chat else encoded(tokenizer, "a", add_special_tokens=False)
    vocabulary = tokenizer.get_vocab().items()
    single = frozenset(i for text, i in vocabulary if re.fullmatch("<0x[0-9A-F]{2}>", text))
    length = len(str(tokenizer.decode(before))) if before else 0
    return Decoder(tokenizer, before, skip_special_tokens, single, length)


class TextStream:
    """A text that grows by tokens, is never cut within a character, and ends before a stop."""

    def __init__(self, decode: Decoder, stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, list(stops)
        self.longest = max(map(len, self.stops), default=0)
        self.text = ""
        """All text so far, without the stop string."""
        self.stopped = False
        """Whether a stop string was complete."""
        self.sent = self.sure = 0
        """Lengths of the text that was handed out, and of that before single bytes at its end."""
        # text = settled + decode(ids) without its first `overlap` characters
        self.ids: list[int] = []
        self.settled, self.overlap = "", 0

    def push(self, *tokens: int) -> int:
        """Add tokens up to the end of a stop string, and return how many these are."""
        if not self.stops:
            self._add(tokens)
            return len(tokens)
        for number, token in enumerate(tokens, 1):
            start = max(0, len(self.text) - self.longest - UNSURE)
            self._add((token,))
            places = [self.text.find(stop, start) for stop in self.stops]
            if found := [place for place in places if place >= 0]:
                self.text, self.stopped = self.text[: min(found)], True
                return number
        return len(tokens)

    def _add(self, tokens: Sequence[int]) -> None:
        if len(self.ids) >= 2 * WINDOW:
            self._settle()
        self.ids += tokens
        self.text = self.settled + self.decode(self.ids)[self.overlap :]
        if self.ids[-1] not in self.decode.byte_ids:
            self.sure = len(self.text)

    def new(self, ended: bool = False) -> str:
        """Return the text since the last call; unless it has `ended`, what later tokens keep."""
        end = len(self.text)
        if not (ended or self.stopped):
            end = len(self.text[: self.sure].rstrip(HALF))
            end -= max((_begun(self.text[:end], stop) for stop in self.stops), default=0)
        part = self.text[self.sent : end]
        self.sent = max(self.sent, end)
        return part

    def _settle(self) -> None:
        """Decode fewer tokens from now on, if those that remain begin and end with characters."""
        rest = self.ids[-WINDOW:]
        text = self.decode(rest)
        if self.decode.byte_ids.intersection((rest[0], rest[-1])):
            return
        if text and HALF not in (text[0], text[-1]) and self.text.endswith(text):
            self.ids, self.settled, self.overlap = rest, self.text, len(text)


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop string."""
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
