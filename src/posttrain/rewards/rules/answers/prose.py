"""Numbers in prose: the last one of a text, or the one that a line begins with.

Such a number is an answer only if it stands alone, and if the words around it leave it as it is.
"""

import re

from posttrain.rewards.rules.answers.characters import plain_characters
from posttrain.rewards.rules.answers.numbers import DECIMAL, Number, plain_number
from posttrain.rewards.rules.answers.units import (
    LETTER_UNITS,
    MULTIPLIERS,
    VALUE_WORDS,
    is_unit_word,
    words_of,
)

# --- the last number of a text --------------------------------------------------------------------

_LAST_NUMBER = re.compile(
    rf"[$€£¥₹]?(?:(?:\d+ +)?\d+/\d+(?![\d/]|\.\d)|(?:{DECIMAL})/\d+(?![\d/]|\.\d)"
    rf"|\d+,\d{{1,2}}(?!\d|,\d)|{DECIMAL})"
)
_QUOTED = re.compile(r"[\"'“‘]([-+$€£¥₹]?\d[^\"'“”‘’\n]{0,40})[\"'”’]")
_EMPHASIS = re.compile(r"\*\*|__|`")
# Markup tags, special tokens and the calculator's annotations of GSM8K: <<9*2=18>>.
_TAG = re.compile(r"<<[^<>\n]{0,99}>>|</?[A-Za-z_][\w-]{0,30}>|<\|\w{1,30}\|>")
_ALONE_BEFORE = re.compile(r"(?:^|[^\w.,:/^%!)}\]-])[-+]?[$€£¥₹]?$")
_JOINING = (
    r"(?:or|and|to|through|till|until|versus|vs|either|maybe|perhaps|possibly|out of"
    r"|times|plus|minus|over|mod|choose|divided by|multiplied by)"
)
# What stands between two numbers that are one range, list, choice, share or calculation.
_JOINED = re.compile(
    rf"[%°]?[^\W\d_]*\s*(?:[^\W\d_]+\s+){{0,3}}?"
    rf"(?:(?:[,;]\s*)?(?:{_JOINING}\b[\s,]*)+|[,;]\s*|[-+*/x×÷·^:–—~&]\s*|\s*\.{(2,)}\s*|…)(?:an?\s+|the\s+)?[$€£¥₹]?-?"
    r"|%? of (?:the )?| in ",
    re.IGNORECASE,
)
# What stands before a number or formula that is not the answer itself: a negation, a bound, a
# function or a share of it, a label (step 5), an operator, a power.
_ALTERED = re.compile(
    r"(?:(?:\b(?:not|never|cannot)|n't|n’t)(?:\s+[^\W\d_]+){0,2}"
    r"|\b(?:neither|nor|negative|minus"
    r"|(?:less|more|greater|fewer|larger|smaller) than(?: or equal to)?"
    r"|at least|at most|up to|over|under|below|above|exceeds?|half|twice|double|triple|root|base"
    r"|mod|modulo|log|sqrt|or|than|without|except|to the power|(?:any|every|no)thing but|all but"
    r"|(?:hal(?:f|ves)|[a-z]+th|thirds?|quarters?|[a-z]+ths|percent|dozens?|multiples?|factors?"
    r"|factorial|powers?|root|square|cube|sum|product|difference|reciprocal|inverse|opposite) of)"
    r"|\b(?:step|question|problem|part|case|example|option|line|page|chapter|section|figure|table"
    r"|equation|number|no\.|theorem|exercise|grade)"
    r"|\#|% of|[a-z]\(|[\^_]\{?|(?:\b[b-z]|\)|\|) ?[-+*/×÷^] ?|[<>≤≥≠±~√|&])\s*[$€£¥₹]?$",
    re.IGNORECASE,
)
# Before a number that is an answer itself, so that "= 6" after it is false: "So 5 = 6".
_STATED = re.compile(
    r"(?:^|[.,:;=]|\b(?:so|is|that|thus|therefore|hence|then|get|have))\s*$", re.IGNORECASE
)
_NEGATIVE = re.compile(r"\b(?:negative|minus)\s*[$€£¥₹]?$", re.IGNORECASE)
_SPACED_MINUS = re.compile(
    r"(?:=|\b(?:is|are|equals?|was|be|gives?|gets?|have|has))\s*-\s+[$€£¥₹]?$"
)


