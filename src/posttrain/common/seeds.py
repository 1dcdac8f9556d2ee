"""Random numbers come from a place (docs/decisions/0005), and a place becomes a seed here."""

from __future__ import annotations

PRIME = 1_000_003


def mix(seed: int, *place: int) -> int:
    """Return a seed from 0 to 2**63 - 1 for a place: a step, a row and a sample number, say.

    Different places of one run have different seeds as long as each number is below PRIME.
    """
    for part in place:
        seed = (seed * PRIME + part) % 2**63
    return seed
