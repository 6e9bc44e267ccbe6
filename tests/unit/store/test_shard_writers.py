"""A shard that several processes write at the same time: whole and sealed when one of them has ended, and left alone then."""

from __future__ import annotations

import json
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
