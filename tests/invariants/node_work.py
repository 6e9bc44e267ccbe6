"""What the ranks of several nodes train, for tests that compare it with one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import online_rank_work
import rank_work

from align.runtime.rank import Rank
from align.runtime.spread import Spread


def train(
    rank: Rank, *, bases: Mapping[str, Path], inputs: Path, online: Sequence[str], folder: Path, spread: Spread
) -> tuple[dict[str, rank_work.Trained | None], dict[str, Any]]:
    """Trainings on given rows, and online ones, whose results are in folders of their names; one start of the ranks for all."""
    trained = rank_work.train_all(rank, bases=bases, work=folder / "work", spread=spread)
    return trained, online_rank_work.run_all(rank, inputs=inputs, folder=folder, spread=spread, kinds=online)
