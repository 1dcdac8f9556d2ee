"""What generated data sets share: families of tasks, distinct rows, splits by a hash.

A row is generated from a family and the numbers or letters that are drawn for it. These two are
the task; names and wording are not. The task decides the split, so that another wording cannot
carry a training task into the test split.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

from posttrain.data.rows import Row

# A family without a new row in this many draws has run out of rows.
MAX_DRAWS = 5_000


def chosen(families: str | Sequence[str], groups: dict[str, list[str]], split: str) -> list[str]:
    """Return the families of a group or of a list of names; the group "all" has all valid ones."""
    valid = groups["all"]
    if isinstance(families, str):
        if families not in groups:
            raise ValueError(
                f"unknown families {families!r}: choose one of {', '.join(groups)}, "
                f"or a list of names from {', '.join(valid)}"
            )
        return groups[families]
    unknown = [name for name in families if name not in valid]
    if unknown or not families:
        problem = f"unknown families {', '.join(unknown)}" if unknown else "families is empty"
        raise ValueError(f"{problem}: choose names from {', '.join(valid)} for split {split!r}")
    return list(dict.fromkeys(families))


def side(family: str, drawn: Sequence[int | str]) -> str:
    """Return the split that a task belongs to: "train" for four tasks in five, else "test"."""
    # hash() would differ from one process to the next
    digest = hashlib.blake2b(f"{family} {drawn}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % 5 == 0 else "train"


def distinct(family: str, split: str, draw: Callable[[], Row | None]) -> Iterator[Row]:
    """Yield the rows of one family without end, no two with the same prompt.

    draw() returns the next row, or None for a draw to skip. Raise ValueError once MAX_DRAWS draws
    in a row bring nothing new.
    """
    known: set[str] = set()
    draws = 0
    while draws < MAX_DRAWS:
        draws += 1
        row = draw()
        if row is None or row["prompt"] in known:
            continue
        known.add(row["prompt"])
        draws = 0
        yield row
    raise ValueError(
        f"family {family!r} has no new problems in split {split!r} after {len(known)} rows: "
        "lower num_rows or name more families"
    )


def in_turn(streams: Sequence[Iterator[Row]], num_rows: int) -> list[Row]:
    """Return num_rows rows, taken from the streams in turn; fewer rows are the first of more."""
    if num_rows < 1:
        raise ValueError(f"num_rows must be at least 1; got {num_rows}")
    return [next(stream) for stream in itertools.islice(itertools.cycle(streams), num_rows)]
