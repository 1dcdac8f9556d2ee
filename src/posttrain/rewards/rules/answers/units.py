"""Words after a number: multipliers, units, and words that make the text more than a number.

Units cannot be listed (eggs, "red marbles"), so every word may be one except those of closed
classes that change the value: numerals, fractions, operators, constants, hedges.
"""

import re
from fractions import Fraction
from typing import Literal

MULTIPLIERS = {
    "k": 10**3,
    "m": 10**6,
    "b": 10**9,
    "hundred": 10**2,
    "thousand": 10**3,
    "grand": 10**3,
    "million": 10**6,
    "mn": 10**6,
    "mil": 10**6,
    "billion": 10**9,
    "bn": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
    "lakh": 10**5,
    "crore": 10**7,
    "dozen": 12,
    "dozens": 12,
    "score": 20,
    "gross": 144,
}

_NUMERALS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
ones twos threes fours fives sixes sevens eights nines tens hundreds thousands millions billions
trillions twenties thirties forties fifties sixties seventies eighties nineties lakhs crores
myriad myriads googol googols quintillion sextillion teen teens
"""
_FRACTIONS = """
half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths
eighth eighths ninth ninths tenth tenths eleventh elevenths twelfth twelfths thirteenths
fourteenths fifteenths sixteenth sixteenths twentieth twentieths thirtieths fortieths fiftieth
fiftieths hundredth hundredths thousandth thousandths millionth millionths billionths
mille permille permil mil mill rds ths nds sts ish ppm ppb bps basis
"""
_OPERATORS = """
plus minus over divided multiplied mod modulo power powers raised exponent root sqrt cbrt
squared cubed factorial factorials choose permute log ln lg sin cos tan cot csc arcsin arccos
arctan sinh cosh tanh exp gcd lcm base binary octal hex hexadecimal ternary negative
opposite reciprocal inverse twice thrice double doubles doubled triple triples tripled quadruple
quadrupled halved remainder below
"""
_CONSTANTS = """
pi tau phi infinity infinite inf nan undefined alpha beta gamma delta theta lambda omega
"""
_HEDGES = """
or and nor not none never no but either neither maybe perhaps possibly approximately approx roughly
about around between than unless except without true false unknown wrong incorrect
"""


def words_of(*lines: str) -> frozenset[str]:
    """Return the words of some lines."""
    return frozenset(" ".join(lines).split())


VALUE_WORDS = words_of(_NUMERALS, _FRACTIONS, _OPERATORS, _CONSTANTS, _HEDGES)

LETTER_UNITS = {"m", "g", "l", "s", "h", "L", "K", "C", "F", "N", "J", "W", "V", "A"}
# Words that say nothing about a unit: 18 in total, 18 of them, 18 altogether.
_FILLERS = words_of(
    """
    a an the in of on at by to per each total totals totally all altogether left remaining more less
    fewer only exactly away long wide high tall deep old now combined overall for from with so such
    there here his her their its
    """
)
_SHORT_WORDS = _FILLERS | words_of(
    "am pm ad bc tv pc cd dj id up he us we ox sq cu hz pa kw kj kn kv ev db kb mb gb tb"
)

_DIMENSIONS: dict[str, dict[str, str | Fraction | int]] = {
    "metre": {
        "mm millimeter millimetre": Fraction(1, 1000),
        "cm centimeter centimetre": Fraction(1, 100),
        "dm decimeter decimetre": Fraction(1, 10),
        "m meter metre": 1,
        "km kilometer kilometre kms": 1000,
        "inch inches": Fraction(254, 10_000),
        "ft foot feet": Fraction(3048, 10_000),
        "yd yard": Fraction(9144, 10_000),
        "mi mile": Fraction(1_609_344, 1000),
    },
    "gram": {
        "mg milligram": Fraction(1, 1000),
        "g gram gramme": 1,
        "kg kilogram kilo kgs": 1000,
        "tonne": 10**6,
        "oz ounce": Fraction(45_359_237, 1_600_000),
        "lb lbs pound": Fraction(45_359_237, 100_000),
    },
    "second": {
        "ms millisecond": Fraction(1, 1000),
        "s sec secs second": 1,
        "min mins minute": 60,
        "h hr hrs hour": 3600,
        "day": 86_400,
        "week": 604_800,
    },
    "month": {"month": 1, "yr yrs year": 12, "decade": 120, "century centuries": 1200},
    "litre": {
        "ml milliliter millilitre": Fraction(1, 1000),
        "cl centiliter centilitre": Fraction(1, 100),
        "l liter litre": 1,
    },
    "gallon": {"gal gallon": 1, "quart qt": Fraction(1, 4), "pint pt": Fraction(1, 8)},
    "dollar": {"dollar usd buck $": 1, "cent ¢": Fraction(1, 100)},
    "euro": {"euro eur €": 1},
    "yen": {"yen jpy ¥": 1},
    "rupee": {"rupee inr ₹": 1},
    "yuan": {"yuan rmb": 1},
    "degree": {"degree deg": 1},
    "radian": {"radian rad": 1},
    "person": {"person people persons": 1},
}
_KNOWN: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor))
    for dimension, units in _DIMENSIONS.items()
    for names, factor in units.items()
    for name in names.split()
}
CURRENCIES = {
    "$": ("dollar", "1"),
    "€": ("euro", "1"),
    "£": ("gram", str(_KNOWN["pound"][1])),  # pounds of either kind, since the word is the same
    "¥": ("yen", "1"),
    "₹": ("rupee", "1"),
}
_SPEEDS = {"mph": ("mile", "hour"), "kph": ("km", "hour"), "kmh": ("km", "hour")}

Unit = tuple[str, ...]
"""(dimension, factor) of a unit in the table, else ("?", word, ...); empty without one."""


def is_unit_word(word: str) -> bool:
    """Whether a word after a number leaves its value alone."""
    word = re.sub(r"\^\{?[23]\}?$", "", word).casefold()
    if word in VALUE_WORDS or (word in MULTIPLIERS and len(word) > 1):
        return False
    return len(word) > 2 or not word.isalpha() or word in _SHORT_WORDS or word in _KNOWN


def _known(word: str) -> tuple[str, Fraction] | None:
    """Return dimension and factor of a unit such as km, miles, cm^2; None if it is not known."""
    bare, _, power = word.partition("^")
    lower = bare if bare in LETTER_UNITS else bare.casefold()
    found = _KNOWN.get(lower) or _KNOWN.get(lower.removesuffix("s"))
    if found is None or not power:
        return found
    exponent = int(power.strip("{}"))
    return f"{found[0]}^{exponent}", found[1] ** exponent


def is_known(word: str) -> bool:
    """Whether a word is a unit of the table, or a sign."""
    return not word[0].isalpha() or _known(word) is not None or word.casefold() in _SPEEDS


def _singular(word: str) -> str:
    return re.sub(r"(?<=[xsz])es$|(?<=[cs]h)es$|(?<![s])s$", "", re.sub(r"ies$", "y", word))


def unit_of(words: list[str]) -> Unit:
    """Return the unit that the words after a number name; fillers and what follows do not count."""
    words = [word for word in words if word.casefold() not in _FILLERS - {"per"}]
    if not words or words[0] in ("per", "/"):
        return ()
    first = words[0].casefold()
    if first in _SPEEDS:
        words[:1] = [_SPEEDS[first][0], "per", _SPEEDS[first][1]]
    power = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}.get(first)
    if power and len(words) > 1 and _known(words[1]):
        words = [f"{words[1]}^{power}", *words[2:]]
    known = _known(words[0])
    if known is None:
        return ("?", *sorted({_singular(word.casefold()) for word in words if word.isalpha()}))
    dimension, factor = known
    if len(words) > 2 and words[1] in ("per", "/") and (below := _known(words[2])):
        dimension, factor = f"{dimension}/{below[0]}", factor / below[1]
    return dimension, str(factor)


def units_agree(gold: Unit, answer: Unit) -> Fraction | None:
    """Return the factor from the answer's unit to the reference's; None if they are different.

    Units that are not in the table agree if they share a word: red apples and apples do, apples
    and oranges do not.
    """
    if gold[0] == "?" or answer[0] == "?":
        shared = gold[0] == answer[0] and set(gold[1:]) & set(answer[1:])
        return Fraction(1) if shared else None
    return Fraction(answer[1]) / Fraction(gold[1]) if gold[0] == answer[0] else None


Units = Literal["compare", "ignore"]