def _bare(text: str) -> str:
    """Return a text in plain characters, without emphasis and without quotes around numbers."""
    return _QUOTED.sub(r"\1", _EMPHASIS.sub("", plain_characters(text)))


def last_number(text: str, *, letters: bool = False) -> Number | None:
    """Return the last number in a text, or None if that number does not stand alone.

    `letters` as for `plain_number`, of letters that are attached: 5m; in prose "5 m" is 5 metres.

    It does not if it is part of a word (H2O), a time, a date, a range, a list, a choice ("5 or 6")
    or a calculation, or if the words around it change its value ("not 5", "5 squared").
    """
    text = _TAG.sub(" ", _bare(text[-2000:]))
    text = re.sub(r"(?<!\S)\$(?!\S)", " ", text)
    matches = [m for m in _LAST_NUMBER.finditer(text) if not _is_unit_power(text[: m.start()])]
    if not matches:
        return None
    match, start = matches[-1], matches[-1].start()
    before = text[max(0, start - 60) : start]
    previous = matches[-2] if len(matches) > 1 else None
    between = text[previous.end() : start] if previous else "\n"
    equated = between.strip(" $+-") in ("=", "≈") and previous and "/" not in previous[0]
    if previous and equated and _STATED.search(text[: previous.start()]):
        return None  # 5 = 6; but 12/2 = 6
    if _JOINED.fullmatch(between[:80]) or not between.strip(" "):
        return None
    negative = _NEGATIVE.search(before)
    before = before[: negative.start()] + " " if negative else before
    unsigned = before.rstrip("$€£¥₹+-")
    signed = "-" in before[len(unsigned) :] or negative
    if not _ALONE_BEFORE.search(before[-4:]) or is_altered(unsigned):
        return None
    if signed and unsigned.rstrip().endswith(("-", "–")):
        return None  # - -5
    end = match.end() - (match[0][-1] == ".")
    after = _what_follows(text[end:], letters)
    if after is None:
        return None
    minus = signed or _SPACED_MINUS.search(before)
    currency = re.search(r"[$€£¥₹]$", before)
    return plain_number(
        f"{'-' if minus else ''}{currency[0] if currency else ''}{text[start:end]}{after}",
        letters=True,
        comma=True,
    )


def is_altered(before: str) -> bool:
    """Whether the words before a number or formula change it or say that it is not the answer."""
    return _ALTERED.search(before[-60:]) is not None


_AT_START = re.compile(
    rf"[-+]? ?[$€£¥₹]? ?-?(?:\d+ +\d+/\d+|\d+,\d{{1,2}}(?!\d|,\d)"
    rf"|(?:{DECIMAL})(?:/\d+(?![\d/]|[.,]\d))?)"
)
_NAME = re.compile(r"[A-Za-z](?:_\w+)?\s*=\s*(?=[-+$€£¥₹\d.])")
_GOES_ON = re.compile(
    r"\s*(?:[-–+*/=^:\\{_\d≈<>≤≥]|\|\s*\S|(?:or|and|to)\b|[,;]\s*(?:or\b|and\b|[^\sA-Za-z]|[A-Za-z]\b)|\((?![A-Za-z]{3})"
    r"|\((?:in )?(?:base|binary|octal|hex|mod))",
    re.IGNORECASE,
)


