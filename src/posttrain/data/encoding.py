r"""Text to ids by a tokenizer, also for a piece of a text that others precede.

Tokenizers of SentencePiece's kind put a space before every text that they are given. Inside a text
that space would be a token that nobody wrote: "<|assistant|>\n" followed by "Hi" must give the
ids of "<|assistant|>\nHi".
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Container, Sequence
from typing import Any


def encoded(tokenizer: Any, text: str, **options: bool) -> list[int]:
    """Return the ids of a text; raise ValueError if it cannot be encoded."""
    return _checked(lambda: tokenizer(text, verbose=False, **options)["input_ids"], text)


def encoded_after(tokenizer: Any, text: str, before: Sequence[int]) -> list[int]:
    """Return the ids of a piece of a text, without special tokens, after the ids of what precedes.

    They are those that the piece has in the whole text, unless the tokenizer joins characters on
    both sides of its beginning.
    """
    if not text:
        return []
    ids = encoded(tokenizer, text, add_special_tokens=False)
    inside, first_only = _inside(tokenizer) if before else (None, False)
    if inside is None:
        return ids
    special = tokenizer.added_tokens_decoder
    if before[-1] in special and not first_only:
        return ids
    without = _checked(lambda: inside.encode(text, add_special_tokens=False).ids, text)
    if first_only:
        return without
    # after a special token the tokenizer puts its space again
    place, place_without = _first(ids, special), _first(without, special)
    return [*without[:place_without], *ids[place:]]


def decoded_after(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of ids that others precede, with the space that it may begin with.

    Tokenizers of SentencePiece's kind decode ids as the beginning of a text, without that space.
    """
    before = encoded(tokenizer, "a", add_special_tokens=False)
    text = str(tokenizer.decode([*before, *ids]))
    return text[len(str(tokenizer.decode(before))) :]


def _first(ids: Sequence[int], special: Container[int]) -> int:
    return next((k for k, token in enumerate(ids) if token in special), len(ids))


@functools.lru_cache(maxsize=16)
def _inside(tokenizer: Any) -> tuple[Any, bool]:
    """Return a tokenizer that puts no space before texts; None if this one never puts any.

    Also return whether this one puts it only at the beginning of the whole text, and not after
    special tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = ("normalizer", "pre_tokenizer")
    if backend is None or not any(_prefixing(_state(getattr(backend, part))) for part in parts):
        return None, False
    from tokenizers import Tokenizer

    spec = json.loads(backend.to_str())
    kinds = [kind for part in parts for kind in _prefixing(spec[part])]
    for part in parts:
        spec[part] = _without_prefix(spec[part])
    inside = Tokenizer.from_str(json.dumps(spec))
    inside.encode_special_tokens = backend.encode_special_tokens
    inside.no_truncation()
    inside.no_padding()
    return inside, all(kind == "first" for kind in kinds)


def _state(part: Any) -> Any:
    """Return a part of a tokenizer as the JSON that describes it."""
    return None if part is None else json.loads(part.__getstate__())


def _prefixing(spec: Any) -> list[str]:
    """Return when the steps of a normalizer or pre-tokenizer put a space first: always, first."""
    if isinstance(spec, list):
        return [kind for step in spec for kind in _prefixing(step)]
    if not isinstance(spec, dict):
        return []
    kind = spec.get("type")
    if kind == "Prepend" or (kind == "ByteLevel" and spec.get("add_prefix_space")):
        return ["always"]
    if kind == "Metaspace":
        scheme = spec.get("prepend_scheme", "always")
        return [] if scheme == "never" else [scheme]
    return [kind for value in spec.values() for kind in _prefixing(value)]


def _without_prefix(spec: Any) -> Any:
    if isinstance(spec, list):
        return [_without_prefix(step) for step in spec]
    if not isinstance(spec, dict):
        return spec
    kind = spec.get("type")
    if kind == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    if kind == "Metaspace":
        return spec | {"prepend_scheme": "never"}
    if kind == "ByteLevel":
        return spec | {"add_prefix_space": False}
    return {key: _without_prefix(value) for key, value in spec.items()}


def _checked(encode: Callable[[], list[int]], text: str) -> list[int]:
    try:
        return encode()
    except TypeError:  # raised by tokenizers for a text that cannot be encoded
        surrogates = [c for c in text if "\ud800" <= c <= "\udfff"]
        if not surrogates:
            raise
        raise ValueError(f"a text contains {surrogates[0]!r}, half of a character") from None
