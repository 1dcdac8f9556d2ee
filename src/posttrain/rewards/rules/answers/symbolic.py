"""The child's side of the symbolic comparison: it alone imports sympy and math-verify.

`serve` answers one JSON request per line. Two answers are compared part by part (`forms`), numbers
exactly (`numbers`), and formulas by sympy, as math-verify reads them.
"""

import json
import math
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from posttrain.rewards.rules.answers.characters import compact, latex_of, tidy
from posttrain.rewards.rules.answers.extract import last_formula
from posttrain.rewards.rules.answers.forms import (
    DECIMAL_COMMA,
    Leaf,
    Order,
    Relation,
    equal,
    form_of,
    relations,
    split,
)
from posttrain.rewards.rules.answers.names import is_name
from posttrain.rewards.rules.answers.numbers import plain_number, same_number
from posttrain.rewards.rules.answers.prose import is_altered
from posttrain.rewards.rules.answers.units import VALUE_WORDS, is_unit_word, unit_of, units_agree

MEMORY_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Conventions:
    """What counts as equal; see `math.MathCorrectness` for the keys."""

    units: bool = True
    order: Order = "free"
    tolerance: float = 0.0
    evaluated: bool = True


# --- words ----------------------------------------------------------------------------------------

_TEXT_COMMAND = re.compile(r"\\(?:text\w*|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_LITERAL = re.compile(r"(?=.*\w)[\w\s.,:'/()-]+")
_WORDS = re.compile(r"(?=.*[^\W\d_]{4})[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*")
# Words, and options of a question with a choice; but R and r are two radii.
_ANY_CASE = re.compile(r"\(?[A-Ea-e]\)?|[A-Z]?[a-z]{2,}|YES|NO")
_NAMED_SET = re.compile(r"∅|\\mathbb\s*\{[A-Z]\}")


def _literal(text: str) -> str:
    """Return an answer without LaTeX text commands and a final period, words in lower case."""
    bare = " ".join(_TEXT_COMMAND.sub(r" \1 ", text).replace("$", " ").split())
    bare = bare if bare.endswith("..") else bare.removesuffix(".").strip()
    return bare.casefold() if _WORDS.fullmatch(bare) or _ANY_CASE.fullmatch(bare) else bare


_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4}")


# --- formulas -------------------------------------------------------------------------------------

_FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|pi"
_BARE_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])")
_BARE_ROOT = re.compile(r"(?<![\\A-Za-z])\\?sqrt\s*\(([^()]*)\)|(?<![\\A-Za-z])sqrt(?=\s*[{\d])")
_POWER = re.compile(r"(?:\*\*|\^)\s*(-?\d{2,}|(?<=\*)-?\d)")  # 2**10 and 2^10, not 2^1 times 0
# Signs that a parser would skip, with what they say: 5 and so on, 5 or 6, 5 mod 6, 5 minutes.
_NO_VALUE = re.compile(
    r"\.\.|…|\.\d+\.\d|\d\s*_|['\"′″]|(?<![\w.])0[xbo]\d|\\(?:[lc]?dots|equiv|sim|cong|to|mid|[lL]?(?:eft)?rightarrow"
    r"|Rightarrow|iff|implies|lor|vee|land|wedge|neg|lnot|not|[hv]?phantom|b?x?cancel)(?![A-Za-z])"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[A-Za-z]+\*?\}(?:\{[clr|]*\})?")
_UNIT_WORD = re.compile(r"[A-Za-z]{2,}(?:\^\{?[23]\}?)?|/")
_BASE = re.compile(
    r"\(?([0-9][0-9A-Za-z.,]*)\)?\s*"
    r"(?:_\s*\{?\s*\(?\s*(\w+)\s*\)?\s*\}?|\(?\s*(?:in )?base[- ](\w+)\)?"
    r"|(?:in )?(binary|octal|hexadecimal|hex))"
)
_BASE_NAMES = "zero one two three four five six seven eight nine ten eleven twelve"
_BASES = {name: base for base, name in enumerate(_BASE_NAMES.split())} | {
    "sixteen": 16,
    "binary": 2,
    "octal": 8,
    "hexadecimal": 16,
    "hex": 16,
}
# What computes a number instead of stating it; 2^10, roots, fractions and 1.5 * 10^3 do not.
_WORK = re.compile(
    r"\\(?:sum|prod|i*int|oint|lim|[dt]?binom|det|gcd|max|min|[bp]?mod|log|ln|sin|cos|tan|cot|sec"
    r"|csc|arcsin|arccos|arctan|exp|lfloor|lceil|times|cdot|div|begin)(?![A-Za-z])"
    r"|!|(?<=[\w)}\]])\s*[-+*](?!\*)|(?<=[)}\]])\s*[/(]|(?<=\d)\s*\("
)


