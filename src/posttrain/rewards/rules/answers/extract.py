r"""Where the final answer of a text is.

The last marker in the text counts: a line `#### x` (GSM8K), a closed `\boxed{x}` (or `\fbox{x}`),
`<answer>x</answer>`, a line "Answer: x" or "Final answer: x", or "the answer is x". Boxes that only
"and", "or", commas or the like separate are one answer. A text without a marker is an answer as a
whole.

Only the last `TAIL` characters of a text are read, since a final answer is at the end; every
function here takes time linear in them.
"""

import re
from typing import NamedTuple

from posttrain.rewards.rules.answers.characters import REORDERING
from posttrain.rewards.rules.answers.numbers import Number, plain_number
from posttrain.rewards.rules.answers.prose import last_number, number_at_start

TAIL = 20_000
LONGEST_ANSWER = 2_000


class Answer(NamedTuple):
    """An answer found in a text."""

    text: str
    marked: bool
    """Whether an answer marker precedes it."""
    formatted: bool = False
    """Whether it is all that a box, a `####` line or a pair of answer tags holds."""


_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S[^\n]*)", re.MULTILINE)
_MARKER = re.compile(
    r"^[*#>_ \t-]*(?P<line>A|(?i:(?:(?:the|my|final|correct)[ \t]+)*answer))[*_ \t]*:[*_]*"
    r"|(?P<inline>(?i:\bfinal[ \t]+answer))[*_ \t]*[:=][*_]*"
    r"|^[*#>_ \t-]*(?P<heading>(?i:final[ \t]+answer))[*_ \t]*$"
    r"|(?i:\b(?:the|my)\s+(?:(?:final|correct)\s+)?answer\s+is\b\s*:?)",
    re.MULTILINE,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
# What may separate two boxes that form one answer: x = \boxed{1} and y = \boxed{2}.
_JOINT = re.compile(
    r"(?:\\text\{(?=[^{}]*\})[^{}]*\b(?:and|or)\b[^{}]*\}|\\q?quad\b"
    r"|\b(?:and|or|maybe|perhaps|possibly|also|either|else)\b"
    r"|[A-Za-z](?:_\{?\w+\}?)?\s*=|[\s$,;./|&()\[\]\\])*+"
)
_PROSE = re.compile(r"[^\W\d_]{2,} ")
_SENTENCE_END = re.compile(r"[.?](?=\s|$)")
# What goes on with the answer after a formula: "$5$ or $6$", "$5$, maybe 6".
_CONTINUED = re.compile(
    r"\s*(?:[-–+*/=^]|,?\s*(?:or|and|to)\b|[,;]\s*[^\sA-Za-z]|,\s*[a-z]\b)", re.IGNORECASE
)
_HEDGED = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|actually|wait|instead|alternatively|otherwise)\b|\bno,",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"(?:no|or|hmm|wait|actually|maybe|perhaps|alternatively|possibly)\b(?! doubt)", re.IGNORECASE
)
_STATEMENT = re.compile(r"\s*(?:[-+$\\(\[{\d.€£¥₹]|[A-Za-z]\b(?!['’])|[A-Za-z_]\w*\s*=)")


def final_answer(text: str) -> Answer:
    r"""Return the final answer of a text.

    Args:
        text: A completion or a reference solution.

    Returns:
        What follows the last marker; the whole text, with `marked=False`, if there is no marker.
        An answer that begins with prose has `marked=False` too. After a box or a `####` line, "the
        answer is" and "A:" count only if a number or a formula follows.
    """
    text = text[-TAIL:].strip()
    formatted, position = _formatted(text)
    for match in reversed(list(_MARKER.finditer(text))):
        if match.start() < position:
            break
        rest = text[match.end() :].lstrip(" \t*_\n").split("\n", 1)[0]
        rest = re.sub(r"\*\*(?=\W|$)", "", rest).strip()
        named = match["heading"] or match["inline"]
        sure = named or match["line"] not in (None, "A")
        if rest and (formatted is None or sure or _STATEMENT.match(rest)):
            # "Answer: she makes 18" marks where the answer is, not what it is.
            statement = _first_statement(rest)
            return Answer(statement, not _PROSE.match(statement))
    return Answer(text, False) if formatted is None else Answer(formatted, True, True)


