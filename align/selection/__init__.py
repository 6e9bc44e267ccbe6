"""Selection: from scored candidates to instructions, pairs or labelled rows; every prompt is kept or dropped with a reason.

Selectors work on plain lists, one prompt at a time; `files` reads files of any size into such lists.
"""

from align.config.selection import PairPolicy
from align.selection.best_of_n import best_of_n
from align.selection.candidate import Group, group_candidates
from align.selection.label import label_candidates
from align.selection.pair import build_pairs
from align.selection.rejection import accept_candidates

__all__ = ["Group", "PairPolicy", "accept_candidates", "best_of_n", "build_pairs", "group_candidates", "label_candidates"]
