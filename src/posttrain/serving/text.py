"""The text of a completion as its tokens come, and the strings that end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from posttrain.data.encoding import encoded
from posttrain.data.render import Renderer

WINDOW = 24  # tokens that are decoded again with each new one
HALF = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no whole character yet."""
UNSURE = 8  # characters at the end of a text that the next token may still change

Decode = Callable[[Sequence[int]], str]


def decoder(renderer: Renderer, skip_special_tokens: bool = False) -> Decode:
    """Return a function from the ids of a completion to its text, as `Renderer.decode` has it."""
    tokenizer: Any = renderer.tokenizer
    before = [] if renderer.chat else encoded(tokenizer, "a", add_special_tokens=False)
    skipped = len(str(tokenizer.decode(before))) if before else 0

    def decode(ids: Sequence[int]) -> str:
        whole = tokenizer.decode([*before, *ids], skip_special_tokens=skip_special_tokens)
        return str(whole)[skipped:]

    return decode


class TextStream:
    """A text that grows by tokens, is never cut within a character, and ends before a stop."""

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, list(stops)
        self.longest = max(map(len, self.stops), default=0)
        self.text = ""
        """All text so far, without the stop string."""
        self.stopped = False
        """Whether a stop string was complete."""
        self.sent = 0
        # text = settled + decode(ids) without its first `overlap` characters
        self.ids: list[int] = []
        self.settled, self.overlap = "", 0

    def push(self, token: int) -> bool:
        """Add a token; return whether a stop string is complete."""
        if len(self.ids) >= 2 * WINDOW:
            self._settle()
        self.ids.append(token)
        text = self.settled + self.decode(self.ids)[self.overlap :]
        start = max(0, len(self.text) - self.longest - UNSURE)
        places = [place for stop in self.stops if (place := text.find(stop, start)) >= 0]
        self.text, self.stopped = text[: min(places, default=None)], bool(places)
        return self.stopped

    def new(self, ended: bool = False) -> str:
        """Return the text since the last call; unless it has `ended`, what later tokens keep."""
        end = len(self.text)
        if not (ended or self.stopped):
            end = len(self.text.rstrip(HALF))
            end -= max((_begun(self.text[:end], stop) for stop in self.stops), default=0)
        part = self.text[self.sent : end]
        self.sent = max(self.sent, end)
        return part

    def _settle(self) -> None:
        """Decode fewer tokens from now on, if those that remain begin and end with characters."""
        rest = self.ids[-WINDOW:]
        text = self.decode(rest)
        if text and HALF not in (text[0], text[-1]) and self.text.endswith(text):
            self.ids, self.settled, self.overlap = rest, self.text, len(text)


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop string."""
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
