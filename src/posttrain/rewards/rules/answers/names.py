"""Names on the left side of an equation: x, a_3, f(2), an angle, the length of a segment."""

import re

from posttrain.rewards.rules.answers.units import VALUE_WORDS

_NAME_COMMANDS = re.compile(
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|kappa|lambda|mu|nu|xi"
    r"|rho|sigma|tau|phi|varphi|chi|psi|omega|Delta|Gamma|Omega|Phi|Sigma|Theta|overline|vec|hat"
    r"|angle|triangle|frac|ell|mathbb|mathcal|circ|prime)(?![A-Za-z])"
)
_INDEX = re.compile(r"_(?:\{[^{}]*\}|\w)")
_ARGUMENT = re.compile(r"(?<=[A-Za-z_}'])\([^()=]*\)")


def is_name(text: str) -> bool:
    r"""Whether a side of an equation names a value: x, a_3, f(2), \angle ABC, |AB|, (x, y)."""
    if any(word in VALUE_WORDS for word in re.findall(r"(?<!\\)\b[A-Za-z]+", text)):
        return False  # not x
    bare = _ARGUMENT.sub("", _INDEX.sub("", text))
    bare = _NAME_COMMANDS.sub("x", bare)
    return re.fullmatch(r"[A-Za-z{}|'()\[\], :]*", bare) is not None and bool(
        re.search("[A-Za-z]", bare)
    )


def name_of(text: str) -> str:
    """Return the form in which names are compared; "" for a name in words, which any name fits."""
    if re.search(r"(?<!\\)\b(?![A-Z]{2,4}\b)[A-Za-z]{2,}\b", _INDEX.sub("", text)):
        return ""
    name = re.sub(r"[\s{}_|]", "", text)
    return re.sub(r"\(\D*\)$", "()", name)  # f(x) and f(n), but not f(1) and f(2)
