"""Sizes and counts in words, in a unit that shows them."""

from __future__ import annotations


def in_bytes(size: float) -> str:
    """Return a number of bytes in GiB, MiB, KiB or B: the largest unit of which it has one."""
    return _scaled(size, "B", 1024, ("Gi", "Mi", "Ki"))


def in_units(size: float, unit: str) -> str:
    """Return a number of a unit in thousands, millions or billions of it: 1.2 GB, 3.4 MFLOP."""
    return _scaled(size, unit, 1000, ("G", "M", "k"))


def _scaled(size: float, unit: str, base: int, prefixes: tuple[str, ...]) -> str:
    for power, prefix in zip((3, 2, 1), prefixes):
        if abs(size) >= base**power:
            return f"{size / base**power:,.1f} {prefix}{unit}"
    return f"{size:,.0f} {unit}"


def millions(count: int) -> str:
    """Return a count in millions, or as it is if it has fewer than one."""
    return f"{count / 1e6:,.1f}M" if count >= 1e6 else f"{count:,}"


def rate(per_second: float) -> str:
    """Return a number per second, with digits behind the point if there are few before it."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
