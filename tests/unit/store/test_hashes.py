"""How often a file of the store is read for its hash."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from align import load_recipe, run_recipe
from align.pipeline.plan import make_plan
from align.store import fingerprint
from align.store.fingerprint import BLOCK_BYTES, FileHashes

ADAPTERS = """\
name: adapters
inputs:
  base:         {kind: model, path: base}
  instructions: {kind: instructions, path: instructions.jsonl}
  prompts:      {kind: prompts, path: prompts.jsonl}
stages:
  sft:     {stage: sft, model: base, data: instructions, num_epochs: 2, batch_size: 8, max_tokens: 128}
  lora:    {stage: sft, model: sft, data: instructions, batch_size: 8, max_tokens: 128, peft: {method: lora, rank: 2}}
  further: {stage: sft, model: lora, data: instructions, batch_size: 8, max_tokens: 128, peft: {method: lora, rank: 2}}
  sampled: {stage: generate, model: further, prompts: prompts, num_candidates: 1, max_completion_tokens: 4,
            engine: transformers}
"""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each file was read for its hash, by inode."""
    counted: Counter[int] = Counter()
    original = fingerprint.sha256_of_file

    def count(path: Path) -> str:
        counted[path.stat().st_ino] += 1
        return original(path)

    monkeypatch.setattr(fingerprint, "sha256_of_file", count)
    return counted


@pytest.mark.slow
def test_a_run_reads_each_file_when_it_is_made_and_used_and_its_next_plan_reads_none(
    project: Path, tmp_path: Path, reads: Counter[int]
) -> None:
    (project / "recipe.yaml").write_text(ADAPTERS)
    recipe, out = load_recipe(project), tmp_path / "runs"
    run = run_recipe(recipe, out, in_process=True).folder
    models = [path for path in run.parent.rglob("*.safetensors") if path.is_file()]
    assert len(models) == 3 + 2 + 2, "two epochs and a model, twice an adapter and its one epoch"
    weights = {stage: next((run / "stages" / stage / "model").glob("*.safetensors")) for stage in ("sft", "lora", "further")}
    counts = {stage: reads[path.stat().st_ino] for stage, path in weights.items()}
    assert counts == {"sft": 2 + 3, "lora": 2 + 1, "further": 2 + 1}, "for the seal of the epoch, the result, and each use"
    assert reads[(run / "stages" / "sft" / "epochs" / "epoch-1" / "model.safetensors").stat().st_ino] == 2, "nothing uses it"
    assert reads[(project / "base" / "model.safetensors").stat().st_ino] == 2, "for the plan, and by sft"
    made = sum(reads.values())
    assert {stage.status for stage in make_plan(recipe, out).stages} == {"cached"}
    assert sum(reads.values()) == made


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_another_name_of_a_known_file_is_known_and_a_new_file_is_not(tmp_path: Path, reads: Counter[int]) -> None:
    first = write(tmp_path / "first", "12345")
    hashes = FileHashes(tmp_path / "hashes.json")
    digest = hashes.of(first)
    with hashes.touching([first]):
        os.link(first, tmp_path / "second")
    hashes.save()
    later = FileHashes(tmp_path / "hashes.json")
    assert later.of(tmp_path / "second") == digest
    assert sum(reads.values()) == 1
    # As `cp -p` makes it: same size and time, another file.
    copy = write(tmp_path / "copy", "54321")
    os.utime(copy, ns=(0, first.stat().st_mtime_ns))
    assert later.of(copy) != digest
    assert sum(reads.values()) == 2


def test_our_own_links_and_permissions_leave_a_known_file_known(tmp_path: Path, reads: Counter[int]) -> None:
    (tmp_path / "model").mkdir()
    file = write(tmp_path / "model" / "weights", "12345")
    hashes = FileHashes(tmp_path / "hashes.json")
    digest = hashes.of(file)
    hashes.link_tree(file.parent, tmp_path / "linked")
    with hashes.touching([file]):
        file.chmod(0o444)
    hashes.save()
    later = FileHashes(tmp_path / "hashes.json")
    assert later.of(file) == later.of(tmp_path / "linked" / "weights") == digest
    assert sum(reads.values()) == 1
    file.chmod(0o644)  # somebody else may have done more than that
    assert FileHashes(tmp_path / "hashes.json").of(file) == digest
    assert sum(reads.values()) == 2


def test_what_was_not_known_before_our_own_link_is_not_known_after_it(tmp_path: Path, reads: Counter[int]) -> None:
    file = write(tmp_path / "weights", "12345")
    hashes = FileHashes(None)
    hashes.of(file)
    status = file.stat()
    file.write_text("54321")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with hashes.touching([file]):
        os.link(file, tmp_path / "second")
    assert hashes.of(file) == sha256(b"54321").hexdigest()
    hashes.of(tmp_path / "second")
    assert sum(reads.values()) == 2


def test_a_cache_of_an_earlier_version_is_unknown(tmp_path: Path, reads: Counter[int]) -> None:
    file = write(tmp_path / "file", "12345")
    status = file.stat()
    known = {str(file): [status.st_size, status.st_mtime_ns, status.st_ino, "0" * 64]}
    write(tmp_path / "hashes.json", json.dumps(known))
    assert FileHashes(tmp_path / "hashes.json").of(file) == sha256(b"12345").hexdigest()
    assert sum(reads.values()) == 1


def test_several_files_are_read_at_once_and_each_once(tmp_path: Path, reads: Counter[int]) -> None:
    contents = {"empty": b"", "small": b"1", "block": b"2" * BLOCK_BYTES, "more": b"3" * (2 * BLOCK_BYTES + 1)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.link(tmp_path / "more", tmp_path / "linked")
    hashes, paths = FileHashes(None), [tmp_path / name for name in (*contents, "linked", "nowhere")]
    hashes.read(paths)
    assert {name: hashes.of(tmp_path / name) for name in contents} == {n: sha256(c).hexdigest() for n, c in contents.items()}
    assert hashes.of(tmp_path / "linked") == hashes.of(tmp_path / "more")
    hashes.read(paths)
    assert set(reads.values()) == {1}
    hashes.read(paths, again=True)
    assert set(reads.values()) == {2}


def test_a_digit_that_flipped_in_the_cache_accuses_no_file(tmp_path: Path) -> None:
    file, cache = write(tmp_path / "file", "12345"), tmp_path / "hashes.json"
    hashes = FileHashes(cache)
    digest = hashes.of(file)
    hashes.save()
    cache.write_text(cache.read_text().replace(digest[:8], "00000000"))
    assert FileHashes(cache).of(file) == digest


@pytest.mark.parametrize("damage", [lambda path: path.write_text("[1]"), lambda path: path.write_text('{"a": 1'), os.unlink])
def test_an_unreadable_cache_is_no_error(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    file = write(tmp_path / "file", "12345")
    cache = write(tmp_path / "hashes.json", "{}")
    damage(cache)
    hashes = FileHashes(cache)
    assert len(hashes.of(file)) == 64
    hashes.save()
    assert FileHashes(cache).of(file) == hashes.of(file)


def test_two_that_save_one_after_the_other_keep_both(tmp_path: Path, reads: Counter[int]) -> None:
    cache, files = tmp_path / "hashes.json", [write(tmp_path / name, name) for name in "ab"]
    both = [FileHashes(cache), FileHashes(cache)]
    for hashes, file in zip(both, files, strict=True):
        hashes.of(file)
    for hashes in both:
        hashes.save()
    (tmp_path / "b").unlink()
    again = FileHashes(cache)
    again.of(files[0])
    assert sum(reads.values()) == 2
