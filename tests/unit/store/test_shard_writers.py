"""A shard that several processes write at the same time: whole and sealed when one of them has ended, and left alone then."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from align.records import Candidate
from align.store.artifact import read_rows
from align.store.shard import read_seal, shard_path, write_shard
from align.testing import candidate

ROWS = [candidate("word " * number, number, prompt_id="p") for number in range(50)]


def test_writers_of_equal_rows_do_not_disturb_each_other(tmp_path: Path) -> None:
    shard = shard_path(tmp_path, 0)

    def write(number: int) -> bool:
        write_shard(shard, ROWS, seconds=number)
        return read_seal(shard) is not None  # while others still write

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write, range(40)))
    assert list(read_rows(shard, Candidate)) == ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-00000.json", "shard-00000.jsonl"]


def test_a_complete_shard_stays_and_another_is_made_again(tmp_path: Path) -> None:
    shard = shard_path(tmp_path, 0)
    write_shard(shard, ROWS, made_by="first")
    write_shard(shard, ROWS[:3], made_by="a worker that was given up")
    assert (read_seal(shard) or {})["made_by"] == "first"
    assert list(read_rows(shard, Candidate)) == ROWS
    shard.write_bytes(shard.read_bytes()[:-1])
    write_shard(shard, ROWS, made_by="third")
    assert json.loads(shard.with_suffix(".json").read_text())["made_by"] == "third"
    assert read_seal(shard) is not None


def test_a_seal_belongs_to_its_shard_and_says_what_it_said(tmp_path: Path) -> None:
    first, second = (shard_path(tmp_path / "sft-1" / "work" / "shards", number) for number in range(2))
    for shard in (first, second):
        write_shard(shard, ROWS, tokens=7)
    shutil.copy(first.with_suffix(".json"), second.with_suffix(".json"))
    assert read_seal(second) is None, "the rows are the same, and still it is another shard"
    seal = json.loads(first.with_suffix(".json").read_text())
    first.with_suffix(".json").write_text(json.dumps({**seal, "tokens": 8}))
    assert read_seal(first) is None
    first.with_suffix(".json").write_text(json.dumps(seal))
    assert (read_seal(first) or {})["tokens"] == 7
    shutil.copytree(tmp_path / "sft-1", tmp_path / "sft-2")
    assert read_seal(tmp_path / "sft-2" / "work" / "shards" / first.name) is None
    first.unlink()
    first.symlink_to("/dev/zero")
    assert read_seal(first) is None
