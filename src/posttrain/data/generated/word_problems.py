"""Generated grade-school word problems in the format of GSM8K: seeded, endless, and offline.

A row has four strings: the question ("prompt"), the rationale ("completion"), the final number
("answer") and the kind of problem ("family"). A rationale has one line per step, with GSM8K's
calculator annotations, and a last line with the answer:

    Tom has 3*4 = <<3*4=12>>12 apples.
    Tom has 12-5 = <<12-5=7>>7 apples left.
    #### 7

The families are meant for supervised training on some of them (SEEN_FAMILIES), followed by
reinforcement learning from answers on all of them. RL_FAMILIES reuse the sentences and the steps
of the seen families in new combinations.

Splits: "train" and "test" share the number ranges but no problem, whatever the seed: a stable
hash of a problem's family and numbers decides its split, so that other names or another wording
cannot carry a training problem into the test. "test_harder" has what neither of them has: the
same families with larger numbers, and LONGER_FAMILIES of five steps or more.
"""

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from posttrain.data.generated.families import chosen, distinct, in_turn, side
from posttrain.data.generated.word_problem_wording import (
    NAMES,
    QUESTIONS,
    SENTENCES,
    STEPS,
    THINGS,
)
from posttrain.data.origin import generated
from posttrain.data.rows import Row

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}


@dataclass(frozen=True)
class Numbers:
    """The ranges that a problem's numbers come from."""

    amount: range  # what is added or taken away
    count: range  # how many boxes, days or friends
    few: range  # a count if products are summed, to keep the sum small
    each: range  # how many in a box, or the price of one


NORMAL = Numbers(amount=range(2, 21), count=range(2, 11), few=range(2, 6), each=range(2, 11))
LARGER = Numbers(amount=range(21, 61), count=range(2, 11), few=range(2, 6), each=range(12, 17))


