"""Selection: from scored candidates to instructions or pairs. Pure Python; every prompt is kept or dropped with a reason."""

from align.selection.best_of_n import best_of_n
from align.selection.candidate import Group, group_candidates
from align.selection.pair import PairPolicy, build_pairs
from align.selection.rejection import accept_candidates

__all__ = ["Group", "PairPolicy", "accept_candidates", "best_of_n", "build_pairs", "group_candidates"]
