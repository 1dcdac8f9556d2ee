r"""Numbers with a sign, a currency, a multiplier, a percent sign and a unit, read exactly.

`plain_number` reads a whole text ("1,234.50", "-3/4", "2 1/2", "18k", "5 and a half", "18 dozen",
"$18", "25 %", "18 meters") as one exact fraction, in microseconds. A word after a number is a unit
only if it does not change the value: "18 dozen" is 216, and "5 thirds", "5 pi" and "5 or 6" are no
plain numbers.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from posttrain.rewards.rules.answers.characters import plain_characters
from posttrain.rewards.rules.answers.units import (
    CURRENCIES,
    LETTER_UNITS,
    MULTIPLIERS,
    is_known,
    is_unit_word,
    unit_of,
    units_agree,
)

LONGEST_NUMBER = 200


class Number(NamedTuple):
    """An exact number; `percent` is True if it was written with a percent sign."""

    value: Fraction
    percent: bool
    unit: tuple[str, ...] = ()
    """The unit as `answers.units.unit_of` returns it; empty without one."""


# --- markup ---------------------------------------------------------------------------------------

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_TEXT_COMMAND = re.compile(r"\\(?:text\w*|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_INLINE = re.compile(r"(?<!\\)\$([^$]*[^$\\])\$")
_DEGREES = re.compile(r"(?:\^\s*)?(?:\{\s*)?\\(?:circ|degree)\b\s*\}?|°")
_WRAPPED = re.compile(
    r"(?:\*\*|__|`|\"|\$\$?|\\\(|\\\[|\{)\s*(.*?)\s*(?:\*\*|__|`|\"|\$\$?|\\\)|\\\]|\})", re.DOTALL
)
_POWER_OF_TEN = re.compile(
    r"(?<=[\d.}]) ?(?:\\times|\\cdot|×|·|\*|x) ?10 ?"
    r"(?:\^|\*\*) ?(?:\{ ?([-+]?\d{1,3}) ?\}|(-?\d{1,3}))"
)


def _unwrapped(text: str) -> str:
    r"""Remove markup that does not change a number: **x**, $x$, x\%, \text{x}, 1{,}000."""
    text = re.sub(r"\\!\s*", "", text).replace("{,}", ",").replace("\\displaystyle", " ")
    text = re.sub(r"\\[,;: ]|\\q?quad\b", " ", text)
    text = _INLINE.sub(r"\1", text)
    text = _DEGREES.sub(" degrees", _TEXT_COMMAND.sub(r" \1 ", text))
    text = re.sub(r"\s+\^", "^", text)  # \text{ inches}^2
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    text = " ".join(text.split()).removesuffix(".")
    while (match := _WRAPPED.fullmatch(text)) and match[1]:
        text = match[1].removesuffix(".")
    text = " ".join(text.replace("\\$", "$").replace("\\%", "%").split())
    return _POWER_OF_TEN.sub(lambda m: f"e{m[1] or m[2]}", text)


# --- one number -----------------------------------------------------------------------------------

DECIMAL = (
    r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|[1-9]\d{0,2}(?:'\d{3})+"
    r"|[1-9]\d?(?:,\d{2})+,\d{3}|\d+)(?:\.\d*)?|\.\d+"
)
_WORD = r"[^\W\d_]+\.?"
_UNIT_POWER = r"(?:\^\{?[23]\}?)?"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]|(?:minus|negative)\b)? ?(?P<currency>[$€£¥₹]?) ?(?P<inner_sign>[-+]?)"
    rf"(?:(?P<whole>\d+) +(?P<top>\d+)/(?P<bottom>\d+)"
    rf"|(?P<european>[1-9]\d{{0,2}}(?:\.\d{{3}})+,\d+|[1-9]\d{{0,2}}(?:\.\d{{3}}){{2,}})"
    rf"|(?P<comma>0,\d+|\d+,(?:\d{{1,2}}|\d{{4,}}))"
    rf"|(?P<point>\d*\.\d*)(?P<bar>\\overline|\\bar|\\dot|\()"
    rf"(?:\{{ ?)?(?P<repeating>\d+) ?[)}}]?"
    rf"|(?P<numerator>{DECIMAL})"
    rf"(?:(?P<exponent>[eE][-+]?\d{{1,3}})| ?/ ?(?P<denominator>{DECIMAL}))?)"
    r"(?P<ordinal>(?:st|nd|rd|th)\b)?"
    r"(?: ?(?P<percent>%|(?:percent|pct|percentage|per cent)\b))?"
    rf"(?P<unit>(?:[ /-]*(?:{_WORD}|[$€£¥₹])){_UNIT_POWER}"
    rf"(?:[ /-]+{_WORD}{_UNIT_POWER})*)? ?\.?",
    re.IGNORECASE,
)
_FRACTION_TAIL = re.compile(
    r"(\d+) (?:and )(a half|one half|a third|one third|two thirds|a quarter|one quarter"
    r"|three quarters|a fourth|one fourth|three fourths|\d+/\d+)\b",
    re.IGNORECASE,
)
_TAILS = {
    "half": "1/2",
    "third": "1/3",
    "quarter": "1/4",
    "fourth": "1/4",
    "two thirds": "2/3",
    "three quarters": "3/4",
    "three fourths": "3/4",
}


def plain_number(text: str, *, letters: bool = False, comma: bool = False) -> Number | None:
    """Read a text as one number with an optional sign, currency, percent sign and unit.

    Args:
        text: An answer such as "1,234.50", "-3/4", "2 1/2", "$18", "25%", "18 dollars", "1e-7".
        letters: Whether a single letter may be a unit: "5 m" may be a product as well.
        comma: Whether "2,74" is 2.74; else it may be a list, and only "0,74" is a number.

    Returns:
        The exact number; None if `text` is anything else, such as a formula, a list or words.
    """
    text = text.strip()
    if len(text) > LONGEST_NUMBER or ".." in text:
        return None
    if text.isascii() and text.isdigit():  # the common case, without the regular expression
        return Number(Fraction(int(text)), False)
    text = _FRACTION_TAIL.sub(_mixed, plain_characters(text))
    match = None if "$" in text[1:] else _NUMBER.fullmatch(text)
    match = match or _NUMBER.fullmatch(_FRACTION_TAIL.sub(_mixed, _unwrapped(text)))
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    if match["comma"] and not (comma or match["comma"].startswith("0,")):
        return None
    scaled = _scale_and_unit(match["unit"], letters)
    value = _value(match)
    if scaled is None or value is None or (match["ordinal"] and match["percent"]):
        return None
    scale, unit = scaled
    if match["currency"]:
        unit = CURRENCIES[match["currency"]]
    signs = ((match["sign"] or "").casefold(), match["inner_sign"])
    negative = any(sign in ("-", "minus", "negative") for sign in signs)
    return Number((-1 if negative else 1) * value * scale, bool(match["percent"]), unit)


def _mixed(match: re.Match[str]) -> str:
    words = match[2].casefold()
    words = words.removeprefix("a ").removeprefix("one ")
    return f"{match[1]} {_TAILS.get(words, words)}"


def _value(match: re.Match[str]) -> Fraction | None:
    """Return the value of the digits that `_NUMBER` matched, without their sign."""
    if match["whole"]:
        bottom = int(match["bottom"])
        return int(match["whole"]) + Fraction(int(match["top"]), bottom) if bottom else None
    if match["european"]:
        return _decimal(match["european"].replace(".", "").replace(",", "."))
    if match["comma"]:
        return _decimal(match["comma"].replace(",", "."))
    if match["repeating"]:
        if match["point"] == ".":
            return None
        places = len(match["point"].partition(".")[2])
        period = Fraction(int(match["repeating"]), 10 ** len(match["repeating"]) - 1)
        return _decimal(match["point"]) + period * Fraction(1, 10**places)
    value = _decimal(match["numerator"] + (match["exponent"] or ""))
    if match["denominator"]:
        divisor = _decimal(match["denominator"])
        return value / divisor if divisor else None
    return value


def _decimal(digits: str) -> Fraction:
    digits = digits.replace(",", "").replace(" ", "").replace("'", "")
    return Fraction(int(digits)) if digits.isdigit() else Fraction(digits)


def _scale_and_unit(text: str | None, letters: bool) -> tuple[int, tuple[str, ...]] | None:
    """Return the multiplier and the unit that a text after a number stands for, None if neither."""
    if not text:
        return 1, ()
    scale = 1
    attached = not text.startswith((" ", "-"))
    words = re.findall(r"[^\W\d_]+(?:\^\{?[23]\}?)?|[$€£¥₹/]", text)
    if attached and words[0] in ("k", "K", "M", "B"):  # 18k, but 18 K may be kelvin
        scale = MULTIPLIERS[words.pop(0).casefold()]
    elif attached and not (is_known(words[0]) or words[0].casefold() in MULTIPLIERS):
        return None  # 5abc
    while words and len(words[0]) > 1 and words[0].casefold() in MULTIPLIERS:
        scale *= MULTIPLIERS[words.pop(0).casefold()]
    if len(words) == 1 and words[0] in LETTER_UNITS and not letters:
        return None
    if not all(is_unit_word(word) for word in words):
        return None
    return scale, unit_of(words)


# --- two numbers ----------------------------------------------------------------------------------


def same_number(
    gold: Number, answer: Number, *, units: bool = True, tolerance: float = 0.0
) -> bool:
    """Whether an answer is the reference.

    Units are compared if both have one, after conversion (180 cm is 1.8 m), unless `units` is
    False. A percent sign on one side only: 25 % is 25 for a reference of 25 or 25 %, and always
    0.25. A bare reference of at most 1 is a share, so that 0.25 is 25 % and not 0.25 %.
    """
    scale = Fraction(1)
    if units and gold.unit and answer.unit:
        factor = units_agree(gold.unit, answer.unit)
        if factor is None:
            return False
        scale = factor
    value = answer.value * scale
    if gold.percent == answer.percent:
        return _close(gold.value, value, tolerance)
    if gold.percent:
        return any(_close(v, value, tolerance) for v in (gold.value, gold.value / 100))
    values = (value / 100, value) if abs(gold.value) > 1 else (value / 100,)
    return any(_close(gold.value, v, tolerance) for v in values)


def _close(gold: Fraction, value: Fraction, tolerance: float) -> bool:
    if gold == value or not tolerance:
        return gold == value
    return abs(gold - value) <= Fraction(tolerance) * abs(gold)
