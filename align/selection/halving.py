"""Successive halving: all begin with a few prompts, and the better half goes on with more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

FINALISTS = 2
"""So many go on to the last prompt, so that the choice between the best is on all prompts."""


def rungs(items: Sequence[T], first: int | None) -> list[Sequence[T]]:
    """What is new on each rung: `first` items, then as many as there have been, and so on; all at once without `first`."""
    if first is None or first >= len(items):
        return [items]
    ends = [first]
    while ends[-1] < len(items):
        ends.append(min(2 * ends[-1], len(items)))
    return [items[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def better_half(means: Mapping[str, float]) -> list[str]:
    """The names that go on, in their order: the half with the higher means, rounded up, but at least two."""
    ranked = sorted(means, key=lambda name: -means[name])  # stable: of equal ones, the first goes on
    kept = ranked[: max(FINALISTS, -(-len(ranked) // 2))]
    return [name for name in means if name in kept]
