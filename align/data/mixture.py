"""Mix rows of several sources in given proportions, without taking a row twice.

N = min_i(rows_i / w_i) with weights that sum to 1; part i gives floor(N w_i) rows: the part that runs short first
limits the mixture. Rows are chosen by a hash of their ids, so a new row does not change which of the
other rows are chosen, as long as the sizes stay. The rest is dropped as `not_sampled`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import xxhash

NOT_SAMPLED = "not_sampled"
"""`drop_reason` of rows that the mixture has no room for."""


@dataclass(frozen=True)
class Place:
    """The origin of one row of the mixture."""

    part: str
    index: int
    """0-based number in the part."""


def mixed_places(ids: Mapping[str, Sequence[str]], weights: Mapping[str, float]) -> list[Place]:
    """The rows of the mixture, in its order.

    Args:
        ids: ids of the usable rows by part, in the order of the source.
        weights: share by part; only the proportion counts.
    """
    counts = part_sizes({name: len(part) for name, part in ids.items()}, weights)
    taken = {name: _chosen(part, counts[name]) for name, part in ids.items()}
    return list(_interleaved(taken))


def part_sizes(rows: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Number of rows taken from each part."""
    # Exact fractions: with floats, a mixture of 3 rows of weight 0.1 and 7 of weight 0.7 could lose a row.
    exact = {name: Fraction(str(weights[name])) for name in rows}
    size = min((Fraction(count) / exact[name] for name, count in rows.items()), default=Fraction(0))
    return {name: math.floor(size * exact[name]) for name in rows}


def _chosen(ids: Sequence[str], count: int) -> list[int]:
    """Indices of the rows with the smallest hashes, in the order of the source."""
    # The id itself breaks ties between equal hashes, so that the choice does not depend on the order of the file.
    order = sorted(range(len(ids)), key=lambda index: (xxhash.xxh3_64_intdigest(ids[index].encode()), ids[index]))
    return sorted(order[:count])


def _interleaved(taken: Mapping[str, Sequence[int]]) -> Iterator[Place]:
    """Rows of all parts, each spread evenly over the whole: row k of n stands at (k + 1/2) / n."""
    spread = (
        ((2 * number + 1) / (2 * len(indices)), rank, Place(name, index))
        for rank, (name, indices) in enumerate(taken.items())
        for number, index in enumerate(indices)
    )
    # Rows of two parts may have equal places: then the part's rank decides.
    for _, _, place in sorted(spread, key=lambda item: item[:2]):
        yield place
