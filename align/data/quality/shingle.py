"""Shingles of texts and their MinHash signatures, a batch at a time.

The MinHash is datasketch's (scheme `affine32`, its permutations and its mixing): the signatures are the same as it would make
from the same hashes, number for number. It hashes one shingle at a time in Python; here a batch is hashed and permuted as
arrays.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE_CHARACTERS = 5
SEED = 1
"""Seed of the permutations: the same texts always have the same signature."""

UInt32Array = NDArray[np.uint32]
UInt64Array = NDArray[np.uint64]

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no code point is lost in the multiplication


def shingle_text(text: str) -> str:
    """The text that is cut into shingles: `text` in NFKD, without case, white space collapsed.

    NFKD takes Korean syllables apart into letters. Two lines that differ in one syllable then differ in as little as two English
    lines that differ in one syllable; in whole syllables, five of them are two words.
    """
    return " ".join(unicodedata.normalize("NFKD", text).casefold().split())


def shingles(text: str) -> frozenset[str]:
    """The runs of `SHINGLE_CHARACTERS` characters of a `shingle_text`; a shorter one is its own only shingle."""
    return frozenset(text[start : start + SHINGLE_CHARACTERS] for start in range(max(1, len(text) - SHINGLE_CHARACTERS + 1)))


def shingle_hashes(texts: Sequence[str]) -> tuple[UInt32Array, NDArray[np.intp]]:
    """Hashes of the shingles of every text, one text after the other.

    Args:
        texts: `shingle_text`s, none empty.
    Returns:
        hashes: [shingles], with repetitions; equal shingles have equal hashes on every machine.
        starts: [texts], where each text's hashes begin.
    """
    # Zeros behind every text make room for a last shingle and for texts that are shorter than one.
    padded = ("\0" * (SHINGLE_CHARACTERS - 1)).join([*texts, ""])
    points = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    windows = np.zeros(len(points) - SHINGLE_CHARACTERS + 1, dtype=np.uint64)
    for offset in range(SHINGLE_CHARACTERS):
        windows = windows * _FACTOR + points[offset : len(windows) + offset]
    lengths = np.fromiter(map(len, texts), dtype=np.intp, count=len(texts))
    counts = np.maximum(lengths - SHINGLE_CHARACTERS + 1, 1)
    text_starts = np.concatenate([[0], np.cumsum(lengths + SHINGLE_CHARACTERS - 1)[:-1]]).astype(np.intp)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.intp)
    # Windows that cross from one text into the next are left out.
    wanted = np.arange(counts.sum()) + np.repeat(text_starts - starts, counts)
    return _mixed(windows[wanted]), starts


def _mixed(values: UInt64Array) -> UInt32Array:
    """The upper half of a multiply-and-shift mix (Steele et al. 2014, SplitMix64): all bits of the shingle reach it."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (values >> np.uint64(32)).astype(np.uint32)


class Signer:
    """Makes MinHash signatures."""

    def __init__(self, num_perm: int) -> None:
        from datasketch import MinHash  # a second of import, most of it scipy's

        self._multipliers, self._summands = MinHash(num_perm=num_perm, seed=SEED, scheme="affine32").permutations

    def signatures(self, texts: Sequence[str]) -> UInt32Array:
        """[texts, num_perm]; two texts agree in a column with a probability equal to their Jaccard similarity."""
        hashes, starts = shingle_hashes(texts)
        mixed = _murmur_finalizer(hashes)
        columns = [
            # affine32 calculates modulo 2**32, which uint32 does by itself. reduceat needs at least one hash of every text.
            np.minimum.reduceat(mixed * multiplier + summand, starts)
            for multiplier, summand in zip(self._multipliers, self._summands, strict=True)
        ]
        return np.stack(columns, axis=1)


def _murmur_finalizer(hashes: UInt32Array) -> UInt32Array:
    """MurmurHash3's 32-bit finalizer, with which `affine32` begins."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))
