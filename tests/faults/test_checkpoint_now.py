"""SIGUSR1: a training writes a checkpoint after its step, and goes on to the end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from align import load_recipe, run_recipe
from align.runtime.events import Event, Progress, Saving

pytestmark = pytest.mark.slow


def test_a_training_writes_a_checkpoint_when_it_is_asked_to(project: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    class Asking:
        def handle(self, event: Event) -> None:
            if isinstance(event, Progress) and event.task == "train":
                seen.append(f"step {event.done:.0f}")
                if event.done == 1:
                    os.kill(os.getpid(), signal.SIGUSR1)
            elif isinstance(event, Saving) and event.seconds is not None:
                seen.append("saved")

    recipe = load_recipe(project / "recipe.yaml", {"stages.sft.checkpoint_minutes": 60})
    run_recipe(recipe, tmp_path / "runs", until="sft", sinks=[Asking()], in_process=True)
    # By itself it writes one at every second step.
    assert seen[:6] == ["step 1", "saved", "step 2", "saved", "step 3", "step 4"]
