"""Shares of an input: rows with one prompt stay together, so that shares without overlap have no prompt in common."""

from __future__ import annotations

from typing import Any

import xxhash

from align.config.inputs import DataInput

OUTSIDE_SHARE = "outside_share"
"""`drop_reason` of rows that another share of the input takes."""


def in_share(spec: DataInput, record: Any) -> bool:
    """Whether a record belongs to the input's share of its prompts: a hash of the text decides."""
    if spec.share is None:
        return True
    low, high = spec.share
    place = xxhash.xxh3_64_intdigest(spec.row_kind.subject_text(record).encode("utf-8", "surrogatepass")) / 2**64
    # The last share has its end: rounding can bring the largest hashes to 1.
    return low <= place < high or (high == 1 and place >= high)
