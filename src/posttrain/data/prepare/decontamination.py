"""Overlap of training rows with an evaluation set, by n-grams of words.

The measure of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C): a row overlaps if it shares
n = 13 successive words with a text of the evaluation set, or contains the whole of a shorter text;
words are in lower case and without punctuation. As there, texts of fewer than 8 words are ignored.
There, n-grams that matched more than 10 training documents were ignored as common phrases; here,
those in more than 10 evaluation rows are, as the wording of the evaluation's prompts, since a
training set may well contain one problem in more than 10 variants.

Every string in a row counts, whatever its column. The n-grams of the evaluation set are held in
memory, the training rows are streamed. Languages written without spaces have no words here.
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
    """The n-grams of an evaluation set: for each length in words, n-gram -> rows that have it."""

    n: int
    rows_of: dict[int, dict[str, list[int]]] = field(default_factory=dict)
    beginnings: set[str] = field(default_factory=set)
    """The first words of all n-grams, as many as the shortest may have: one look-up rules out most
    positions in a row."""
    num_rows: int = 0
    num_short: int = 0
    """Rows without a text of enough words."""
    num_common: int = 0
    """n-grams ignored because they are in more than MOST_ROWS rows."""


def read_ngrams(files: list[Path], n: int = N) -> Ngrams:
    """Return the n-grams of an evaluation set; raise ValueError if no text has enough words."""
    if n < 1:
        raise SettingError("n", f"must be 1 or more; got {n}")
    ngrams, fewest = Ngrams(n), min(n, FEWEST_WORDS)
    for file in files:
        for _, row in placed_rows(file):
            texts = [words for words in words_in(row) if len(words) >= fewest]
            for words in texts:
                length = min(n, len(words))
                rows_of = ngrams.rows_of.setdefault(length, {})
                for gram in grams(words, length):
                    rows = rows_of.setdefault(gram, [])
                    if not rows or rows[-1] != ngrams.num_rows:
                        rows.append(ngrams.num_rows)
            ngrams.num_short += not texts
            ngrams.num_rows += 1
    for length, rows_of in ngrams.rows_of.items():
        kept = {gram: rows for gram, rows in rows_of.items() if len(rows) <= MOST_ROWS}
        ngrams.num_common += len(rows_of) - len(kept)
        ngrams.rows_of[length] = kept
        ngrams.beginnings |= {" ".join(gram.split(" ", fewest)[:fewest]) for gram in kept}
    if ngrams.num_short == ngrams.num_rows:
        names = ", ".join(map(str, files))
        raise ValueError(
            f"{names}: none of the {ngrams.num_rows} rows has a text of {fewest} words to look for"
        )
    return ngrams


def shared(row: Row, ngrams: Ngrams) -> Iterator[tuple[str, list[int]]]:
    """Yield the n-grams that the row shares with the evaluation set, each with its rows there."""
    fewest = min(ngrams.n, FEWEST_WORDS)
    for words in words_in(row):
        for position, beginning in enumerate(grams(words, fewest)):
            if beginning not in ngrams.beginnings:
                continue
            for length, rows_of in ngrams.rows_of.items():
                gram = " ".join(words[position : position + length])
                if gram in rows_of:
                    yield gram, rows_of[gram]


def words_in(value: Any) -> Iterator[list[str]]:
    """Yield the words of each string in a row, however deeply nested."""
    if isinstance(value, str):
        yield WORD.findall(value.lower())
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from words_in(part)


def grams(words: list[str], length: int) -> Iterable[str]:
    """Return the n-grams of `length` words, joined by spaces."""
    return map(" ".join, zip(*(words[start:] for start in range(length))))


@dataclass
class Overlap:
    """The overlap of training rows with an evaluation set."""

    num_rows: int
    num_overlapping: int
    evaluation: Ngrams
    num_touched: int
    """Evaluation rows that share an n-gram with a training row."""
    examples: list[tuple[str, str]]
    """Location and first shared n-gram of the first overlapping rows."""
    seconds: float

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report."""
        rows = max(self.num_rows, 1)
        yield (
            f"{self.num_overlapping:,} of {self.num_rows:,} training rows "
            f"({self.num_overlapping / rows:.2%}) share {self.evaluation.n} successive words with "
            f"the evaluation set; {self.num_rows / self.seconds:,.0f} rows/s"
        )
        yield (
            f"{self.num_touched:,} of {self.evaluation.num_rows:,} evaluation rows are affected "
            f"({self.evaluation.num_short:,} are too short to compare; "
            f"{self.evaluation.num_common:,} n-grams in more than {MOST_ROWS} of them are ignored "
            "as the wording of their prompts)"
        )
        yield from (f"{where}: {gram}" for where, gram in self.examples)


def measure_overlap(
    train: list[Path], evaluation: list[Path], n: int = N, num_examples: int = 5
) -> Overlap:
    """Count the training rows that share an n-gram with the evaluation set."""
    begin = time.perf_counter()
    ngrams = read_ngrams(evaluation, n)
    num_rows, num_overlapping = 0, 0
    touched: set[int] = set()
    examples: list[tuple[str, str]] = []
    for file in train:
        for where, row in placed_rows(file):
            matches = list(shared(row, ngrams))
            num_rows += 1
            num_overlapping += bool(matches)
            touched.update(number for _, rows in matches for number in rows)
            if matches and len(examples) < num_examples:
                examples.append((where, matches[0][0]))
    return Overlap(
        num_rows, num_overlapping, ngrams, len(touched), examples, time.perf_counter() - begin
    )
