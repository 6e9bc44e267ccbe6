"""Entries of the store: done only with a manifest, damage always named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from align.records import Drop, TextRow
from align.store.artifact import Artifact, Entry, Manifest, Store, write_rows
from align.store.atomic import atomic_writer, link_tree, write_json
from align.store.fingerprint import FileHashes
from align.testing.damage import overwrite


def manifest(**changes: object) -> Manifest:
    fields = {"kind": "prompts", "stage": "generate", "stage_version": 1, "fingerprint": "f" * 16, "config": {}, "inputs": {}}
    return Manifest.model_validate({**fields, "seed": 1, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".store")


@pytest.fixture
def entry(store: Store) -> Entry:
    entry = store.entry("generate", "f" * 16)
    entry.begin()
    write_rows(entry.path / "rows.jsonl", [Drop(id="a", drop_reason="tie")])
    (entry.path / "model").mkdir()
    (entry.path / "model" / "weights").write_bytes(b"12345")
    (entry.work / "shard").write_bytes(b"unfinished")
    entry.commit(manifest())
    return entry


def test_without_a_manifest_an_entry_is_missing(store: Store) -> None:
    entry = store.entry("sft", "0" * 16)
    assert entry.check(store.hashes) == ("missing", "")
    entry.begin()
    (entry.path / "rows.jsonl").write_text("{}")
    assert entry.check(store.hashes) == ("missing", "")


def test_a_commit_hashes_every_file_and_removes_the_work(store: Store, entry: Entry) -> None:
    assert entry.check(store.hashes) == ("done", "")
    written = entry.read_manifest()
    assert written is not None
    assert sorted(written.files) == ["model/weights", "rows.jsonl"]
    assert written.files["model/weights"].size_bytes == 5
    assert not entry.work.exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: overwrite(path / "model" / "weights", b"12346"), "model/weights does not have the content"),
        (lambda path: overwrite(path / "model" / "weights", b"123"), "model/weights has 3 bytes, not 5"),
        (lambda path: (path / "rows.jsonl").unlink(), "rows.jsonl is missing"),
        (lambda path: overwrite(path / "manifest.json", b'{"kind":'), "manifest.json cannot be read"),
        (lambda path: overwrite(path / "manifest.json", b"{}"), "manifest.json has no seal"),
    ],
)
def test_damage_is_found_and_named(store: Store, entry: Entry, damage, told: str) -> None:  # type: ignore[no-untyped-def]
    damage(entry.path)
    state, problem = entry.check(store.hashes)
    assert state == "damaged"
    assert told in problem


def test_the_remembered_hash_does_not_hide_a_change(store: Store, entry: Entry) -> None:
    assert entry.check(store.hashes)[0] == "done"
    store.hashes.save()
    overwrite(entry.path / "model" / "weights", b"54321")
    assert Store(store.root).entry("generate", "f" * 16).check(Store(store.root).hashes)[0] == "damaged"


def test_hashes_without_a_cache_file_write_none(entry: Entry) -> None:
    hashes = FileHashes(None)
    before = sorted(entry.path.rglob("*"))
    assert entry.check(hashes) == ("done", "")
    hashes.save()
    assert sorted(entry.path.rglob("*")) == before


def test_quarantine_keeps_the_files_where_nothing_uses_them(store: Store, entry: Entry) -> None:
    target = entry.quarantine()
    assert (target / "model" / "weights").exists()
    assert entry.check(store.hashes)[0] == "missing"


def test_begin_keeps_the_work_and_removes_half_written_outputs(store: Store) -> None:
    entry = store.entry("sft", "1" * 16)
    entry.begin()
    (entry.work / "checkpoint").write_text("kept")
    (entry.path / "model").mkdir()
    (entry.path / "rows.jsonl").write_text("half")
    entry.begin()
    assert [path.name for path in entry.path.iterdir()] == ["work"]
    assert (entry.work / "checkpoint").exists()


def test_rows_must_be_read_as_what_they_are(entry: Entry) -> None:
    written = entry.read_manifest()
    assert written is not None
    with pytest.raises(TypeError, match="Drop is the record of no kind"):
        Artifact("p", entry.path, written).rows(Drop)
    with pytest.raises(TypeError, match="p holds prompts, not rows of TextRow"):
        Artifact("p", entry.path, written).rows(TextRow)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_writer(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model" / "more").mkdir(parents=True)
    (tmp_path / "model" / "weights").write_bytes(b"12345")
    (tmp_path / "model" / "more" / "template").write_bytes(b"text")
    return tmp_path / "model"


def test_a_linked_folder_has_the_same_files_and_outlives_the_first(model: Path, tmp_path: Path) -> None:
    link_tree(model, tmp_path / "other")
    for name in ("weights", "more/template"):
        assert (model / name).samefile(tmp_path / "other" / name)
    # A file is changed by another that takes its place.
    with atomic_writer(model / "weights") as stream:
        stream.write(b"54321")
    (model / "more" / "template").unlink()
    assert (tmp_path / "other" / "weights").read_bytes() == b"12345"
    assert (tmp_path / "other" / "more" / "template").read_bytes() == b"text"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP])
def test_where_nothing_can_be_linked_files_are_copied(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(source: str, target: Path) -> None:
        raise OSError(number, os.strerror(number), source)

    monkeypatch.setattr(os, "link", refuse)
    link_tree(model, tmp_path / "other")
    assert (tmp_path / "other" / "more" / "template").read_bytes() == b"text"
    assert not (model / "weights").samefile(tmp_path / "other" / "weights")


def test_a_full_disk_and_a_folder_that_exists_are_not_passed_over(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError):
        link_tree(model, tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        link_tree(tmp_path / "nowhere", tmp_path / "another")

    def refuse(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="No space left"):
        link_tree(model, tmp_path / "third")
