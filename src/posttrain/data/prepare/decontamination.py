"""Overlap of training rows with an evaluation set, by n-grams of words.

The measure of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C): a row overlaps when it has
n = 13 successive words in common with a text of the evaluation set, or holds such a text as a whole
where that is shorter; words are in lower case and without punctuation. As there, a text needs 8
words to be looked for at all. There, n-grams that matched more than 10 training documents were left
out as common phrases; here those of more than 10 evaluation rows are, which are the form of the
evaluation's prompts: a training set may well hold one problem in more than 10 wordings.

Every text in a row counts, whatever its column. The n-grams of the evaluation set are in memory,
the training rows are read as a stream. Languages written without spaces have no words here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.common.errors import SettingError
from posttrain.data.files import placed_rows
from posttrain.data.rows import Row

N = 13
FEWEST_WORDS = 8
MOST_ROWS = 10
WORD = re.compile(r"\w+")


@dataclass
class Ngrams:
    """What an evaluation set holds: for each length in words, n-grams with the rows they are of."""

    n: int
    rows_of: dict[int, dict[str, list[int]]] = field(default_factory=dict)
    beginnings: set[str] = field(default_factory=set)
    """The first words of all n-grams, as many as the shortest may have: one look tells of most
    places that none begins there."""
    num_rows: int = 0
    num_short: int = 0
    """Rows whose texts all have too few words."""
    num_common: int = 0
    """n-grams left out since they stand in more than MOST_ROWS rows."""


def read_ngrams(files: list[Path], n: int = N) -> Ngrams:
    if n < 1:
        raise SettingError("n", f"must be 1 or more; found {n}")
    found, fewest = Ngrams(n), min(n, FEWEST_WORDS)
    for file in files:
        for _, row in placed_rows(file):
            texts = [words for words in words_in(row) if len(words) >= fewest]
            for words in texts:
                length = min(n, len(words))
                rows_of = found.rows_of.setdefault(length, {})
                for gram in grams(words, length):
                    rows = rows_of.setdefault(gram, [])
                    if not rows or rows[-1] != found.num_rows:
                        rows.append(found.num_rows)
            found.num_short += not texts
            found.num_rows += 1
    for length, rows_of in found.rows_of.items():
        kept = {gram: rows for gram, rows in rows_of.items() if len(rows) <= MOST_ROWS}
        found.num_common += len(rows_of) - len(kept)
        found.rows_of[length] = kept
        found.beginnings |= {" ".join(gram.split(" ", fewest)[:fewest]) for gram in kept}
    if found.num_short == found.num_rows:
        names = ", ".join(map(str, files))
        raise ValueError(
            f"{names}: none of the {found.num_rows} rows has a text of {fewest} words to look for"
        )
    return found


def shared(row: Row, ngrams: Ngrams) -> Iterator[tuple[str, list[int]]]:
    """The n-grams of the row that the evaluation set has, each with its evaluation rows."""
    fewest = min(ngrams.n, FEWEST_WORDS)
    for words in words_in(row):
        for place, beginning in enumerate(grams(words, fewest)):
            if beginning not in ngrams.beginnings:
                continue
            for length, rows_of in ngrams.rows_of.items():
                gram = " ".join(words[place : place + length])
                if gram in rows_of:
                    yield gram, rows_of[gram]


def words_in(value: Any) -> Iterator[list[str]]:
    """The words of every text in a row, however deep it lies."""
    if isinstance(value, str):
        yield WORD.findall(value.lower())
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from words_in(part)


def grams(words: list[str], length: int) -> Iterable[str]:
    return map(" ".join, zip(*(words[start:] for start in range(length))))


@dataclass
class Overlap:
    num_rows: int
    num_overlapping: int
    evaluation: Ngrams
    num_touched: int
    """Evaluation rows that share an n-gram with a training row."""
    examples: list[tuple[str, str]]
    """Place and shared n-gram of the first overlapping rows."""
    seconds: float

    def lines(self) -> Iterator[str]:
        rows = max(self.num_rows, 1)
        yield (
            f"{self.num_overlapping:,} of {self.num_rows:,} training rows "
            f"({self.num_overlapping / rows:.2%}) share {self.evaluation.n} successive words with "
            f"the evaluation set; {self.num_rows / self.seconds:,.0f} rows/s"
        )
        yield (
            f"{self.num_touched:,} of {self.evaluation.num_rows:,} evaluation rows are touched "
            f"({self.evaluation.num_short:,} are too short to tell; {self.evaluation.num_common:,} "
            f"n-grams of more than {MOST_ROWS} of them are left out as the form of their prompts)"
        )
        yield from (f"{place}: {gram}" for place, gram in self.examples)


def measure_overlap(
    train: list[Path], evaluation: list[Path], n: int = N, num_examples: int = 5
) -> Overlap:
    begin = time.perf_counter()
    ngrams = read_ngrams(evaluation, n)
    num_rows, num_overlapping = 0, 0
    touched: set[int] = set()
    examples: list[tuple[str, str]] = []
    for file in train:
        for where, row in placed_rows(file):
            found = list(shared(row, ngrams))
            num_rows += 1
            num_overlapping += bool(found)
            touched.update(number for _, rows in found for number in rows)
            if found and len(examples) < num_examples:
                examples.append((where, found[0][0]))
    return Overlap(
        num_rows, num_overlapping, ngrams, len(touched), examples, time.perf_counter() - begin
    )
