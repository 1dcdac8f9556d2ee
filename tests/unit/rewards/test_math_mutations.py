"""A right answer loses its credit with whatever changes it, and with nothing else.

Every change is tried in every place where a final answer is found: a box, an answer line, a `####`
line, answer tags, a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from posttrain.rewards.rules import math_worker
from posttrain.rewards.rules.math import check

PLACES = [
    "\\boxed{%s}",
    "Answer: %s",
    "The answer is %s.",
    "So it is\n#### %s",
    "So in the end we have %s.",
    "<answer>%s</answer>",
    "\\boxed{\\text{%s}}",
    "Final Answer: %s",
    "The answer is: **%s**",
    "Thus the result is %s",
]

SUFFIXES = [
    "k",
    "K",
    "M",
    " dozen",
    " dozens",
    " hundred",
    " thousand",
    " million",
    " billion",
    " grand",
    " score",
    " gross",
    " lakh",
    " thirds",
    " halves",
    " quarters",
    " fifths",
    " tenths",
    " hundredths",
    " and a half",
    " and one third",
    " and 1/2",
    " 1/2",
    "½",
    " pi",
    "π",
    " e",
    " x",
    "x",
    " squared",
    " cubed",
    "²",
    "^2",
    "**2",
    "!",
    " factorial",
    " choose 2",
    " root 2",
    " mod 3",
    " over 2",
    " plus 1",
    " minus 1",
    " + 1",
    " - 1",
    " * 2",
    " × 2",
    " / 2",
    "/2",
    " in binary",
    " in base 7",
    " base seven",
    " per mille",
    "‰",
    " ppm",
    " basis points",
    " or 6",
    " or six",
    " and 6",
    " and six",
    ", 6",
    " to 6",
    "-6",
    "–6",
    " – 6",
    ", maybe 6",
    " (or 6)",
    " or more",
    " or less",
    " or so",
    " vs 6",
    " & 6",
    " | 6",
    "; 6",
    ":6",
    ":30",
    " 6",
    "...",
    "-ish",
    " = 6",
    " = 8",
    " ≈ 8",
    " < x",
    " to the power of 2",
    " times x",
    " times six",
    " below zero",
    " trillion",
    " tens",
    " ones",
    "i",
    " sqrt(2)",
    "√2",
    "\\sqrt{2}",
    "\\pi",
    "e3",
    "E3",
    " infinity",
    "abc",
    "_6",
    "'",
]

PREFIXES = [
    "-",
    "- ",
    "−",
    "– ",
    "negative ",
    "minus ",
    "not ",
    "never ",
    "is not ",
    "half of ",
    "twice ",
    "double ",
    "more than ",
    "less than ",
    "at least ",
    "at most ",
    "up to ",
    "under ",
    "over ",
    "between 1 and ",
    "1 to ",
    "1-",
    "1 or ",
    "1, ",
    "1; ",
    "1 and ",
    "either 1 or ",
    "> ",
    "< ",
    "≥ ",
    "\\neq ",
    "≠ ",
    "±",
    "\\pm ",
    "√",
    "sqrt ",
    "\\sqrt ",
    "log ",
    "1/",
    "1 + ",
    "2 * ",
    "x",
    "x^",
    "x_",
    "1:",
    "1.",
    "a",
    "#",
    "step ",
    "~-",
    "!",
    "1e",
    "2^",
    "5% of ",
    "the square root of ",
    "a dozen of ",
    "neither 6 nor ",
    "anything but ",
    "x > ",
    "x \\ge ",
    "6 = ",
    "8 ≈ ",
    "\\frac{1}{2}",
    "1 ",
]

# Places for honest answers, some with a reason after it.
SENTENCES = [
    "\\boxed{%s}",
    "Answer: %s",
    "The answer is %s.",
    "So it is\n#### %s",
    "So in the end we have %s.",
    "<answer>%s</answer>",
    "Final Answer: %s",
    "The answer is: **%s**",
    "Thus the result is %s",
    "We get 3 * 5 = 15 and so on. The answer is %s. I hope it is correct.",
    "First 5 and then 9. Therefore, the total is %s",
    "He gets %s, so that is it.",
    "= %s",
    "Answer: \\boxed{%s}",
    "The final answer is $\\boxed{%s}$.",
    "The total is $%s$.",
    "the answer is \\(%s\\)",
    "She has %s left.",
    "It is %s because we add them.",
    "Answer: %s (since we add them)",
    "Answer: %s, since we add them.",
    "Answer: %s. I hope this helps!",
]

FORMS = {
    "1250": [
        "1250",
        "1,250",
        "1250.0",
        "\\$1250",
        "\\$1,250.00",
        "1.25k",
        "1250 apples",
        "1250 dollars",
        "1 250",
        "+1250",
        "1250 km",
        "1250 km/h",
        "1250 miles per hour",
        "1250^\\circ",
        "1250\\%",
        "1.25 \\times 10^3",
        "1250 more apples",
        "1250 square meters",
        "1250 cm^2",
        "1250 of them",
        "x = 1250",
    ],
    "0.5": [
        "0.5",
        ".5",
        "1/2",
        "\\frac{1}{2}",
        "\\frac12",
        "50\\%",
        "50 percent",
        "0.50",
        "½",
        "0,5",
        "\\frac{1}{2} cups",
        "1/2 cup",
    ],
    "-3": [
        "-3",
        "−3",
        "-3.0",
        "-3 degrees",
        "- 3",
        "\\$-3",
        "-6/2",
        "negative 3",
        "minus 3",
    ],
    "2.5": [
        "2.5",
        "2 1/2",
        "2½",
        "5/2",
        "2\\frac{1}{2}",
        "2 and a half",
        "\\frac{5}{2}",
        "2.50 dollars",
        "2,5",
    ],
}

# Other references than numbers, and what changes them.
FORMULA_PLACES = [
    "\\boxed{%s}",
    "Answer: $%s$",
    "The answer is $%s$.",
    "So it is\n#### %s",
    "So in the end we have $%s$.",
    "<answer>%s</answer>",
    "Thus the result is $%s$",
    "Thus the result is \\(%s\\).",
]
REFERENCES = [
    "\\sqrt{2}",
    "(1,2)",
    "x+1",
    "[1,3]",
    "x < 5",
    "\\frac{\\pi}{3}",
    "1, 2",
    "2+3i",
    "\\text{Evelyn}",
    "B",
    "101_2",
    "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
    "y = 2x",
    "18 meters",
    "\\infty",
]
FORMULA_SUFFIXES = [
    " \\text{ or } 7",
    " \\text{ and } 7",
    ", 7",
    "; 7",
    " + 1",
    " - 1",
    " \\cdot 2",
    " \\times 2",
    "/2",
    " \\cup \\{7\\}",
    " \\text{ dozen}",
    " \\pi",
    " = 7",
    " \\approx 7",
    " > 0",
    " \\neq 7",
    " \\text{ maybe}",
    " \\text{ not}",
    "_7",
    " \\to 7",
    " 7",
    "|7",
    " \\ldots",
    "\\setminus\\{1\\}",
    " \\times \\mathbb{R}",
    " \\pm 1",
    " \\text{ or something else}",
]
FORMULA_PREFIXES = [
    "-",
    "2",
    "\\frac{1}{2}",
    "\\text{not } ",
    "\\neq ",
    "\\neg ",
    "7, ",
    "7 \\text{ or } ",
    "\\pm ",
    "> ",
    "\\ge ",
    "7 = ",
    "\\approx 7, ",
    "7 + ",
    "\\sqrt{",
    "\\text{either } 7 \\text{ or }",
    "\\log ",
    "1 - ",
    "(",
    "[",
    "{7, ",
    "\\overline",
]


@pytest.fixture(scope="module", autouse=True)
def _end_worker() -> Iterator[None]:
    yield
    math_worker.close()


def _changed(number: str) -> list[str]:
    return [number + suffix for suffix in SUFFIXES] + [prefix + number for prefix in PREFIXES]


def _credited(place: str, number: str) -> list[str]:
    """The changed answers that get credit for the number, or make the reward fail."""
    gold = number.replace(",", "")
    texts = [place % changed for changed in _changed(number) if changed != "7'"]
    return [text for text in texts if check(text, gold) not in ("wrong", "unparseable_prediction")]


@pytest.mark.parametrize("place", PLACES[:5])
def test_a_changed_answer_loses_its_credit(place: str) -> None:
    assert check(place % "7", "7") == "correct"
    assert _credited(place, "7") == []


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", ["7", "12", "0.5", "1,250", "3/4", "100", "-4.5"])
def test_a_changed_answer_loses_its_credit_for_any_number(place: str, number: str) -> None:
    assert _credited(place, number) == []


def _in_sentence(sentence: str, form: str) -> str:
    """Put LaTeX between dollar signs, except where the sentence is LaTeX."""
    if "boxed" in sentence or "$%s$" in sentence or "(%s" in sentence:
        return sentence % form
    form = form.replace("\\$", "$").replace("\\%", "%")
    return sentence % (f"${form}$" if "\\" in form else form)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_right_answer_is_found_in_a_sentence(sentence: str) -> None:
    rows = {_in_sentence(sentence, form): gold for gold, forms in FORMS.items() for form in forms}
    verdicts = {text: check(text, gold) for text, gold in rows.items()}
    assert {text: verdict for text, verdict in verdicts.items() if verdict != "correct"} == {}


def _changed_formulas(gold: str) -> list[str]:
    return [gold + suffix for suffix in FORMULA_SUFFIXES] + [p + gold for p in FORMULA_PREFIXES]


def _credited_formulas(place: str, gold: str) -> list[str]:
    texts = [place % changed for changed in _changed_formulas(gold)]
    return [text for text in texts if check(text, gold) not in ("wrong", "unparseable_prediction")]


@pytest.mark.parametrize("gold", REFERENCES)
def test_a_changed_formula_loses_its_credit(gold: str) -> None:
    assert check(f"\\boxed{{{gold}}}", gold) == "correct"
    assert _credited_formulas("\\boxed{%s}", gold) == []


@pytest.mark.slow
@pytest.mark.parametrize("gold", REFERENCES)
@pytest.mark.parametrize("place", FORMULA_PLACES)
def test_a_changed_formula_loses_its_credit_anywhere(place: str, gold: str) -> None:
    assert _credited_formulas(place, gold) == []
