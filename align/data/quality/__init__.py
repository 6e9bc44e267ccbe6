"""Measures of a dataset: what its texts are like, before anything is trained on them. Loads no torch.

Every measure takes plain texts or numbers and returns numbers; none reads files, and none changes a text. docs/quality.md has
each with formula, threshold, how to read it and limits.
"""

from __future__ import annotations

from align.data.quality.language import language_of, language_shares
from align.data.quality.length_baseline import LengthBaseline, Share, length_baseline
from align.data.quality.near_duplicate import Cluster, Clusters, near_duplicate_clusters
from align.data.quality.opening import Openings, openings
from align.data.quality.overlap import OVERLAPS_EVALUATION, EvaluationIndex, Overlap
from align.data.quality.signal import SIGNALS, Signal, signals

__all__ = [
    "OVERLAPS_EVALUATION",
    "SIGNALS",
    "Cluster",
    "Clusters",
    "EvaluationIndex",
    "LengthBaseline",
    "Openings",
    "Overlap",
    "Share",
    "Signal",
    "language_of",
    "language_shares",
    "length_baseline",
    "near_duplicate_clusters",
    "openings",
    "signals",
]
