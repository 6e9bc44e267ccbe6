"""The policies of selection and the options of each, for recipes and for the selection itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

PairPolicy = Literal[
    "max_min",
    "max_random",
    "best_vs_each",
    "best_vs_second",
    "margin_window",
    "mean_sigma",
    "top_k_bottom_k",
    "length_matched",
    "rso",
]
Combine = Literal["weighted_sum", "z_scores", "vote"]
OnLengthFlip = Literal["drop", "keep"]

POLICY_OPTIONS: Mapping[str, PairPolicy] = {
    "max_margin": "margin_window",
    "sigmas": "mean_sigma",
    "k": "top_k_bottom_k",
    "max_length_ratio": "length_matched",
    "rso_beta": "rso",
    "rso_accept": "rso",
}
"""Options that belong to a single policy; every other policy refuses them."""
