"""Every file of a finished project, damaged one after the other: none is used in silence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from align import load_recipe, run_recipe
from align.errors import EnvironmentProblem
from align.pipeline.plan import make_plan
from align.runtime.events import Quarantined
from align.store.artifact import Entry
from align.store.fingerprint import HASHES_NAME, FileHashes
from align.testing import Recorder
from align.testing.damage import flip, overwrite, rot


@pytest.fixture(scope="module")
def store(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the store of a finished run, which knows the hashes of its files."""
    out = Path(shutil.copytree(finished_run.parent, tmp_path_factory.mktemp("damaged") / "runs", symlinks=True))
    hashes = FileHashes(out / ".store" / HASHES_NAME)
    hashes.read((out / ".store").glob("*/**/*"))
    hashes.save()
    return out / ".store"


def files_of(store: Path) -> Iterator[tuple[Entry, str, Path]]:
    """Every file of every finished entry, with its path inside."""
    for folder in sorted(path.parent for path in store.glob("*/manifest.json")):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield Entry(folder), path.relative_to(folder).as_posix(), path


def test_every_file_flipped(store: Path) -> None:
    found = 0
    for entry, name, path in files_of(store):
        content, status = path.read_bytes(), path.stat()
        flip(path)
        state, problem = entry.check(entry.known_hashes)
        assert (state, problem.split()[0]) == ("damaged", name), path
        overwrite(path, content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        found += 1
    assert found > 60
    assert {entry.check(entry.known_hashes) for entry, *_ in files_of(store)} == {("done", "")}


def test_every_entry_rotten(store: Path) -> None:
    largest = {entry.path: (entry, path) for entry, _, path in sorted(files_of(store), key=lambda file: file[2].stat().st_size)}
    for entry, path in largest.values():
        content = path.read_bytes()
        rot(path)
        assert path.name == "manifest.json" or entry.check(entry.known_hashes)[0] == "done", "a plan reads no file again"
        assert entry.verify()[0] == "damaged", path
        overwrite(path, content)
    assert {entry.check(entry.known_hashes) for entry, *_ in files_of(store)} == {("done", "")}


def test_a_stage_refuses_rotten_rows_and_the_same_command_makes_them_again(
    project: Path, finished_run: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))
    recipe = load_recipe(project / "recipe.yaml", ["stages.pairs.min_margin=0.001"])
    make_plan(recipe, out)  # remembers the files of the copy
    scored = (out / "tiny" / "stages" / "scored").resolve()
    before = (scored / "rows.jsonl").read_bytes()
    rot(scored / "rows.jsonl")
    assert {stage.name: stage.status for stage in make_plan(recipe, out).stages}["scored"] == "cached"
    recorder = Recorder()
    with pytest.raises(EnvironmentProblem, match=r"scored: .*: damaged: rows.jsonl does not have the content") as caught:
        run_recipe(recipe, out, until="pairs", sinks=[recorder])
    assert caught.value.exit_code == 4
    assert [event.stage for event in recorder.of(Quarantined)] == ["scored"]
    run_recipe(recipe, out, until="pairs")
    assert (scored / "rows.jsonl").read_bytes() == before
