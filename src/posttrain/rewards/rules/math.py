r"""Whether a completion's final answer is mathematically equal to the reference answer.

1. `final_answer` extracts one answer from the text: the last `#### x` line (GSM8K), else the last
   `\boxed{x}`, else what follows the last `A:`, `Answer:` or "the answer is", else the whole text.
2. Two plain numbers ("1,234.50", "$18", "25 %", "-3/4", "18 dollars") are compared as exact
   fractions, in this process, in microseconds. 2 equals 2.0; 0.333333 does not equal 1/3.
3. Everything else goes to math-verify in a process that can be killed (`math_worker`).

Two rules are deliberately lenient. Units are not compared ("18 dollars" equals "18 cents"). If the
reference is a number, a completion without a marker is judged by its last number, like lm-eval's
flexible-extract; so a text that merely ends with the right number counts as correct.

Only the last `TAIL` characters of a text are read, since a final answer is at the end.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from posttrain.rewards.base import Reward, RewardConfig, each_row_alone
from posttrain.rewards.rules.math_worker import VERDICTS, compare
from posttrain.rewards.score import Score

__all__ = [
    "VERDICTS",
    "Answer",
    "MathCorrectness",
    "Number",
    "build",
    "check",
    "final_answer",
    "formatted_answer",
    "last_number",
    "plain_number",
    "verdicts",
]

TAIL = 20_000
LONGEST_ANSWER = 2_000
LONGEST_NUMBER = 200


class Answer(NamedTuple):
    """An answer found in a text; `marked` is False if no answer marker precedes it."""

    text: str
    marked: bool


class Number(NamedTuple):
    """An exact number; `percent` is True if it was written with a percent sign."""

    value: Fraction
    percent: bool


# --- finding the answer ---------------------------------------------------------------------------

_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S[^\n]*)", re.MULTILINE)
_MARKER = re.compile(
    r"^[*#>_ \t-]*(?:A|(?i:(?:(?:the|my|final|correct)[ \t]+)*answer))[*_ \t]*:[*_]*"
    r"|(?i:\b(?:the|my)\s+(?:(?:final|correct)\s+)?answer\s+is\b\s*:?)",
    re.MULTILINE,
)
_BOXED = re.compile(r"\\boxed\s*\{")
# What may separate two boxes that form one answer: x = \boxed{1} and y = \boxed{2}.
_JOINT = re.compile(
    r"(?:\\text\{[^{}]*\b(?:and|or)\b[^{}]*\}|\\q?quad\b|\b(?:and|or)\b"
    r"|[A-Za-z](?:_\{?\w+\}?)?\s*=|[\s$,;.&()\[\]\\])*+"
)
_PROSE = re.compile(r"[^\W\d_]{2,} ")
_SENTENCE_END = re.compile(r"[.?](?=\s|$)")


def final_answer(text: str) -> Answer:
    r"""Return the final answer of a text.

    Args:
        text: A completion or a reference solution.

    Returns:
        The answer after the last marker, where a `####` line takes precedence over a `\boxed` and
        that over an answer line; the whole text, with `marked=False`, if there is no marker. An
        answer that begins with prose has `marked=False` too.
    """
    text = text[-TAIL:].strip()
    formatted = formatted_answer(text)
    if formatted is not None:
        return Answer(formatted, True)
    for match in reversed(list(_MARKER.finditer(text))):
        rest = text[match.end() :].lstrip(" \t*_\n").split("\n", 1)[0]
        rest = re.sub(r"\*\*(?=\W|$)", "", rest).strip()
        if rest:
            # "Answer: she makes 18" marks where the answer is, not what it is.
            statement = _first_statement(rest)
            return Answer(statement, not _PROSE.match(statement))
    return Answer(text, False)


def formatted_answer(text: str) -> str | None:
    r"""Return the answer of the last `#### x` line, else of the last `\boxed{x}`, else None."""
    text = text[-TAIL:].strip()
    if "####" in text:
        lines = list(_HASHES.finditer(text))
        for match in reversed(lines):
            # "#### Step 2" is a Markdown heading, not an answer.
            if match.end() == len(text) or plain_number(match[1]) is not None:
                return match[1].strip()
    return (_last_boxed(text) or None) if "\\boxed" in text else None


def _first_statement(line: str) -> str:
    """Return the formula or number that `line` begins with, or the whole line if there is none."""
    formula = re.match(r"(\$\$?|\\\(|\\\[)(.+?)(?<!\\)(\$\$?|\\\)|\\\])(?!\d)", line)
    if formula and not formula[2].endswith(" "):
        return formula[0]
    end = _SENTENCE_END.search(line)
    if end and plain_number(line[: end.start()]) is not None:
        return line[: end.start()]
    return line


def _last_boxed(text: str) -> str:
    """Return the content of the last balanced box, joined to the boxes that it continues."""
    parts: list[str] = []
    following = -1
    for match in reversed(list(_BOXED.finditer(text))):
        end = _closing_brace(text, match.end())
        if end is None:
            continue
        if parts and not (end < following and _JOINT.fullmatch(text, end + 1, following)):
            break
        following = match.start()
        content = text[match.end() : end].strip()
        if content and content not in parts:
            parts.insert(0, content)
    return ", ".join(parts)


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start, start + LONGEST_ANSWER):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


# --- plain numbers --------------------------------------------------------------------------------

_DECIMAL = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?(?P<currency>[$€£¥₹]?) ?(?P<inner_sign>[-+]?)"
    rf"(?:(?P<whole>\d+) +(?P<top>\d+)/(?P<bottom>\d+)"
    rf"|(?P<numerator>{_DECIMAL})"
    rf"(?:(?P<exponent>[eE][-+]?\d{{1,3}})| ?/ ?(?P<denominator>{_DECIMAL}))?)"
    r"(?: ?(?P<percent>%|(?:percent|pct|percentage)\b))?"
    r"(?P<unit>(?:[ /-]*(?:[^\W\d_]+\.?|[$€£¥₹]))(?:\^\{?\d\}?|[²³])?"
    r"(?:[ /-]+[^\W\d_]+(?:\^\{?\d\}?|[²³])?)*)? ?\.?"
)
_SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
# Words that change the value, so that the text is more than a number with a unit.
_NOT_UNITS = (
    {"sqrt", "sin", "cos", "tan", "log", "exp"}
    | {"half", "halves", "squared", "cubed", "factorial", "trillion", "infinity", "undefined"}
    | {"not", "none", "more", "less", "plus", "minus"}
)
_LETTER_ALONE = {"m", "g", "l", "s", "h"}  # "5 m" may be a product
_SHORT_UNITS = (
    {"mm", "cm", "km", "ft", "yd", "mi", "mg", "kg", "lb", "oz", "ml", "ms", "hr", "am", "pm"}
    | {"a", "an", "in", "of", "on", "at", "by", "to"}
    | _LETTER_ALONE
)

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_TEXT_COMMAND = re.compile(r"\\(?:text\w*|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^?\s*\{?\s*\\(?:circ|degree)\s*\}?|°")
_WRAPPED = re.compile(
    r"(?:\*\*|__|`|\"|\$\$?|\\\(|\\\[|\{)\s*(.*?)\s*(?:\*\*|__|`|\"|\$\$?|\\\)|\\\]|\})", re.DOTALL
)
_SPACES = str.maketrans(dict.fromkeys("\u00a0\u2007\u2009\u202f~", " ") | {"−": "-", "–": "-"})


def _unwrapped(text: str) -> str:
    r"""Remove markup that does not change a number: **x**, $x$, x\%, \text{x}, 1{,}000."""
    text = re.sub(r"\\!\s*", "", text.translate(_SPACES)).replace("{,}", ",")
    text = re.sub(r"\\[,;: ]", " ", text)
    text = _DEGREES.sub("", _TEXT_COMMAND.sub(r" \1 ", text))
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    text = " ".join(text.split()).rstrip(".")
    while (match := _WRAPPED.fullmatch(text)) and match[1]:
        text = match[1]
    return " ".join(text.replace("\\$", "$").replace("\\%", "%").split())


def plain_number(text: str) -> Number | None:
    """Read a text as one number with an optional sign, currency, percent sign and unit.

    Args:
        text: An answer such as "1,234.50", "-3/4", "2 1/2", "$18", "25%", "18 dollars", "1e-7".

    Returns:
        The exact number; None if `text` is anything else, such as a formula, a list or words.
    """
    text = text.strip()
    if len(text) > LONGEST_NUMBER:
        return None
    if text.isascii() and text.isdigit():  # the common case, without the regular expression
        return Number(Fraction(int(text)), False)
    match = _NUMBER.fullmatch(text) or _NUMBER.fullmatch(_unwrapped(text))
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    scale = _unit_scale(match["unit"])
    if scale is None:
        return None
    if match["whole"]:
        bottom = int(match["bottom"])
        value = int(match["whole"]) + Fraction(int(match["top"]), bottom) if bottom else None
    else:
        value = _decimal(match["numerator"] + (match["exponent"] or ""))
        if match["denominator"]:
            divisor = _decimal(match["denominator"])
            value = value / divisor if divisor else None
    if value is None:
        return None
    sign = -1 if "-" in (match["sign"], match["inner_sign"]) else 1
    return Number(sign * value * scale, bool(match["percent"]))


def _decimal(digits: str) -> Fraction:
    digits = digits.replace(",", "").replace(" ", "")
    return Fraction(int(digits)) if digits.isdigit() else Fraction(digits)


def _unit_scale(unit: str | None) -> int | None:
    """Return 1 for a unit, a power of ten for "million" and the like, None for anything else."""
    scale = 1
    words = re.findall(r"[^\W\d_]+", (unit or "").casefold())
    if unit and len(words) == 1 and words[0] in _LETTER_ALONE:
        return None
    for index, word in enumerate(words):
        if word in _SCALE and index == 0:
            scale = _SCALE[word]
        elif word in _NOT_UNITS or word in _SCALE or (len(word) < 3 and word not in _SHORT_UNITS):
            return None
    return scale


def _same(gold: Number, answer: Number) -> bool:
    """Whether two numbers are equal; "25%" equals "25" and "0.25", since references vary in it."""
    if gold.percent == answer.percent:
        return gold.value == answer.value
    percent, other = (gold, answer) if gold.percent else (answer, gold)
    return other.value in (percent.value, percent.value / 100)


# --- the verdict ----------------------------------------------------------------------------------

_LATEX = re.compile(r"\\[A-Za-z(\[]|(?<![\\\d])\$(?=\S)[^$\n]*[^\s$\\]\$(?!\d)")
_LAST_NUMBER = re.compile(
    r"(?<![\w.,)])-?[$€£¥₹]?\d+,\d{1,2}(?![\d,])%?|"  # a decimal comma: 2,74
    r"(?<![\w.)])-?[$€£¥₹]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+(?!\.?\d))?%?"
    r"|\d+(?:\.\d+)?%?"
)


def last_number(text: str) -> Number | None:
    """Return the last number in a text."""
    numbers = _LAST_NUMBER.findall(text)
    return plain_number(re.sub(r",(\d{1,2}%?)$", r".\1", numbers[-1])) if numbers else None


@lru_cache(maxsize=1 << 14)
def _reference(gold: str) -> tuple[str, Number | None]:
    answer = final_answer(gold).text
    return answer, plain_number(answer)


def check(completion: str, gold: str, *, timeout: float = 5.0) -> str:
    r"""Return the verdict of one completion.

    Args:
        completion: The model's text.
        gold: The reference: a number, LaTeX, `\boxed{...}`, or a solution ending in `#### x`.
        timeout: Limit of one symbolic comparison, in seconds of CPU time. Plain numbers need none.

    Returns:
        One of `VERDICTS`. "unparseable_gold" means that the reference is empty or unreadable, so
        that the completion cannot be judged; it takes precedence over the others.

    Raises:
        RuntimeError: The worker process cannot start.
    """
    gold_text, gold_number = _reference("" if gold is None else str(gold))
    if not gold_text or len(gold_text) > LONGEST_ANSWER:
        return "unparseable_gold"
    answer, marked = final_answer(completion)
    if gold_number is not None:
        number = plain_number(answer)
        if number is None and not marked and not _LATEX.search(answer):
            number = last_number(answer)
            if number is None:
                return "unparseable_prediction"
        if number is not None:
            return "correct" if _same(gold_number, number) else "wrong"
        if not answer:
            return "unparseable_prediction"
        percent = "\\%" if gold_number.percent else ""
        gold_text = f"{gold_number.value}{percent}"  # without the unit, which is not compared
    if not marked:
        answer = answer[-LONGEST_ANSWER:]
    elif len(answer) > LONGEST_ANSWER:
        answer = ""  # unreadable, but the worker still checks whether the reference is readable
    return compare(gold_text, answer, whole_text=not marked, timeout=timeout)


def verdicts(
    completions: Sequence[str], golds: Sequence[str], *, timeout: float = 5.0
) -> list[str]:
    """Return the verdict of every completion against the gold at the same position.

    Raises:
        ValueError: The two sequences differ in length.
    """
    return [check(c, g, timeout=timeout) for c, g in zip(completions, golds, strict=True)]


class MathCorrectness(RewardConfig):
    """Settings of the math reward."""

    type: Literal["math_correctness"] = "math_correctness"
    positive: float = 1.0
    """Score of a correct completion."""
    negative: float = 0.0
    """Score of any other completion."""
    timeout: float = 5.0
    """Limit of one symbolic comparison, in seconds of CPU time."""


def build(config: MathCorrectness) -> Callable[..., list[float | None]]:
    """Return the reward function, `reward(prompts, completions, completion_ids, *, answer, ...)`.

    A correct answer scores `positive`. A wrong answer, an unreadable one and a timeout score
    `negative`, each with its own verdict. A row whose reference cannot be read gives None (not
    applicable), as no score would be fair. Call `verdicts` to count such rows before training.
    """

    @each_row_alone
    def reward(
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Sequence[Any],
        *,
        answer: Sequence[str],
        **columns: Any,
    ) -> list[float | None]:
        return [
            None
            if verdict == "unparseable_gold"
            else Score(config.positive if verdict == "correct" else config.negative, verdict)
            for verdict in verdicts(completions, answer, timeout=config.timeout)
        ]

    return reward


REWARD = Reward(MathCorrectness, build)