def number_at_start(line: str, *, letters: bool = False) -> tuple[Number, int] | None:
    """Return the number that a line begins with, and where it ends.

    `letters` as for `last_number`. None if there is none, or if what follows it changes it or goes
    on with it.
    """
    text = _NAME.sub("", _bare(line).lstrip(), count=1)
    match = _AT_START.match(text)
    if match is None:
        return None
    end = match.end() - (match[0][-1] == ".")
    after = _what_follows(text[end:], letters)
    rest = end + len(after or "")
    joined = _JOINED.match(text, rest)
    if (
        after is None
        or _GOES_ON.match(text, rest)
        or (joined and text[joined.end() :][:1].isdigit())
    ):
        return None
    number = plain_number(text[:end] + after, letters=True, comma=True)
    return None if number is None else (number, rest)


def _is_unit_power(before: str) -> bool:
    """Whether what follows a text is the power of a unit: 5 m^2."""
    match = re.search(r"\d ?([^\W\d_]+)\^\{?$", before[-20:])
    return match is not None and is_unit_word(match[1])


_FOLLOWING = re.compile(
    r"(?P<attached>(?: ?%)?(?:[^\W\d_]+(?:\^\{?[23]\}?)?)?)"
    r"(?P<words>(?:[ /-][^\W\d_]+(?:\^\{?[23]\}?)?){0,4})"
)
# After a number in prose these begin something else: 5 more than, 5 of them, 5 because.
_PROSE = words_of(
    """
    more less fewer times to of on in at by and but as so because if when for from with over than or
    is are was were
    """
)
_CHANGES = re.compile(
    r"[!^_*\\√×÷<>±]|/(?![a-z]{2})|-(?=[\d(\\])|\((?=[a-z\d])"
    r"| (?:is|was|are|were) (?:wrong|false|incorrect|impossible)"
    r"| (?:is|was|are|were)(?: not|n't) (?:an?|the|it|right|correct|true|possible)\b"
    r"| (?:[*/×÷^+√±\\<>≤≥≈]|(?:and|or) (?:more|less|so|{numerals})\b|in (?:base|binary|octal|hex)"
    r"|times (?:[b-z]\b|{numerals}\b)|to the )".replace(
        "{numerals}", "(?:" + "|".join(VALUE_WORDS) + ")"
    ),
    re.IGNORECASE,
)
_SURE_LETTERS = {"g", "h", "l", "L"}  # in prose; 5m may be millions, and 5s several fives
# What may come directly after a number and its unit.
_ENDS = re.compile(r"$|\s|\.(?![\d.])|,(?!\d)|:(?!\d)|[;?)\]}\"|$€£¥₹%/=–—-]")


_AND_A_HALF = re.compile(
    r" and (?:(?:a|one|two|three) (?:half|thirds?|quarters?|fourths?|fifths?|eighths?|tenths?)\b"
    r"|\d+/\d+)",
    re.IGNORECASE,
)


def _changes_value(word: str, before: list[str]) -> bool:
    """Whether a word changes the number before it: dozen, hundred thousand, thirds, per mille."""
    direct = all(other.casefold() in MULTIPLIERS or other == "per" for other in before)
    return direct and (word in MULTIPLIERS or word in VALUE_WORDS)


def _what_follows(text: str, letters: bool) -> str | None:
    """Return the multiplier and unit at the start of a text; None if it changes the number."""
    if tail := _AND_A_HALF.match(text):
        return tail[0]
    match = _FOLLOWING.match(text)
    assert match is not None
    if _CHANGES.match(text, match.end("attached")) or not _ENDS.match(text, match.end("attached")):
        return None
    attached = match["attached"]
    if attached in LETTER_UNITS - _SURE_LETTERS and not letters:
        return None
    kept: list[str] = []
    for word in match["words"].replace("-", " ").replace("/", " per ").split():
        lower = word.casefold()
        if lower in ("below", "minus", "short"):
            return None
        if lower in _PROSE or (kept and not is_unit_word(word) and not _changes_value(lower, kept)):
            break
        kept.append(word)
    if attached in ("st", "nd", "rd", "th"):
        return ""
    return " ".join([attached, *kept])
