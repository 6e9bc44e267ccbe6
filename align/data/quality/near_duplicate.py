"""Near duplicates: rows whose texts are almost that of an earlier row.

MinHash signatures (Broder 1997) of character shingles find candidates through banding (Leskovec et al., "Mining of Massive
Datasets", 3.4); the exact Jaccard similarity of the shingle sets decides. A row is compared with the first rows of clusters
only, so every row that would be dropped is a near duplicate of one that stays: similarity is not passed along a chain.

The bands are compared by sorting arrays, not in datasketch's own index, which keeps a Python set for every bucket. A row takes
`num_perm` bytes, 4 for every band (212 together by default) and its place in a table of digests, about 600 at the peak, besides
the text itself.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from align.data.quality.shingle import Signer, UInt32Array, shingle_text, shingles

BATCH_CHARACTERS = 2**15
"""Characters hashed together: the arrays of a batch stay in the processor's cache."""
CANDIDATE_PROBABILITY = 0.995
"""Least probability that two texts whose similarity is just the threshold are compared at all."""
REMEMBERED_SETS = 2048
MAX_COMPARED_PER_BAND = 100
"""Most texts of one band that a text is compared with. Only rows made from one template come near this number; without it, the
time would grow with the square of their number."""


@dataclass(frozen=True)
class Cluster:
    """Rows whose texts are nearly the same as that of the first of them."""

    rows: tuple[int, ...]
    """0-based row numbers, ascending; the first is the one to keep. Every other has a Jaccard similarity with it of at least the
    threshold."""
    same_text: int
    """How many of the others differ from the first in nothing but case, Unicode form and white space: exact duplicates."""


@dataclass(frozen=True)
class Clusters:
    """The near-duplicate clusters of a dataset."""

    clusters: tuple[Cluster, ...]
    """Largest first, then in row order; only those of two rows and more."""

    @property
    def redundant(self) -> list[int]:
        """Row numbers, ascending, that would be dropped: all but the first of each cluster."""
        return sorted(row for cluster in self.clusters for row in cluster.rows[1:])


def near_duplicate_clusters(texts: Iterable[str], *, threshold: float = 0.8, num_perm: int = 128) -> Clusters:
    """Find the clusters of nearly equal texts.

    Args:
        texts: one per row; read once. Empty and blank texts belong to no cluster.
        threshold: least Jaccard similarity of the sets of 5-character shingles, in (0, 1].
        num_perm: length of the signatures; more find more of the pairs near the threshold, and take longer.
    Returns:
        Clusters, the same for the same texts in the same order. No pair below the threshold is in them. Pairs just at the
        threshold that share no row with others are found with a probability of 99.5 %.
    Raises:
        ValueError: if `threshold` or `num_perm` is out of range.
    """
    if not 0 < threshold <= 1 or num_perm < 2:
        raise ValueError(f"expected 0 < threshold <= 1 and num_perm >= 2, not {threshold} and {num_perm}")
    distinct = _DistinctTexts()
    tails, bands = _sketches(distinct.add_all(texts), threshold, num_perm)
    first_of = _assign(distinct.texts, tails, bands, threshold)
    return distinct.clusters(first_of)


