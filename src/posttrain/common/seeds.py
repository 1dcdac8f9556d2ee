"""Seeds that depend only on the position of a random draw in the run (docs/decisions/0005)."""

from __future__ import annotations

PRIME = 1_000_003


def mix(seed: int, *position: int) -> int:
    """Return a seed from 0 to 2**63 - 1 for a position, such as (step, row, sample number).

    Positions of equal length, up to 3, have different seeds if each number is below PRIME.
    """
    for part in position:
        seed = (seed * PRIME + part) % 2**63
    return seed
