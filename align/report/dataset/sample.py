"""The items with the smallest keys; with hashes of rows as keys, a sample that is the same whenever the file is the same."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

import xxhash

T = TypeVar("T")


class SmallestKeys(Generic[T]):
    """The `size` items with the smallest keys.

    Where keys are hashes of the rows' content (`row_key`), they are a sample: a row added elsewhere moves at most one other out,
    samples of different sizes contain each other, and the order of a file does not matter. Equal rows have equal keys; the
    earlier goes first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, T]] = []
        self._offered = 0

    def offer(self, key: float, item: T) -> None:
        """Take the item if its key is among the smallest."""
        self._offered += 1
        # heapq keeps the smallest on top; with negative keys that is the largest key, which leaves first. The running number
        # breaks ties, so that items need no order.
        entry = (-key, -self._offered, item)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        # The heap is empty here only if `size` is 0.
        elif self._heap and entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def in_file_order(self) -> list[T]:
        """The sampled items in the order they were offered."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: -entry[1])]

    def smallest(self, size: int) -> list[T]:
        """The items that a sample of this smaller size would hold, in the order of their keys."""
        return [item for _, _, item in heapq.nlargest(size, self._heap, key=lambda entry: entry[:2])]


def row_key(text: str, seed: int) -> int:
    """64-bit key of a row's text."""
    # Texts of JSON may hold half of a surrogate pair, which strict UTF-8 refuses.
    return xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass"), seed=seed)
