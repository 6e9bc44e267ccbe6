"""A checkpoint is resumed from only when it is whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from align.store.seal import write_sealed
from align.training import checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (2, 10, 9):
        path = tmp_path / f"checkpoint-{step}"
        (path / "nested").mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"weights %d" % step)
        (path / "nested" / "state.json").write_text("{}")
        checkpoint.seal(path)
    return tmp_path


def test_the_newest_by_step_not_by_name(folder: Path) -> None:
    found = checkpoint.newest_valid(folder, on_damage=pytest.fail)
    assert found == folder / "checkpoint-10"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda p: (p / "checkpoint.json").unlink(), "was not finished"),
        (lambda p: (p / "checkpoint.json").write_text('{"fil'), "checkpoint.json cannot be read"),
        (lambda p: (p / "checkpoint.json").write_text('{"files": {}}'), "checkpoint.json has no seal"),
        (lambda p: (p / "more.pt").write_bytes(b""), "more.pt is not part of it"),
        (lambda p: shutil.copy(p.with_name("checkpoint-2") / "checkpoint.json", p), "checkpoint.json is that of checkpoint-2"),
        (lambda p: write_sealed(p / "checkpoint.json", {"place": p.name, "files": {}}), "model.safetensors is not part of it"),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda p: (p / "model.safetensors").write_bytes(b"weights 11"), "model.safetensors does not have the content"),
        (lambda p: (p / "nested" / "state.json").write_text(""), "nested/state.json does not have the content"),
    ],
)
def test_a_damaged_one_is_set_aside_and_named(folder: Path, damage: Callable[[Path], object], told: str) -> None:
    damage(folder / "checkpoint-10")
    messages: list[str] = []
    assert checkpoint.newest_valid(folder, on_damage=messages.append) == folder / "checkpoint-9"
    assert len(messages) == 1
    assert told in messages[0]
    assert (folder / "damaged-checkpoint-10").is_dir()
    assert checkpoint.newest_valid(folder, on_damage=pytest.fail) == folder / "checkpoint-9"


def test_none_is_left_when_all_are_damaged(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        (path / "checkpoint.json").unlink()
    assert checkpoint.newest_valid(folder, on_damage=lambda message: None) is None


def test_sealing_again_covers_what_changed(folder: Path) -> None:
    (folder / "checkpoint-2" / "model.safetensors").write_bytes(b"new")
    checkpoint.seal(folder / "checkpoint-2")
    assert checkpoint.problem_with(folder / "checkpoint-2") is None


def test_a_checkpoint_of_another_stage_is_not_used(folder: Path, tmp_path: Path) -> None:
    theirs, ours = (tmp_path / ".store" / name / "work" / "checkpoints" for name in ("sft-1", "sft-2"))
    shutil.copytree(folder / "checkpoint-9", theirs / "checkpoint-9")
    checkpoint.seal(theirs / "checkpoint-9")
    assert checkpoint.problem_with(theirs / "checkpoint-9") is None
    shutil.copytree(theirs, ours)
    problem = "checkpoint.json is that of sft-1/work/checkpoints/checkpoint-9"
    assert checkpoint.problem_with(ours / "checkpoint-9") == problem


def test_a_checkpoint_is_sealed_under_the_name_it_gets(folder: Path) -> None:
    shutil.copytree(folder / "checkpoint-9", folder / "unfinished")
    checkpoint.seal(folder / "unfinished", called="checkpoint-11")
    checkpoint.replace(folder / "checkpoint-11", folder / "unfinished")
    assert checkpoint.newest_valid(folder, on_damage=pytest.fail) == folder / "checkpoint-11"


def test_old_ones_are_removed(folder: Path) -> None:
    checkpoint.remove_old(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_a_checkpoint_is_due_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = checkpoint.Clock(2)
    for seconds, due in ((119, False), (120, True), (500, True)):
        now[0] = seconds
        assert clock.is_due() is due
    clock.restart()
    assert not clock.is_due()
    now[0] = 620
    assert clock.is_due()


def test_a_checkpoint_is_due_once_when_it_is_asked_for(tmp_path: Path) -> None:
    clock = checkpoint.Clock(60, tmp_path / "now")
    assert not clock.is_due()
    (tmp_path / "now").touch()
    assert clock.is_due()
    clock.restart()
    assert not clock.is_due()