@dataclass
class Story:
    """A problem under construction.

    The methods named after verbs state a fact in the question, work out in the rationale what
    follows from it, and return how many things there are now.
    """

    rng: random.Random
    numbers: Numbers
    names: list[str]
    things: list[str]
    question: list[str] = field(default_factory=list)
    rationale: list[str] = field(default_factory=list)
    stated: list[int] = field(default_factory=list)
    """The numbers in the question; with the family they are the problem's identity."""
    last_step: str = ""
    last_slots: dict[str, str] = field(default_factory=dict)
    answer: int = 0

    def pick(self, values: range) -> int:
        """Draw one of the values."""
        return self.rng.choice(values)

    def pick_below(self, total: int) -> int:
        """Draw an amount to take from total that leaves at least 2, so that plurals stay right."""
        amount = self.numbers.amount
        return self.pick(range(amount.start, min(amount.stop, total - 1)))

    def say(self, fact: str, *numbers: int, who: int = 0, other: int = -1, x: str = "") -> None:
        """Add a sentence to the question."""
        wording = self.rng.choice(SENTENCES[fact])
        names = {"who": self.names[who], "other": self.names[other]}
        self.question.append(wording.format(*numbers, **names, x=x or self.things[0]))
        self.stated += numbers

    def work(self, step: str, left: int, sign: str, right: int, who: int = 0, x: str = "") -> int:
        """Add a calculation to the rationale; return its result."""
        value = OPERATIONS[sign](left, right)
        marked = f"{left}{sign}{right} = <<{left}{sign}{right}={value}>>{value}"
        slots = {"who": self.names[who], "x": x or self.things[0]}
        self.rationale.append(STEPS[step].format(sum=marked, **slots))
        self.last_step, self.last_slots, self.answer = step, slots, value
        return value

    def ask(self) -> None:
        """End the question by asking for the result of the last step."""
        self.question.append(self.rng.choice(QUESTIONS[self.last_step]).format(**self.last_slots))

    def has(self, amount: int = 0, *, who: int = 0, x: str = "") -> int:
        """State how many things someone has."""
        # without the two lowest amounts, from which nothing could be given away
        amount = amount or self.pick(self.numbers.amount[2:])
        self.say("has", amount, who=who, x=x)
        return amount

    def buys(self, held: int, amount: int = 0, *, who: int = 0) -> int:
        """Add an amount to what is held."""
        amount = amount or self.pick(self.numbers.amount)
        self.say("buys", amount, who=who)
        return self.work("has", held, "+", amount, who)

    def gives(self, held: int, amount: int = 0, *, who: int = 0, x: str = "") -> int:
        """Take an amount from what is held."""
        amount = amount or self.pick_below(held)
        self.say("gives", amount, who=who, x=x)
        return self.work("left", held, "-", amount, who, x)

    def boxes(self, count: int = 0, *, who: int = 0) -> int:
        """Multiply a number of boxes by what is in each."""
        count, each = count or self.pick(self.numbers.count), self.pick(self.numbers.each)
        self.say("boxes", count, each, who=who)
        return self.work("has", count, "*", each, who)

    def splits(self, held: int) -> int:
        """Divide what is held equally among friends."""
        each = self.numbers.each
        exact = [n for n in self.numbers.count if held % n == 0 and held // n in each]
        friends = self.rng.choice(exact)
        self.say("splits", friends)
        return self.work("each", held, "/", friends)

    def doubles(self, amount: int) -> int:
        """Give the second person twice the amount of the first."""
        self.say("doubles", who=1, other=0)
        return self.work("has", 2, "*", amount, 1)

    def halves(self, amount: int) -> int:
        """Give the second person half the amount of the first."""
        self.say("halves", who=1, other=0)
        return self.work("has", amount, "/", 2, 1)

    def exceeds(self, amount: int, *, who: int) -> int:
        """Give a person more than the amount of the one before."""
        extra = self.pick(self.numbers.amount)
        self.say("exceeds", extra, who=who, other=who - 1)
        return self.work("has", amount, "+", extra, who)

    def gets_for_a_week(self, held: int) -> int:
        """Add seven times a daily number to what is held."""
        daily = self.pick(self.numbers.each)
        self.say("week", daily)
        return self.work("has", held, "+", self.work("gets", 7, "*", daily))

    def pays(self, count: int, price: int, *, x: str = "") -> int:
        """Multiply a number of things by their price."""
        self.say("pays", count, price, x=x)
        return self.work("pays", count, "*", price, x="dollars")

    def together(self, total: int, *others: int) -> None:
        """Sum what several people have."""
        for other in others:
            total = self.work("together", total, "+", other)


def shop(story: Story, numbers: Numbers, *, purchases: int, given: int = 0) -> None:
    """Spend dollars on purchases, after giving some away."""
    baskets = [(story.pick(numbers.few), story.pick(numbers.each)) for _ in range(purchases)]
    cost = sum(count * price for count, price in baskets)
    held = story.has(given + cost + story.pick(numbers.amount), x="dollars")
    if given:
        held = story.gives(held, given, x="dollars")
    for thing, (count, price) in zip(story.things, baskets):
        held = story.work("left", held, "-", story.pays(count, price, x=thing), x="dollars")


def pages(story: Story, numbers: Numbers) -> None:
    """Subtract the pages read from those of a book."""
    daily, days = story.pick(numbers.each), story.pick(numbers.count)
    length = daily * days + story.pick(numbers.amount)
    story.say("book", length)
    story.say("reads", daily, days)
    story.work("left", length, "-", story.work("reads", daily, "*", days, x="pages"), x="pages")


def compare(story: Story, first: int, second: Callable[[int], int], *, others: int) -> None:
    """Sum what several people have, of whom the first states a number and each next compares."""
    amounts = [story.has(first), second(first)]
    for who in range(2, 2 + others):
        amounts.append(story.exceeds(amounts[-1], who=who))
    story.together(*amounts)


def give_twice(story: Story, numbers: Numbers) -> None:
    """Take two amounts in turn from what is held."""
    first, second = story.pick(numbers.amount), story.pick(numbers.amount)
    held = story.has(first + second + story.pick(numbers.amount))
    story.gives(story.gives(held, first), second)


def buy_share(story: Story, numbers: Numbers) -> None:
    """Add an amount to what is held, then divide the sum among friends."""
    total = story.pick(numbers.few) * story.pick(numbers.each)
    bought = story.pick_below(total)
    story.splits(story.buys(story.has(total - bought), bought))


def give_share(story: Story, numbers: Numbers) -> None:
    """Take an amount from what is held, then divide the rest among friends."""
    total, given = story.pick(numbers.few) * story.pick(numbers.each), story.pick(numbers.amount)
    story.splits(story.gives(story.has(total + given), given))


Family = Callable[[Story, Numbers], object]

SEEN: dict[str, Family] = {
    "buy": lambda s, n: s.buys(s.has()),
    "give": lambda s, n: s.gives(s.has()),
    "groups": lambda s, n: s.boxes(),
    "share": lambda s, n: s.splits(s.has(s.pick(n.count) * s.pick(n.each))),
    "price": lambda s, n: s.pays(s.pick(n.count), s.pick(n.each)),
    "buy_twice": lambda s, n: s.buys(s.buys(s.has())),
    "give_twice": give_twice,
    "buy_give": lambda s, n: s.gives(s.buys(s.has())),
    "groups_give": lambda s, n: s.gives(s.boxes()),
    "groups_buy": lambda s, n: s.buys(s.boxes()),
    "groups_share": lambda s, n: s.splits(s.boxes()),
    "double_buy": lambda s, n: s.buys(s.doubles(s.has()), who=1),
    "half_buy": lambda s, n: s.buys(s.halves(s.has(2 * s.pick(n.each))), who=1),
    "three_people": lambda s, n: s.together(*(s.has(who=who) for who in range(3))),
    "change": lambda s, n: shop(s, n, purchases=1),
    "pages": pages,
    "two_groups": lambda s, n: s.together(s.boxes(s.pick(n.few)), s.boxes(s.pick(n.few), who=1)),
    "week_give": lambda s, n: s.gives(s.gets_for_a_week(s.has())),
    "double_more": lambda s, n: compare(s, s.pick(n.each), s.doubles, others=1),
    "shopping": lambda s, n: shop(s, n, purchases=2),
}
RL_ONLY: dict[str, Family] = {
    "give_buy": lambda s, n: s.buys(s.gives(s.has())),
    "buy_share": buy_share,
    "give_share": give_share,
    "double_give": lambda s, n: s.gives(s.doubles(s.has()), who=1),
    "half_give": lambda s, n: s.gives(s.halves(s.has(4 * s.pick(n.each))), who=1),
    "groups_buy_give": lambda s, n: s.gives(s.buys(s.boxes())),
    "groups_give_buy": lambda s, n: s.buys(s.gives(s.boxes())),
    "week_buy": lambda s, n: s.buys(s.gets_for_a_week(s.has())),
    "give_spend": lambda s, n: shop(s, n, purchases=1, given=s.pick(n.amount)),
    "half_more": lambda s, n: compare(s, 2 * s.pick(n.each), s.halves, others=1),
}
LONGER: dict[str, Family] = {
    "long_trade": lambda s, n: s.gives(s.buys(s.gives(s.buys(s.boxes())))),
    "four_people": lambda s, n: compare(s, s.pick(n.each), s.doubles, others=2),
}

FAMILIES = SEEN | RL_ONLY
SEEN_FAMILIES, RL_FAMILIES, LONGER_FAMILIES = tuple(SEEN), tuple(RL_ONLY), tuple(LONGER)

SPLITS = ("train", "test", "test_harder")
ORIGIN = generated(SPLITS)


def load(
    split: str, *, num_rows: int = 1000, families: str | Sequence[str] = "all", seed: int = 0
) -> list[Row]:
    """Generate num_rows problems, in turn from each of the families.

    families is "all", "seen", "rl_only" or a list of names. The same arguments give the same
    rows, and fewer rows are the first of more. "all" includes LONGER_FAMILIES in "test_harder".
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    valid = [*FAMILIES, *LONGER] if split == "test_harder" else list(FAMILIES)
    groups = {"all": valid, "seen": list(SEEN), "rl_only": list(RL_ONLY)}
    names = chosen(families, groups, split)
    return in_turn([distinct(name, split, _draws(name, split, seed)) for name in names], num_rows)


def _draws(name: str, split: str, seed: int) -> Callable[[], Row | None]:
    """Return a function that draws a family's next problem; None for one of the other split."""
    family = (FAMILIES | LONGER)[name]
    numbers = LARGER if split == "test_harder" and name not in LONGER else NORMAL
    rng = random.Random(f"{name} {split} {seed}")

    def draw() -> Row | None:
        story = Story(rng, numbers, rng.sample(NAMES, 5), rng.sample(THINGS, 2))
        family(story, numbers)
        story.ask()
        if split not in ("test_harder", side(name, story.stated)):
            return None
        return {
            "prompt": " ".join(story.question),
            "completion": "\n".join([*story.rationale, f"#### {story.answer}"]),
            "answer": str(story.answer),
            "family": name,
        }

    return draw
