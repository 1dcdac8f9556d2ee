"""Names, things and sentences of the generated word problems."""

NAMES = (
    "Adam",
    "Amy",
    "Anna",
    "Ben",
    "Carl",
    "Clara",
    "David",
    "Emma",
    "Eric",
    "Grace",
    "Henry",
    "Jack",
    "Kate",
    "Leo",
    "Lily",
    "Maria",
    "Noah",
    "Rosa",
    "Sam",
    "Tom",
)

THINGS = (
    "apples",
    "balls",
    "beads",
    "books",
    "buttons",
    "candles",
    "cards",
    "cookies",
    "cups",
    "eggs",
    "flowers",
    "lemons",
    "marbles",
    "oranges",
    "pencils",
    "plums",
    "shells",
    "stamps",
    "stickers",
    "toys",
)

# All wordings of a sentence give its numbers in the same order: with the family they identify the
# problem, which must also be possible from the text alone.
SENTENCES = {
    "has": ("{who} has {0} {x}.", "{who} starts with {0} {x}."),
    "buys": ("{who} buys {0} more {x}.", "Then {who} gets {0} more {x} from {other}."),
    "gives": ("{who} gives {0} {x} to {other}.", "Then {who} gives away {0} {x}."),
    "boxes": (
        "{who} has {0} boxes with {1} {x} in each box.",
        "{who} fills {0} boxes and puts {1} {x} in each box.",
    ),
    "splits": (
        "{who} splits the {x} equally among {0} friends.",
        "Then {who} shares all the {x} equally with {0} friends and keeps none.",
    ),
    "doubles": (
        "{who} has twice as many {x} as {other}.",
        "{who} has double the number of {x} that {other} has.",
    ),
    "halves": (
        "{who} has half as many {x} as {other}.",
        "{who} has half the number of {x} that {other} has.",
    ),
    "exceeds": (
        "{who} has {0} more {x} than {other}.",
        "Compared with {other}, {who} has {0} more {x}.",
    ),
    "week": (
        "{who} gets {0} more {x} each day for a week.",
        "Each day for a week {who} buys {0} more {x}.",
    ),
    "pays": (
        "{who} buys {0} {x} for {1} dollars each.",
        "{who} buys {0} {x} that cost {1} dollars each.",
    ),
    "book": ("{who} has a book of {0} pages.", "{who} starts a book that has {0} pages."),
    "reads": (
        "{who} reads {0} pages each day for {1} days.",
        "Each day {who} reads {0} pages and stops after {1} days.",
    ),
}

# One wording per kind of step, so that a step learned in one family is the same in all others.
STEPS = {
    "has": "{who} has {sum} {x}.",
    "left": "{who} has {sum} {x} left.",
    "gets": "{who} gets {sum} {x}.",
    "reads": "{who} reads {sum} {x}.",
    "pays": "{who} pays {sum} {x}.",
    "together": "Together they have {sum} {x}.",
    "each": "Each friend gets {sum} {x}.",
}

# The question, by the kind of the last step.
QUESTIONS = {
    "has": ("How many {x} does {who} have now?", "How many {x} does {who} have in the end?"),
    "left": ("How many {x} does {who} have left?", "How many {x} does {who} have in the end?"),
    "pays": ("How many {x} does {who} pay in total?", "How many {x} does {who} pay in the end?"),
    "together": ("How many {x} do they have together?", "How many {x} do they have in total?"),
    "each": ("How many {x} does each friend get?", "How many {x} are there for each friend?"),
}
