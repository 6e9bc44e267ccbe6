"""Files and folders that this user may not read or write: which one, and what to do, with exit code 4."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.cli.main import main
from align.testing.chaos_run import MOST_LINES

SOMEBODY = 65534
"""A user without rights, for tests that run as root."""


@contextlib.contextmanager
def as_somebody() -> Iterator[None]:
    """Inside, this process has no rights of root; it can take them back."""
    if os.geteuid():
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(SOMEBODY, SOMEBODY, 0)
    os.setresuid(SOMEBODY, SOMEBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@contextlib.contextmanager
def permissions(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


@pytest.fixture(scope="module")
def place(finished_run: Path, project_template: Path) -> Iterator[Path]:
    """A finished project of that user, whose hashes are known: recipe.yaml and `runs`."""
    # Not in pytest's folders, which nobody else may enter.
    with tempfile.TemporaryDirectory() as name:
        place = Path(shutil.copytree(project_template, Path(name, "project")))
        shutil.copytree(finished_run.parent, place / "runs", symlinks=True)
        assert main(["plan", str(place / "recipe.yaml"), "--out", str(place / "runs")]) == 0
        if os.geteuid() == 0:
            for path in (Path(name), *Path(name).rglob("*")):
                os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)
        yield place


def refused(place: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message with which a command refuses."""
    before = sorted(os.listdir(place / "runs")) if os.access(place / "runs", os.R_OK) else []
    capsys.readouterr()
    with as_somebody():
        code = main(arguments)
    answer = capsys.readouterr()
    assert code == 4, answer
    message = answer.err[answer.err.index("error: ") :]
    assert "Traceback" not in answer.err and len(message.splitlines()) <= MOST_LINES
    assert "done before" not in answer.out
    assert "may not read or write" in message and "chmod" in message
    assert not before or sorted(os.listdir(place / "runs")) == before
    return message


@pytest.mark.parametrize(
    "forbidden",
    [
        "recipe.yaml",
        "base/model.safetensors",
        "base/config.json",
        "base",
        "instructions.jsonl",
        "runs/.store/{sft}/model/model.safetensors",
        "runs/.store/{sft}/manifest.json",
        "runs/.store/{sft}",
        "runs/.store",
        "runs",
    ],
)
def test_a_plan_names_what_it_may_not_read(place: Path, capsys: pytest.CaptureFixture[str], forbidden: str) -> None:
    path = place / forbidden.format(sft=(place / "runs" / "tiny" / "stages" / "sft").resolve().name)
    with permissions(path, 0):
        message = refused(place, capsys, "plan", str(place / "recipe.yaml"), "--out", str(place / "runs"))
    assert str(path) in message
    assert not list((place / "runs" / ".store").glob("quarantine-*"))


@pytest.mark.parametrize("command", [["store", "list"], ["store", "verify"], ["store", "prune"]])
def test_a_store_names_what_it_may_not_read(place: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    path = (place / "runs" / "tiny" / "stages" / "sft").resolve() / "manifest.json"
    with permissions(path, 0):
        assert str(path) in refused(place, capsys, *command, "--out", str(place / "runs"))


@pytest.mark.parametrize("forbidden", ["runs/tiny", "runs/.store"])
def test_a_run_names_where_it_may_not_write(place: Path, capsys: pytest.CaptureFixture[str], forbidden: str) -> None:
    arguments = ["run", str(place / "recipe.yaml"), "--out", str(place / "runs"), "--set", "stages.dpo.learning_rate=2e-3"]
    with permissions(place / forbidden, 0o555):
        assert str(place / forbidden) in refused(place, capsys, *arguments)


def test_a_finished_run_of_others_can_be_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = place / "runs"
    forbidden = {runs: 0o555, runs / ".store": 0o555, runs / "tiny": 0o555, runs / ".store" / "hashes.json": 0}
    with contextlib.ExitStack() as stack:
        for path, mode in forbidden.items():
            stack.enter_context(permissions(path, mode))
        stack.enter_context(as_somebody())
        for command in (["plan", str(place / "recipe.yaml")], ["run", str(place / "recipe.yaml")], ["store", "list"]):
            assert main([*command, "--out", str(runs)]) == 0
    assert "to run" not in capsys.readouterr().out
