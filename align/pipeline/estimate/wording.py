"""Sizes and counts as a person reads them: two or three digits, for an estimate has no more."""

from __future__ import annotations

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
COUNTS = ("", " k", " M", " B")
"""Thousands, millions, billions."""


def size_text(size_bytes: int) -> str:
    """Such as 436 MiB or 2.3 GiB."""
    return _scaled(size_bytes, 1024, [f" {unit}" for unit in UNITS])


def count_text(count: int) -> str:
    """Such as 23 k or 7.6 M."""
    return _scaled(count, 1000, COUNTS)


def _scaled(value: float, step: int, units: tuple[str, ...] | list[str]) -> str:
    for unit in units[:-1]:
        if round(value) < step:
            return f"{value:.1f}{unit}" if value < 10 and unit != units[0] else f"{value:.0f}{unit}"
        value /= step
    return f"{value:.1f}{units[-1]}" if value < 10 else f"{value:.0f}{units[-1]}"
