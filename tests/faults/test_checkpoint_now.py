"""SIGUSR1: a training writes a checkpoint after its step, and goes on to the end. In several processes: test_ranks_kill.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from align import load_recipe, run_recipe
from align.testing.recorder import CheckpointAsker

pytestmark = pytest.mark.slow


def test_a_training_writes_a_checkpoint_when_it_is_asked_to(project: Path, tmp_path: Path) -> None:
    recipe, asker = load_recipe(project / "recipe.yaml", {"stages.sft.checkpoint_minutes": 60}), CheckpointAsker()
    run_recipe(recipe, tmp_path / "runs", until="sft", sinks=[asker], in_process=True)
    # By itself it writes one at every second step.
    assert asker.seen[:6] == ["step 1", "saved", "step 2", "saved", "step 3", "step 4"]