def formatted_answer(text: str) -> str | None:
    r"""Return the answer of the last `#### x` line or `\boxed{x}`; None if there is neither."""
    return _formatted(text[-TAIL:].strip())[0]


def _formatted(text: str) -> tuple[str | None, int]:
    """Return the last formatted answer and where it ends."""
    answer, end = _last_boxed(text) if "\\boxed" in text or "\\fbox" in text else ("", -1)
    for match in reversed(list(_HASHES.finditer(text)) if "####" in text else []):
        # "#### Step 2" is a Markdown heading, not an answer; "#### \\boxed{18}" is a box.
        if match.end() < end or match.start() < end <= match.end():
            break
        if match.end() == len(text) or plain_number(match[1]) is not None:
            answer, end = match[1].strip(), match.end()
            break
    closing = text.rfind("</answer>")
    opening = text.rfind("<answer>", 0, max(closing, 0))
    if opening > end and (content := text[opening + len("<answer>") : closing].strip()):
        answer, end = content, closing
    return (answer, end) if answer else (None, -1)


def _first_statement(line: str) -> str:
    """Return the formula or number that `line` begins with, or the whole line if there is none."""
    formula = re.match(r"(\$\$?|\\\(|\\\[)(.+?)(?<!\\)(\$\$?|\\\)|\\\])(?!\d)", line)
    if formula and not formula[2].endswith(" "):
        rest = line[formula.end() : formula.end() + LONGEST_ANSWER]
        # Words after a number may be a unit or change it: $18$ dozen.
        more = re.match(r"\s*\w", rest) and plain_number(formula[2]) is not None
        return line if more or _CONTINUED.match(rest) or is_hedged(rest) else formula[0]
    end = _SENTENCE_END.search(line)
    if end and plain_number(line[: end.start()], comma=True) and not is_hedged(line[end.end() :]):
        return line[: end.start()]
    return line


def is_hedged(text: str) -> bool:
    """Whether the rest of a line takes back the answer before it or offers another one."""
    sentence, *others = re.split(r"[.!?]\s+", text[:LONGEST_ANSWER])
    return bool(_HEDGED.search(sentence)) or any(map(_TAKEN_BACK.match, others))


def leading_number(line: str, *, letters: bool = False) -> Number | None:
    """Return the number that an answer line begins with: "18 eggs, because 9 * 2 = 18".

    None if there is none, if what follows changes it, and if the line hedges.
    """
    text = _FORMULA.sub(lambda m: next(g for g in m.groups() if g), line[:LONGEST_ANSWER])
    found = number_at_start(text, letters=letters)
    return None if found is None or is_hedged(text[found[1] :]) else found[0]


def _last_boxed(text: str) -> tuple[str, int]:
    """Return the content of the last closed box, joined to the boxes that it continues.

    Also where the last closed box ends, -1 if there is none with a content.
    """
    parts: list[str] = []
    following = last = -1
    for start, content_start, end in reversed(_boxes(text)):
        if parts and not (end < following and _JOINT.fullmatch(text, end + 1, following)):
            break
        following = start
        content = text[content_start:end].strip()
        last = max(last, end)
        if content and not any(_alike(content, part) for part in parts[:9]):
            parts.insert(0, content)
    return ", ".join(parts), last


def _alike(one: str, other: str) -> bool:
    """Whether two boxes hold the same text or the same number: 2 1/2 and 2.5 are one answer."""
    numbers = plain_number(one), plain_number(other)
    return one == other or (numbers[0] is not None and numbers[0] == numbers[1])


# What stands between two parts of a reference; mere words do not.
_PART = re.compile(r"[.,;:\n]|\b(?:and|or|part)\b|\([a-z\d]\)")


def every_boxed(text: str) -> str:
    """Return the answer of a reference with several boxes: all of them, or the last one."""
    contents: list[str] = []
    outer = 0
    for start, content_start, end in _boxes(text):
        content = text[content_start:end].strip()
        if start < outer or not content:
            continue
        if contents and not _PART.search(text, outer, start):
            contents.clear()
        if not any(_alike(content, other) for other in contents):
            contents.append(content)
        outer = end
    return ", ".join(contents)