class _DistinctTexts:
    """The texts without their exact duplicates, and which rows each stands for."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        """As given, not normalised: the caller has them in memory already."""
        self._number_of: dict[int, int] = {}
        self._number_of_row = array("q")

    def add_all(self, texts: Iterable[str]) -> Iterator[str]:
        """Take in every text; yield the `shingle_text` of those that are new."""
        for text in texts:
            normalised = shingle_text(text)
            if not normalised:
                self._number_of_row.append(-1)
                continue
            # By digest: keeping the normalised texts would double the memory that the texts take.
            digest = xxh3_64_intdigest(normalised.encode("utf-8", "surrogatepass"))
            number = self._number_of.setdefault(digest, len(self.texts))
            self._number_of_row.append(number)
            if number == len(self.texts):
                self.texts.append(text)
                yield normalised

    def clusters(self, first_of: Sequence[int]) -> Clusters:
        """Back from distinct texts to rows; `first_of`: number of the distinct text that each is a near duplicate of."""
        numbers = np.frombuffer(self._number_of_row, dtype=np.int64)
        firsts = np.array([*first_of, -1], dtype=np.int64)[numbers]  # the number of a blank row, -1, finds the -1 at the end
        members: defaultdict[int, list[int]] = defaultdict(list)
        # Shifted by one, because bincount takes no -1, which stands for blank rows.
        sizes = np.bincount(firsts + 1)
        for row in np.flatnonzero((sizes[firsts + 1] > 1) & (firsts >= 0)).tolist():
            members[int(firsts[row])].append(row)
        found = [Cluster(tuple(rows), same_text=int((numbers[rows] == first).sum()) - 1) for first, rows in members.items()]
        found.sort(key=lambda cluster: (-len(cluster.rows), cluster.rows))
        return Clusters(tuple(found))


def _sketches(texts: Iterable[str], threshold: float, num_perm: int) -> tuple[NDArray[np.uint8], UInt32Array]:
    """[texts, num_perm] last bytes of the signatures, to estimate similarity, and [texts, bands] hashes of the bands."""
    signer = Signer(num_perm)
    rows_per_band = band_rows(threshold, num_perm)
    num_bands = num_perm // rows_per_band
    tails, bands = [np.zeros((0, num_perm), np.uint8)], [np.zeros((0, num_bands), np.uint32)]
    for batch in _batches(texts):
        signatures = signer.signatures(batch)
        # One byte per column is enough for an estimate, and takes a quarter of the memory.
        tails.append(signatures.astype(np.uint8))
        grouped = signatures[:, : num_bands * rows_per_band].reshape(len(batch), num_bands, rows_per_band)
        hashed = np.zeros(grouped.shape[:2], np.uint32)
        for column in range(rows_per_band):
            # FNV-1a over the columns of a band. A collision costs one comparison in vain and changes no result.
            hashed = (hashed ^ grouped[:, :, column]) * np.uint32(0x01000193)
        bands.append(hashed)
    return np.concatenate(tails), np.concatenate(bands)


def band_rows(threshold: float, num_perm: int) -> int:
    """Signature columns per band: as many as still give `CANDIDATE_PROBABILITY` at the threshold.

    More columns mean fewer comparisons in vain. P(candidate) = 1 − (1 − threshold^rows)^bands.
    """

    def probability(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (num_perm // rows)

    return max((rows for rows in range(1, num_perm + 1) if probability(rows) >= CANDIDATE_PROBABILITY), default=1)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _assign(texts: Sequence[str], tails: NDArray[np.uint8], bands: UInt32Array, threshold: float) -> list[int]:
    """For every text the first one that it is a near duplicate of, or itself."""

    @lru_cache(maxsize=REMEMBERED_SETS)
    def shingles_of(number: int) -> frozenset[str]:
        return shingles(shingle_text(texts[number]))

    # Two unequal values agree in their last byte once in 256; four standard errors below the threshold, 1 in 30,000 is missed.
    doubt = 4 * math.sqrt(threshold * (1 - threshold) / tails.shape[1])
    least_agreement = threshold - doubt
    first_of = list(range(len(texts)))
    firsts_in: defaultdict[int, list[int]] = defaultdict(list)
    for number, buckets in _shared_buckets(bands):
        # In row order: the earliest near duplicate is the one that counts.
        candidates = sorted({first for bucket in buckets for first in firsts_in[bucket]})
        if candidates:
            agreement = (tails[candidates] == tails[number]).mean(axis=1)
            for candidate in np.array(candidates)[agreement >= least_agreement].tolist():
                if jaccard(shingles_of(candidate), shingles_of(number)) >= threshold:
                    first_of[number] = candidate
                    break
        # Only first rows of clusters are entered, so that no row joins a cluster through another duplicate.
        if first_of[number] == number:
            for bucket in buckets:
                if len(firsts_in[bucket]) < MAX_COMPARED_PER_BAND:
                    firsts_in[bucket].append(number)
    return first_of


def _shared_buckets(bands: UInt32Array) -> Iterator[tuple[int, list[int]]]:
    """Every text that shares a band with another, in order, with the numbers of the buckets it shares."""
    members, buckets, num_buckets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for column in range(bands.shape[1]):
        _, bucket_of, sizes = np.unique(bands[:, column], return_inverse=True, return_counts=True)
        # Texts that share no band, which are most, never reach a loop in Python.
        shared = np.flatnonzero(sizes[bucket_of] > 1)
        members.append(shared)
        buckets.append(bucket_of[shared] + num_buckets)
        num_buckets += len(sizes)
    every_member, every_bucket = np.concatenate(members), np.concatenate(buckets)
    order = np.argsort(every_member, kind="stable")
    every_member, every_bucket = every_member[order], every_bucket[order]
    numbers, starts = np.unique(every_member, return_index=True)
    for number, its_buckets in zip(numbers.tolist(), np.split(every_bucket, starts[1:]), strict=False):
        yield number, its_buckets.tolist()


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Size of the intersection over size of the union, in [0, 1]; 0 for two empty sets."""
    shared = len(first & second)
    union = len(first) + len(second) - shared
    return shared / union if union else 0.0
