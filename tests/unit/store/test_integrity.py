"""No damage of an entry goes unnoticed: of its files, of its manifest, and of what is remembered about them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.records import Drop
from align.store.artifact import Entry, Manifest, Store, write_rows
from align.store.seal import BrokenSeal, read_sealed, write_sealed
from align.testing.damage import flip, overwrite, rot


def manifest(stage: str = "sft", digest: str = "f" * 16) -> Manifest:
    fields: dict[str, Any] = {"kind": "model", "stage": stage, "stage_version": 1, "fingerprint": digest}
    return Manifest(**fields, config={"beta": 0.1}, inputs={"base": "a" * 16}, seed=1)


def committed(store: Store, stage: str = "sft", digest: str = "f" * 16) -> Entry:
    entry = store.entry(stage, digest)
    entry.begin()
    write_rows(entry.path / "drops.jsonl", [Drop(id="a", drop_reason="tie")])
    (entry.path / "model").mkdir()
    (entry.path / "model" / "weights").write_bytes(b"12345")
    entry.commit(manifest(stage, digest))
    return entry


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".store")


@pytest.fixture
def entry(store: Store) -> Entry:
    return committed(store)


def test_a_flip_is_seen_though_size_time_and_inode_are_the_same(store: Store, entry: Entry) -> None:
    flip(entry.path / "model" / "weights")
    state, problem = entry.check(entry.known_hashes)
    assert state == "damaged"
    assert "model/weights does not have the content it was written with (sha256 " in problem
    assert "5994471abb01…)" in problem, "what was expected"


def test_rot_is_found_by_reading_and_known_from_then_on(entry: Entry) -> None:
    rot(entry.path / "model" / "weights")
    assert entry.check(entry.known_hashes)[0] == "done", "a plan reads nothing"
    assert entry.verify(lambda name: name == "drops.jsonl")[0] == "done"
    assert entry.verify()[0] == "damaged"
    assert entry.check(entry.known_hashes)[0] == "damaged"


def test_rot_is_known_of_all_names_of_a_file(store: Store, entry: Entry) -> None:
    other = store.entry("select_model", "e" * 16)
    other.begin()
    entry.known_hashes.link_tree(entry.path / "model", other.path / "model")
    other.commit(manifest("select_model", "e" * 16))
    rot(entry.path / "model" / "weights")
    assert other.check(other.known_hashes)[0] == "done"
    assert entry.verify()[0] == "damaged"
    assert other.check(other.known_hashes)[0] == "damaged"


@pytest.mark.parametrize(
    ("put", "named"),
    [
        (lambda path: (path / "model" / "added.json").write_text("{}"), "model/added.json"),
        (lambda path: (path / "note.txt").write_text(""), "note.txt"),
        (lambda path: (path / "model" / "manifest.json").write_text(""), "model/manifest.json"),
        (lambda path: (path / "model" / "more").symlink_to("/etc"), "model/more"),
        (lambda path: os.mkfifo(path / "model" / "pipe"), "model/pipe"),
    ],
)
def test_what_align_did_not_put_there_is_damage(entry: Entry, put: Callable[[Path], object], named: str) -> None:
    put(entry.path)
    assert entry.check(entry.known_hashes) == ("damaged", f"{named} is not part of it")


def test_leftovers_of_the_work_are_none(entry: Entry) -> None:
    entry.work.mkdir()
    (entry.work / "seconds").write_text("1")
    assert entry.check(entry.known_hashes) == ("done", "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", {}),
        ("kind", "reward_model"),
        ("stage", "dpo"),
        ("stage_version", 2),
        ("fingerprint", "e" * 16),
        ("config", {"beta": 0.2}),
        ("inputs", {}),
        ("seed", 2),
        ("schema_version", 3),
        ("seal", "0" * 64),
        ("rows_out", 10**400),
    ],
)
def test_a_manifest_that_was_changed_by_hand_is_named(entry: Entry, field: str, value: Any) -> None:
    path = entry.path / "manifest.json"
    written = json.loads(path.read_bytes())
    path.unlink()
    path.write_text(json.dumps({**written, field: value}))
    assert entry.check(entry.known_hashes) == ("damaged", "manifest.json was changed after it was written")
    assert entry.read_manifest() is None


def test_a_manifest_of_an_earlier_version_is_named_as_such(entry: Entry) -> None:
    path = entry.path / "manifest.json"
    written = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "seal"}
    path.unlink()
    path.write_text(json.dumps(written | {"schema_version": 1}))
    assert "manifest.json has no seal: an earlier version of align wrote it" in entry.check(entry.known_hashes)[1]
    write_sealed(path, written | {"schema_version": 3})
    assert "manifest.json has the form 3 of another version" in entry.check(entry.known_hashes)[1]


def test_a_manifest_belongs_to_its_folder_but_a_copy_elsewhere_may_have_any_name(store: Store, entry: Entry) -> None:
    other = committed(store, "sft", "e" * 16)
    overwrite(other.path / "manifest.json", (entry.path / "manifest.json").read_bytes())
    problem = f"manifest.json is that of sft-{'f' * 16}, not of sft-{'e' * 16}"
    assert other.check(other.known_hashes) == ("damaged", problem)
    copy = Path(shutil.copytree(entry.path, store.root.parent / "my model"))
    assert Entry.given(copy).verify() == ("done", "")
    assert Entry.given(other.path).verify()[0] == "damaged"


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: os.truncate(path.write_bytes(b"") or path, 1 << 40),
    ],
)
def test_a_manifest_that_is_no_file_of_a_possible_size_ends_at_once(entry: Entry, put: Callable[[Path], object]) -> None:
    (entry.path / "manifest.json").unlink()
    put(entry.path / "manifest.json")
    state, problem = entry.check(entry.known_hashes)
    assert state == "damaged"
    assert problem.startswith("manifest.json cannot be read")


def test_finished_files_are_read_only_and_can_be_set_aside_and_removed(entry: Entry) -> None:
    files = [path for path in entry.path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert all(not path.stat().st_mode & 0o222 for path in files)
    shutil.rmtree(entry.quarantine())


def test_whoever_may_read_the_folder_may_read_its_files(store: Store) -> None:
    entry = store.entry("sft", "c" * 16)
    entry.begin()
    entry.path.chmod(0o750)
    weights = entry.path / "weights"
    weights.touch(mode=0o600)
    entry.commit(manifest("sft", "c" * 16))
    assert stat.S_IMODE(weights.stat().st_mode) == 0o440


def test_too_few_descriptors_are_no_damage(entry: Entry) -> None:
    hashes, before = entry.known_hashes, resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            entry.check(hashes)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert entry.check(hashes)[0] == "done"


def test_a_users_file_that_an_entry_links_to_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    own = tmp_path / "base" / "weights"
    own.write_bytes(b"123")
    own.chmod(0o644)
    entry = store.entry("input", "d" * 16)
    entry.begin()
    entry.known_hashes.link_tree(own.parent, entry.path / "model")
    entry.commit(manifest("input", "d" * 16))
    assert stat.S_IMODE(own.stat().st_mode) == 0o644
    own.write_bytes(b"124")
    assert entry.check(entry.known_hashes)[0] == "damaged"


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"seal": "', "null", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")]
)
def test_a_broken_seal_is_one_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "seal.json").write_text(content, encoding="latin-1")
    with pytest.raises(BrokenSeal):
        read_sealed(tmp_path / "seal.json")
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "nowhere.json")


def test_what_is_sealed_is_what_is_read(tmp_path: Path) -> None:
    content = {"by_length": {9: 1.5, 10: -0.0}, "pair": (1, None), "text": "\u2028é"}
    write_sealed(tmp_path / "seal.json", content)
    read = read_sealed(tmp_path / "seal.json")
    assert read.pop("seal")
    assert read == {"by_length": {"9": 1.5, "10": 0.0}, "pair": [1, None], "text": "\u2028é"}
