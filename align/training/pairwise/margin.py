"""By how much the chosen completion of a pair should score higher: what a reward model may take from the rows' own scores."""

from __future__ import annotations

from align.config.row_need import RowNeed
from align.records import Preference


def margin_need() -> RowNeed:
    """What rows must have for `margin: scores`."""
    return RowNeed(
        "data", ("margin",), "chosen_score", lack_of_scores, "margin: scores is their difference", "write margin: none"
    )


def lack_of_scores(pair: Preference) -> str:
    """What a pair has in place of two scores with the chosen one not below; empty if it has them."""
    if pair.chosen_score is None or pair.rejected_score is None:
        return "no chosen_score or no rejected_score"
    return "a chosen_score below its rejected_score" if pair.chosen_score < pair.rejected_score else ""
