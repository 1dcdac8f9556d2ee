"""One sign for each digit, space, bracket and relation, whatever an answer writes."""

import re
import unicodedata

# --- characters -----------------------------------------------------------------------------------

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000~"), " ")
_MINUS = dict.fromkeys(map(ord, "\u2010\u2011\u2212\ufe63"), "-")
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True))
_SIMPLE = _FULL_WIDTH | _INVISIBLE | _SPACES | _MINUS
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_DASH_SIGN = re.compile(r"(?<![\d)}\]])(\s*)–(?=\s*[\d.\\$(])")  # not the dash of a range
# These change the order in which characters are shown, so that a reader sees another number.
REORDERING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain_characters(text: str) -> str:
    """Return a text with digits and signs in ASCII, spaces as spaces and no invisible characters.

    Decimal digits of every script count as digits. Superscripts become powers and vulgar fractions
    become a/b, so that 5² is not 52.
    """
    if text.isascii():
        return text.replace("~", " ")
    text = text.translate(_SIMPLE)
    text = _DASH_SIGN.sub(r"\1-", text)
    text = _RAISED.sub(lambda m: "^{" + "".join(map(_SUPERSCRIPTS.__getitem__, m[0])) + "}", text)
    return "".join(c if c.isascii() else _plain_character(c) for c in text)


def _plain_character(character: str) -> str:
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if unicodedata.decomposition(character).startswith("<fraction>"):
        top, _, bottom = unicodedata.normalize("NFKD", character).partition("\u2044")
        return f" {top}/{bottom}" if bottom else character
    return character


# --- commands ---------- ----------------------------------------------------------------------

_COMMANDS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|(?<!\\)\\$", " "),
        (r"(?:,?\\!|\{,\})\s*(?=\d{3})|\\!", ""),
        (r"\{,\}", ","),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(frac|sqrt)\s*(?=\d)(\d)", r"\\\1{\2}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\math(?:rm|bf|it|sf)\s*\{\s*([A-Za-z])\s*\}", r"{\1}"),
        (r"\\(?:text\w*|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\[()\[\]]|(?<!\\)\$", " "),
        (r"\\([$%])", r"\1"),
        (r"\\(?:leq?|leqslant)(?![A-Za-z])|<=", "≤"),
        (r"\\(?:geq?|geqslant)(?![A-Za-z])|>=", "≥"),
        (r"\\neq?(?![A-Za-z])|!=|\\not\s*=", "≠"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:approx|simeq)(?![A-Za-z])", "≈"),
        (r"\\in(?![A-Za-z])", "∈"),
        (r"\\cup(?![A-Za-z])", "∪"),
        (r"\+?\\infty(?![A-Za-z])|\binfinity\b|\+∞", "∞"),
        (r"\\pm(?![A-Za-z])|\+/-", "±"),
        (r"\\mp(?![A-Za-z])", "∓"),
        (r"\\(?:\{|lbrace(?![A-Za-z]))", "⦃"),
        (r"\\(?:\}|rbrace(?![A-Za-z]))", "⦄"),
        (r"\\langle(?![A-Za-z])", "⟨"),
        (r"\\rangle(?![A-Za-z])", "⟩"),
        (r"\\(?:emptyset|varnothing)(?![A-Za-z])|⦃\s*⦄", "∅"),
        (r"[×✕]", r"\\times "),
        (r"[·⋅]", r"\\cdot "),
        ("÷", "/"),
        ("√", r"\\sqrt "),
        ("π", r"\\pi "),
    )
]
_BACK = str.maketrans({"∞": r"\infty ", "∅": r"\emptyset ", "⦃": r"\{", "⦄": r"\}"})


def tidy(text: str) -> str:
    r"""Return an answer in which one sign stands for each relation, bracket and space."""
    text = plain_characters(text)
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+\^", "^", " ".join(text.split()))


def compact(text: str) -> str:
    """Return a text without the spaces that separate nothing: x + 1 is x+1, but 5 1 is not 51."""
    return re.sub(r"\s+(?![\w.])|(?<![\w.])\s+", "", text)


def latex_of(text: str) -> str:
    """Return a tidied text with LaTeX commands for the signs that a LaTeX parser does not know."""
    return text.translate(_BACK)
