"""Names of the parts of a data set."""

from __future__ import annotations

from collections.abc import Sequence

SYNONYMS = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
"""Names of one split, as the library datasets knows them."""


def split_named(split: str | None, names: Sequence[str]) -> str | None:
    """Return the one of `names` that is the split, or another name of it; None if there is none."""
    if split in names:
        return split
    alike = next((group for group in SYNONYMS if split in group), ())
    return next((name for name in names if name in alike), None)
