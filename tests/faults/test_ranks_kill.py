"""A training of two processes, killed: everything of it ends, and the same command gives the bytes of an undisturbed one."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from align import load_recipe, run_recipe
from align.errors import StageError
from align.runtime.events import Event, Progress
from align.store.artifact import Entry
from align.testing.processes import training_of, wait_until_gone
from align.testing.recorder import CheckpointAsker

pytestmark = pytest.mark.slow

MACHINE = {"training": {"processes": 2, "strategy": "fsdp2"}}


class KillAt:
    """Kills a process of a training when it reports a step."""

    def __init__(self, step: int, place: str) -> None:
        self._step, self._place = step, place
        self.seen: dict[str, int] = {}

    def handle(self, event: Event) -> None:
        if isinstance(event, Progress) and (event.task, event.done) == ("train", self._step) and not self.seen:
            self.seen = training_of(os.getpid())
            assert self.seen.keys() == {"stage", "rank 0", "rank 1"}
            os.kill(self.seen[self._place], signal.SIGKILL)


def files_of(out: Path, stage: str = "sft") -> dict[str, str]:
    found = Entry(out / "tiny" / "stages" / stage).read_manifest()
    assert found is not None
    # A row of an online training has timings.
    return {name: entry.sha256 for name, entry in found.files.items() if stage == "sft" or name != "metrics.jsonl"}


def test_killed_at_two_places_it_ends_with_the_same_bytes(project: Path, tmp_path: Path, finished_run: Path) -> None:
    recipe = load_recipe(project / "recipe.yaml", ["stages.sft.checkpoint_steps=1"])
    run_recipe(recipe, tmp_path / "undisturbed", until="sft", machine=MACHINE)
    out = tmp_path / "killed"
    for step, place, message in (
        (3, "rank 1", r"rank 1 of 2 was killed by signal 9 \(SIGKILL\) before it was done"),
        (8, "stage", r"sft: its process was killed by signal 9 \(SIGKILL\)"),
    ):
        killer = KillAt(step, place)
        with pytest.raises(StageError, match=message) as caught:
            run_recipe(recipe, out, until="sft", machine=MACHINE, sinks=[killer])
        assert "Run the same command again" in str(caught.value)
        assert len(caught.value.render().splitlines()) <= 15
        assert wait_until_gone(killer.seen.values(), 60.0) == []
    run_recipe(recipe, out, until="sft", machine=MACHINE)
    assert files_of(out) == files_of(tmp_path / "undisturbed")
    of_one_process = files_of(finished_run.parent)
    assert files_of(out).keys() == of_one_process.keys()
    assert files_of(out)["model/config.json"] == of_one_process["model/config.json"]


def test_an_online_training_goes_on_where_it_was_killed(project: Path, tmp_path: Path, finished_run: Path) -> None:
    """The rank that samples, and one that does not. The run that it is compared with wrote a checkpoint at SIGUSR1."""
    recipe = load_recipe(project / "recipe.yaml")
    for name in ("undisturbed", "killed"):
        shutil.copytree(finished_run.parent, tmp_path / name, symlinks=True)
        shutil.rmtree((tmp_path / name / "tiny" / "stages" / "ppo").resolve())
    asker, asked = CheckpointAsker(), load_recipe(project / "recipe.yaml", {"stages.ppo.checkpoint_steps": None})
    run_recipe(asked, tmp_path / "undisturbed", until="ppo", machine=MACHINE, sinks=[asker])
    between = asker.seen[asker.seen.index("step 1") : asker.seen.index("step 3")]
    assert between.count("saved") == 1, asker.seen  # by itself it writes none
    out = tmp_path / "killed"
    for step, place in ((1, "rank 1"), (2, "rank 0")):
        killer = KillAt(step, place)
        with pytest.raises(StageError, match=rf"{place} of 2 was killed by signal 9 \(SIGKILL\) before it was done"):
            run_recipe(recipe, out, until="ppo", machine=MACHINE, sinks=[killer])
        assert wait_until_gone(killer.seen.values(), 60.0) == []
    run_recipe(recipe, out, until="ppo", machine=MACHINE)
    assert files_of(out, "ppo") == files_of(tmp_path / "undisturbed", "ppo")
    assert files_of(out, "ppo").keys() == files_of(finished_run.parent, "ppo").keys()