def based(text: str) -> tuple[str, str] | None:
    """Return digits and base of a numeral such as 101_2 or "101 in base two"."""
    match = _BASE.fullmatch(text.strip())
    if match is None or text.count("(") != text.count(")"):
        return None
    base = match[2] or match[3] or match[4]
    return match[1].casefold(), str(_BASES.get(base.casefold(), base))


def _without_unit(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a formula without the unit after it, and that unit."""
    words = text.replace("/", " / ").split() if " " in text else [text]
    count = 0
    while count < len(words) - 1 and _is_unit(words[-1 - count].strip(".-")):
        count += 1
    unit = [word.strip(".-") for word in words[len(words) - count :]]
    if not unit or unit[0] == "/":
        return text, ()
    return text.rsplit(unit[0], 1)[0].strip(), unit_of(unit)


def _is_unit(word: str) -> bool:
    return _UNIT_WORD.fullmatch(word) is not None and (word == "/" or is_unit_word(word))


@lru_cache(maxsize=4096)  # one gold is compared with many completions
def _parse(text: str) -> Any:
    """Return the sympy object that a tidied formula stands for; None if it cannot be read."""
    if _NO_VALUE.search(text):
        return None
    number = plain_number(text, comma=True)
    if number is not None:
        text = f"\\frac{{{number.value.numerator}}}{{{number.value.denominator}}}"
    text = _BARE_ROOT.sub(lambda m: rf"\sqrt{{{m[1]}}}" if m[1] else r"\sqrt", text)
    text = _POWER.sub(r"^{\1}", _BARE_FUNCTION.sub(r"\\\1 ", _THOUSANDS.sub("", text)))
    words = _WORD.findall(_ENVIRONMENT.sub("", text))
    if any(len(word) > 3 or word.casefold() in VALUE_WORDS for word in words):
        return None
    if re.search(r"(?<![\w^.])[\d.]+\s+[\d.]", text) or not _is_balanced(text):
        return None  # 5 6 is not 56, nor 11, nor 30
    value = _read(text)
    return value if hasattr(value, "shape") or hasattr(value, "as_real_imag") else None


def _is_balanced(text: str) -> bool:
    """Whether every bracket is closed, and none is deeper than the parser can read in time."""
    depth = 0
    for bracket in re.findall(r"(?<!\\)[(){}]", text):
        depth += 1 if bracket in "({" else -1
        if not 0 <= depth <= 30:
            return False
    return depth == 0


def _read(text: str) -> Any:
    """Return the sympy object of a whole formula, with exact numbers; None if it has none."""
    from latex2sympy2_extended import NormalizationConfig, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from sympy import Float, I, Rational, Symbol, nan, zoo

    # No units: c, t and m are variables here. No lower case: R and r are two.
    repairs = NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
    try:
        found = latex2sympy(
            normalize_latex(latex_of(text), repairs),
            is_real=True,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
        if found.has(nan, zoo):
            return None
        exact: dict[Any, Any] = {f: Rational(str(f)) for f in found.atoms(Float)}
        return found.xreplace(exact | {Symbol("i", real=True): I})
    except Exception:  # sympy raises almost any type on malformed input
        return None


def _same_value(gold: Any, answer: Any, tolerance: float) -> bool:
    """Whether two sympy objects are equal. Constants must be so exactly, not only nearly."""
    from math_verify import verify
    from sympy import Expr, N, simplify

    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return bool(verify(gold, answer, timeout_seconds=None))
    gold, answer = gold.doit(), answer.doit()
    difference = simplify(gold - answer)
    if difference == 0:
        return True
    if not (gold.is_number and answer.is_number):
        return difference.equals(0) is True  # what does not simplify to 0 may still be 0
    size = abs(N(gold, 30))
    if not difference.is_Rational and abs(N(difference, 200)) < size * 1e-150:
        return True
    return bool(tolerance and abs(N(difference, 30)) <= tolerance * size)


# --- two answers ----------------------------------------------------------------------------------


@dataclass
class _Leaves:
    """The comparison of leaves; remembers what could not be read."""

    conventions: Conventions
    unread: bool = False

    def same(self, gold: str, answer: str) -> bool:
        """Whether two leaves are equal."""
        if compact(gold) == compact(answer):
            return gold != ""
        bases = based(gold), based(answer)
        if any(bases):
            return bases[0] == bases[1]  # the base belongs to the answer
        if _WORDS.fullmatch(_literal(gold)):
            # As a formula a word would be a product of one-letter variables, in any order.
            self.unread |= not answer
            return _literal(gold) == _literal(answer)
        rules = self.conventions
        number, other = plain_number(gold, comma=True), plain_number(answer, comma=True)
        if number is not None and other is not None:
            return same_number(number, other, units=rules.units, tolerance=rules.tolerance)
        if number is not None and rules.evaluated and _WORK.search(answer):
            return False
        return self._same_formula(gold, answer)

    def _same_formula(self, gold: str, answer: str) -> bool:
        (gold, gold_unit), (answer, answer_unit) = _without_unit(gold), _without_unit(answer)
        compared = self.conventions.units and gold_unit and answer_unit
        if compared and units_agree(gold_unit, answer_unit) != 1:
            return False
        values = _parse(gold), _parse(answer)
        if values[1] is None:
            self.unread = True
            return _literal(gold) == _literal(answer) != ""
        try:
            return values[0] is not None and _same_value(*values, self.conventions.tolerance)
        except Exception:  # sympy, as in _read: what cannot be shown to be equal is not equal
            return False


def _whole_relation(gold: str, answer: str) -> bool:
    """Whether two equations or inequalities that have no simple form are equivalent."""
    from math_verify import verify
    from sympy import And, Or
    from sympy.core.relational import Relational

    parsed = [_read(_POWER.sub(r"^{\1}", text)) for text in (gold, answer)]
    if not all(isinstance(value, Relational | And | Or) for value in parsed):
        return False
    try:
        return bool(verify(parsed[0], parsed[1], timeout_seconds=None))
    except Exception:  # as in _read
        return False


def _is_far_off(answer: str) -> bool:
    """Whether an answer says that a value is about another one, and they differ by over 5 %."""
    exact, *rounded = split(answer, "≈")
    name = split(exact, "=")[-1]
    if len(rounded) != 1 or not name or is_name(name):
        return False
    values = _parse(name), _parse(rounded[0])
    if not all(getattr(v, "is_number", False) and v.is_finite for v in values):
        return True
    # In a derivation, x = ... ≈ ..., the exact value counts.
    return "=" not in exact and bool(
        abs(values[0] - values[1]).evalf() > abs(values[0]).evalf() * 0.05
    )


_AFTER_VERB = re.compile(r".*(?:\b(?:is|are|equals?|gives?|get|be)\b|=|:\s)\s*(.+)", re.DOTALL)


def _stated_in(text: str) -> str | None:
    """Return the answer that a text without a marker states: its last formula, or it as a whole."""
    formula = last_formula(text)
    if formula is not None:
        return None if is_altered(text[: formula[1]]) else formula[0]
    if not _PROSE.search(text):
        return text
    match = _AFTER_VERB.fullmatch(text)
    return match[1] if match and not _PROSE.search(match[1]) else None


def _is_readable(gold: str) -> bool:
    """Whether a reference without parts can be compared: words, a name of a set, or a formula."""
    named = _LITERAL.fullmatch(gold) or _NAMED_SET.fullmatch(gold) or based(gold)
    return bool(named) or _parse(_without_unit(gold)[0]) is not None


def judge(gold: str, answer: str, whole_text: bool, conventions: Conventions) -> str:
    """Return the verdict of an answer, or, with `whole_text`, of the answer in a text."""
    literals = _literal(gold), _literal(answer)
    gold = tidy(gold)
    gold_form = form_of(gold)
    if isinstance(gold_form, Leaf) and not _is_readable(gold_form.text):
        return "unparseable_gold"
    if literals[0] == literals[1]:
        return "correct"
    leaves = _Leaves(conventions)
    stated = _stated_in(answer) if whole_text else answer
    if stated is None:
        return "unparseable_prediction"
    answer = tidy(stated)
    if plain_number(gold) is not None and answer.count(",") == 1:
        answer = DECIMAL_COMMA.sub(r"\1.\2", answer)  # x = 2,5
    form = form_of(answer)
    if form == Leaf("") or Relation("") in relations(form):
        return "unparseable_prediction"
    same = equal(gold_form, form, leaves.same, conventions.order)
    if not same and (any(relations(gold_form)) or any(relations(form))):
        same = not isinstance(form, Leaf) and _whole_relation(gold, answer)
    if same and _is_far_off(answer):
        return "wrong"
    return "correct" if same else "unparseable_prediction" if leaves.unread else "wrong"


# --- the process ----------------------------------------------------------------------------------


def _limit_cpu(seconds: float) -> None:
    """Have the kernel end this process if the parent is killed in the middle of a comparison."""
    if sys.platform != "win32":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def serve() -> None:
    """Answer one JSON request per line until the parent closes the pipe or dies."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for a reply
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        print(error, file=replies, flush=True)
        return
    # The first comparisons build tables, which takes ten times as long as a later comparison. On a
    # busy machine they would exceed the limit in every fresh child, so they are made here.
    for gold, answer in ((r"\frac{\pi}{2} + x", r"x + 0.5\pi"), ("(1, 2)", r"(1, \sqrt{4})")):
        judge(gold, answer, False, Conventions())
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _limit_cpu(request["seconds"])
        rules = Conventions(**request["conventions"])
        verdict = judge(request["gold"], request["answer"], request["whole_text"], rules)
        print(verdict, file=replies, flush=True)
