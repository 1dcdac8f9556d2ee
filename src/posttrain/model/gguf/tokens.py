"""Tokenizers in GGUF files: byte-level BPE by its name there, and SentencePiece's BPE by scores.

llama.cpp builds a tokenizer from the tokens, the merges or scores, and the name of a rule that
splits text into words. A rule that is not in RULES would split otherwise, which no error shows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = range(1, 7)
"""llama.cpp's types of tokens; OWN ones are matched in text before it is split into words."""
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _split(digits: str) -> list[dict[str, Any]]:
    pattern = {"Regex": f"{CONTRACTIONS}|{digits}|{REST}"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return [split, BYTES | {"use_regex": False}]


RULES: dict[str, tuple[str | None, list[dict[str, Any]], bool]] = {
    "gpt-2": (None, [BYTES | {"use_regex": True}], False),
    "smollm": (
        None,
        [{"type": "Digits", "individual_digits": True}, BYTES | {"use_regex": True}],
        False,
    ),
    "qwen2": ("NFC", _split(r"\p{N}"), False),
    "llama-bpe": (None, _split(r"\p{N}{1,3}"), True),
}
"""llama.cpp's name of a rule: Unicode normalisation, steps that split text into words, and whether
a word that is a token is kept whole whatever the merges say."""
ALSO = {"gpt2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
KEY = "tokenizer.ggml."
MODELS = {"gpt2": "byte-level BPE", "llama": "SentencePiece BPE"}
SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""The file's keys of tokens that end a completion."""
FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix")
INSTEAD = ": export it as merged or safetensors"
"""What to do about a model that a file cannot express."""
TEMPLATE = "tokenizer.chat_template"
SPACE = "\u2581"
PROBE = (
    "Hello  world, it's 2024! \u00c9t\u00e9 \u4f60\u597d 1234567\n\n   12\n\n3. \tdef f(x): x**2"
    " \U0001f600 IT'S \u0661\u0662 \u00b2 x1y22  \r\n\r\n$9.99"
)
"""Text on which rules that split text differ."""


def build_tokenizer(settings: dict[str, Any], file: Path) -> Any:
    """Return transformers' tokenizer of a file's settings, with its chat template.

    Raises ValueError for a kind or rule that is not read, and for lists that do not fit together.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    kind = str(settings.get(KEY + "model"))
    if kind not in MODELS:
        names = " and ".join(f"{name} ({what})" for name, what in MODELS.items())
        raise ValueError(
            f"{file} has a tokenizer of the kind {kind}, which is not read; {names} are: "
            "take the model's folder with tokenizer.json"
        )
    for key in FLAGS:
        if type(settings.get(KEY + key, True)) is not bool:
            raise ValueError(
                f"{file} is damaged: {key} is {settings[KEY + key]!r}, not a bool; copy it again"
            )
    tokens, types = _tokens(settings, file)
    parts = (
        _bytes_of(settings, tokens, file) if kind == "gpt2" else _pieces_of(settings, tokens, file)
    )
    ids = {key: _token_id(settings, key, len(tokens), file) for key in (*SPECIAL.values(), *ENDS)}
    kept = max(_kept(types), 1 + max((i for i in ids.values() if i is not None), default=0))
    vocab = {token: i for i, token in enumerate(tokens[:kept])}
    model = {"type": "BPE", "vocab": vocab, "dropout": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None} | parts.pop("model")
    added = [
        {"id": i, "content": token, "special": types[i] in (CONTROL, UNKNOWN), "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, token in enumerate(tokens[:kept])
        if types[i] in (CONTROL, OWN) or (types[i] == UNKNOWN and kind == "llama")
    ]
    frame = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    special = {name: tokens[i] for name, key in SPECIAL.items() if (i := ids[key]) is not None}
    content = frame | parts | {"model": model, "post_processor": _around(settings, special, vocab)}
    try:
        inner = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(
            f"{file}: its tokenizer cannot be built ({error}): take the model's folder with "
            "tokenizer.json"
        ) from None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, **special
    )
    template = settings.get(TEMPLATE)
    if isinstance(template, str) and template:
        tokenizer.chat_template = template
    return tokenizer


def _tokens(settings: dict[str, Any], file: Path) -> tuple[list[str], list[int]]:
    """Return the tokens and their types; raise ValueError if they are missing or repeated."""
    tokens = settings.get(KEY + "tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise ValueError(
            f"{file} holds no tokens: it has no tokenizer that can be read: take the model's "
            "folder with tokenizer.json"
        )
    types = settings.get(KEY + "token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens) or set(types) - set(range(1, 7)):
        raise ValueError(
            f"{file} is damaged: token_type does not describe its {len(tokens)} tokens; copy it "
            "again"
        )
    if len(set(tokens)) < len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise ValueError(
            f"{file} has the token {twice!r} twice, which no tokenizer can tell apart: take the "
            "model's folder with tokenizer.json"
        )
    return tokens, types


def _kept(types: list[int]) -> int:
    """Return the number of tokens without the unused ones at the end, which only fill up rows."""
    count = len(types)
    while count > 1 and types[count - 1] == UNUSED:
        count -= 1
    return count


def _token_id(settings: dict[str, Any], key: str, count: int, file: Path) -> int | None:
    number = settings.get(KEY + key)
    if number is None or number == 2**32 - 1:
        return None
    if type(number) is not int or not 0 <= number < count:
        raise ValueError(
            f"{file} is damaged: {key} is {number!r}, not one of its {count} tokens; copy it again"
        )
    return number


def _bytes_of(settings: dict[str, Any], tokens: list[str], file: Path) -> dict[str, Any]:
    """Return the parts of a byte-level BPE in the format of tokenizer.json."""
    name = settings.get(KEY + "pre")
    rule = RULES.get(ALSO.get(str(name), str(name)))
    if rule is None:
        raise ValueError(
            f"{file} splits text into words by the rule {name}, which is not read; "
            f"{', '.join(RULES)} are: take the model's folder with tokenizer.json"
        )
    normal, steps, whole = rule
    known, merges = set(tokens), []
    given = settings.get(KEY + "merges")
    for merge in given if isinstance(given, list) else []:
        pair = merge.split(" ") if isinstance(merge, str) else []
        if len(pair) != 2 or not {*pair, "".join(pair)} <= known:
            raise ValueError(
                f"{file} is damaged: {merge!r} is not a merge of two of its tokens; copy it again"
            )
        merges.append(pair)
    if not merges:
        raise ValueError(
            f"{file} is damaged: it holds no merges for its byte-level tokens; copy it again"
        )
    model = {"merges": merges, "ignore_merges": whole, "unk_token": None}
    return {
        "normalizer": None if normal is None else {"type": normal},
        "pre_tokenizer": steps[0]
        if len(steps) == 1
        else {"type": "Sequence", "pretokenizers": steps},
        "decoder": BYTES | {"use_regex": True, "add_prefix_space": True},
        "model": model | {"fuse_unk": False, "byte_fallback": False},
    }


def merges_of(scores: dict[str, float]) -> list[list[str]]:
    """Return the merges of SentencePiece's BPE: a token of a higher score is made first."""
    found = [
        (-score, len(token[:cut]), [token[:cut], token[cut:]])
        for token, score in scores.items()
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]
    return [pair for _, _, pair in sorted(found, key=lambda merge: merge[:2])]


def _pieces_of(settings: dict[str, Any], tokens: list[str], file: Path) -> dict[str, Any]:
    """Return the parts of a SentencePiece BPE in the format of tokenizer.json."""
    scores = settings.get(KEY + "scores")
    known = isinstance(scores, list) and all(type(s) is float and isfinite(s) for s in scores)
    if not isinstance(scores, list) or not known or len(scores) != len(tokens):
        raise ValueError(
            f"{file} is damaged: it does not have a score for each token; copy it again"
        )
    types = settings.get(KEY + "token_type", [NORMAL] * len(tokens))
    normal = {t: s for t, s, k in zip(tokens, scores, types) if k == NORMAL}
    merges = merges_of(normal)
    made = {"".join(pair) for pair in merges}
    if len({normal[token] for token in made}) < len(made):
        raise ValueError(
            f"{file} gives tokens the same score: their order of merging is unknown: take the "
            "model's folder with tokenizer.json"
        )
    if types.count(BYTE) != 256:
        raise ValueError(
            f"{file} has {types.count(BYTE)} byte tokens, expected 256: take the model's folder "
            "with tokenizer.json"
        )
    unknown = next((t for t, k in zip(tokens, types) if k == UNKNOWN), None)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = [{"type": "Prepend", "prepend": SPACE}, replace]
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    prefix = settings.get(KEY + "add_space_prefix", True)
    model = {"merges": merges, "ignore_merges": False, "unk_token": unknown}
    return {
        "normalizer": {"type": "Sequence", "normalizers": before} if prefix else replace,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders + ([strip] if prefix else [])},
        "model": model | {"fuse_unk": True, "byte_fallback": True},
    }


def _around(settings: dict[str, Any], special: dict[str, str], vocab: dict[str, int]) -> Any:
    """Return the step that puts BOS and EOS around a text; None if the file wants neither."""
    default = settings.get(KEY + "model") == "llama"
    first = settings.get(KEY + "add_bos_token", default) and special.get("bos_token")
    last = settings.get(KEY + "add_eos_token", False) and special.get("eos_token")
    if not (first or last):
        return None
    piece: Callable[[str], Any] = lambda token: {"SpecialToken": {"id": token, "type_id": 0}}  # noqa: E731
    text: Callable[[str], Any] = lambda name: {"Sequence": {"id": name, "type_id": 0}}  # noqa: E731
    ends = [[piece(first)] if first else [], [piece(last)] if last else []]
    used = {t for t in (first, last) if t}
    return {
        "type": "TemplateProcessing",
        "single": [*ends[0], text("A"), *ends[1]],
        "pair": [*ends[0], text("A"), *ends[1], *ends[0], text("B"), *ends[1]],
        "special_tokens": {t: {"id": t, "ids": [vocab[t]], "tokens": [t]} for t in used},
    }


def stops_of(settings: dict[str, Any], file: Path) -> list[int]:
    """Return the tokens that end a completion, each once, EOS first."""
    count = len(settings[KEY + "tokens"])
    numbers = [_token_id(settings, key, count, file) for key in ENDS]
    return list(dict.fromkeys(n for n in numbers if n is not None))


def settings_of(tokenizer: Any, rows: int, stops: list[int]) -> dict[str, Any]:
    """Return a file's settings for a tokenizer, with as many tokens as the embedding has rows.

    Raises ValueError for a tokenizer that a file cannot describe.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(f"a GGUF file needs a tokenizer with a tokenizer.json{INSTEAD}")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content["model"].get("type") != "BPE" or content["model"].get("dropout"):
        raise ValueError(
            f"a tokenizer of the kind {content['model'].get('type')} cannot be written to a GGUF "
            f"file: byte-level and SentencePiece BPE can{INSTEAD}"
        )
    if len(stops) > len(ENDS):
        raise ValueError(
            f"a GGUF file names at most {len(ENDS)} stop tokens, this model {len(stops)}: leave "
            "out the others from eos_token_id in its generation_config.json"
        )
    added = {token["id"]: token for token in content["added_tokens"]}
    for token in added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise ValueError(
                f"the tokenizer's {token['content']!r} takes in the spaces around it, which a GGUF "
                f"file cannot express{INSTEAD}"
            )
    numbers = content["model"]["vocab"] | {t["content"]: i for i, t in added.items()}
    tokens = {number: token for token, number in numbers.items()}
    if max(tokens) >= rows:
        raise ValueError(
            f"the tokenizer has {max(tokens) + 1} tokens (the last is {tokens[max(tokens)]!r}), "
            f"the embedding {rows} rows: train with model.resize_embeddings: true, or remove the "
            "tokens without a row from the tokenizer"
        )
    texts = [tokens.get(i, f"[PAD{i}]") for i in range(rows)]
    types = [UNUSED if i not in tokens else _type(added.get(i)) for i in range(rows)]
    kind = _byte_settings if _rule(content) else _piece_settings
    settings = {KEY + key: value for key, value in kind(content, texts, types).items()}
    settings |= {KEY + "tokens": texts, KEY + "token_type": types}
    for name, key in SPECIAL.items():
        if (number := getattr(tokenizer, f"{name}_id", None)) is not None:
            settings[KEY + key] = number
    settings |= {KEY + key: number for key, number in zip(ENDS, stops)}
    ends = tokenizer("a")["input_ids"]
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    settings[KEY + "add_bos_token"] = ends != inner and ends[0] == tokenizer.bos_token_id
    settings[KEY + "add_eos_token"] = ends != inner and ends[-1] == tokenizer.eos_token_id
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    return settings | ({TEMPLATE: template} if template else {})


def _type(added: dict[str, Any] | None) -> int:
    return NORMAL if added is None else CONTROL if added["special"] else OWN


def _rule(content: dict[str, Any]) -> str | None:
    """Return llama.cpp's name of the rule by which a tokenizer.json splits text; None if none."""
    normal, before = content["normalizer"], content["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    given = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for name, (form, wanted, whole) in RULES.items():
        plain = [
            {key: value for key, value in step.items() if key != "trim_offsets"} for step in wanted
        ]
        form_is = (normal or {}).get("type") == form
        if given == plain and form_is and content["model"].get("ignore_merges", False) == whole:
            return name
    return None


def _byte_settings(content: dict[str, Any], texts: list[str], types: list[int]) -> dict[str, Any]:
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    if not merges or any(merge.count(" ") != 1 for merge in merges):
        raise ValueError(f"the tokenizer has no merges that a GGUF file can hold{INSTEAD}")
    return {"model": "gpt2", "pre": _rule(content), "merges": merges}


def _piece_settings(content: dict[str, Any], texts: list[str], types: list[int]) -> dict[str, Any]:
    """Return the settings of a SentencePiece BPE, whose scores are the places of its merges."""
    model, normal = content["model"], content["normalizer"] or {}
    steps = normal.get("normalizers", [normal])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = steps == [{"type": "Prepend", "prepend": SPACE}, replace]
    if (
        not model.get("byte_fallback")
        or not (prefix or steps == [replace])
        or content["pre_tokenizer"]
    ):
        raise ValueError(
            "the tokenizer splits text into words by a rule that a GGUF file cannot name; "
            f"{', '.join(RULES)} and SentencePiece's (legacy) can be written{INSTEAD}"
        )
    pairs = [m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"]]
    place: dict[str, float] = {}
    for number, pair in enumerate(pairs):
        place.setdefault("".join(pair), -float(number))
    bytes_ = {f"<0x{n:02X}>" for n in range(256)}
    for i, text in enumerate(texts):
        if types[i] == NORMAL and text in bytes_:
            types[i] = BYTE
        elif text == model.get("unk_token"):
            types[i] = UNKNOWN
    scores = [
        place.get(text, -float(len(pairs) + i)) if types[i] == NORMAL else 0.0
        for i, text in enumerate(texts)
    ]
    again = merges_of({t: s for t, s, k in zip(texts, scores, types) if k == NORMAL})
    if {tuple(p) for p in again} != {tuple(p) for p in pairs} or list(
        dict.fromkeys("".join(p) for p in again)
    ) != list(place):
        raise ValueError(
            "the tokenizer's merges do not follow from scores of its tokens, which is what a GGUF "
            f"file holds of a SentencePiece BPE{INSTEAD}"
        )
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}