_BRACES = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """Return start, start of the content and end of the content of every closed box."""
    found: list[tuple[int, int, int]] = []
    waiting: list[re.Match[str]] = []
    for match in _BRACES.finditer(text):
        if match[1] or match[0] == "{":
            waiting.append(match)
        elif match[0] == "}" and waiting:
            opening = waiting.pop()
            if opening[1] and match.start() - opening.end() <= LONGEST_ANSWER:
                found.append((opening.start(), opening.end(), match.start()))
    return sorted(found)


# A formula between dollar signs begins and ends with a space or not: "$5 and $6" holds none.
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\$\d])\$(?:(?=\S)([^$]+?)(?<=[^\s\\])|\s([^$]+?)\s)\$(?!\d)"
    r"|\\\((.+?)\\\)|\\\[(.+?)\\\]",
    re.DOTALL,
)
_BETWEEN = re.compile(r"[\s,;.]*(?:\b(?:and|or)\b)?[\s,;]*")


def last_formula(text: str) -> tuple[str, int, int] | None:
    """Return the last formula of a text, joined to those it continues, its start and its end.

    None without a formula.
    """
    parts: list[str] = []
    following = len(text)
    matches = list(_FORMULA.finditer(text))
    for match in reversed(matches):
        if parts and not _BETWEEN.fullmatch(text, match.end(), following):
            break
        parts.insert(0, next(group for group in match.groups() if group))
        following = match.start()
    return (", ".join(parts), following, matches[-1].end()) if parts else None


def unclosed(text: str) -> str | None:
    """Return what follows the start of the last box if that box is never closed."""
    tail = text[-TAIL:]
    match = _BOXED.match(tail, max(tail.rfind("\\boxed"), tail.rfind("\\fbox"), 0))
    return tail[match.end() :] if match and not _boxes(tail[match.start() :]) else None


# --- the answer that the math reward compares -----------------------------------------------------

DOUBLED = re.compile(r"\\\\(?=[A-Za-z(\[{}])")
_LATEX = re.compile(r"\\[A-Za-z(\[]|(?<![\\\d])\$(?=\S)[^$\n]*[^\s$\\]\$(?!\d)")


def stated_answer(completion: str) -> Answer:
    """Return the final answer of a completion, empty if it is unreadable.

    It is if the only box is never closed, or if characters in it change the order in which it is
    shown. Backslashes are halved if the completion was escaped twice.
    """
    text = completion[-TAIL:]
    if "\\\\boxed" in text:
        text = DOUBLED.sub(r"\\", text)
    found = final_answer(text)
    cut_off = not found.marked and ("\\boxed" in found.text or "\\fbox" in found.text)
    if cut_off or REORDERING.search(found.text[-LONGEST_ANSWER:]):
        return Answer("", True, True)
    return found


def stated_number(found: Answer, *, letters: bool = False) -> Number | None:
    """Return the number that an answer is, that its line begins with, or that its prose ends with.

    `letters` as for `plain_number`. None if it is no plain number.
    """
    number = plain_number(found.text, letters=letters, comma=True)
    if number is not None or found.formatted:
        return number
    if found.marked:
        return leading_number(found.text, letters=letters)
    prose = prose_of(found)
    return None if prose is None else last_number(prose, letters=letters)


def prose_of(found: Answer) -> str | None:
    """Return the prose of an answer without a marker: all, or what follows its last formula.

    None if the answer is marked, or if no number follows its last formula.
    """
    if found.marked:
        return None
    text = _numbers_as_text(found.text)
    if not _LATEX.search(text):
        return text
    formula = last_formula(text)
    after = text[formula[2] :] if formula else ""
    return after if re.search(r"\d", after) and not _LATEX.search(after) else None


def _numbers_as_text(text: str) -> str:
    """Return the end of a text, with formulas that are plain numbers as text: $5$ as 5."""

    def bare(match: re.Match[str]) -> str:
        content = next(group for group in match.groups() if group)
        number = plain_number(content) is not None
        return content.replace("\\%", "%").replace("\\$", "$") if number else match[0]

    return _FORMULA.sub(bare, text[-LONGEST_ANSWER:])
