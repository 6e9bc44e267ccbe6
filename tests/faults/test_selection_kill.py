"""A selection killed in the midst of its shards: the next attempt gives the bytes of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SELECT = """
import sys, time
from pathlib import Path
from align.selection.files.reader import RowFile
from align.selection.run import select_from_files
from align.selection.pair import PairSelector
from align.selection.pair_rule import PairRule

def count(done, tasks):
    time.sleep(float(sys.argv[3]))

if __name__ == "__main__":
    files, out = [RowFile(Path(sys.argv[1]))], Path(sys.argv[2])
    rule = PairRule(scorer="rm", policy="max_random")
    select_from_files(
        files, PairSelector(rule), name="pairs", output=out, work=out / "work", count=count, num_workers=1, task_rows=8
    )
"""


def test_a_killed_selection_goes_on(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": f"p{number}", "prompt": "x", "completion": f"{number} {index}", "scores": {"rm": float(index * number % 5)}}
        for number in range(40)
        for index in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=8)
    (tmp_path / "selecting.py").write_text(SELECT)

    def start(out: Path, pause: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(tmp_path / "selecting.py"), str(tmp_path / "in.parquet"), str(out), str(pause)]
        return subprocess.Popen(command)

    assert start(tmp_path / "whole", 0).wait() == 0
    killed = start(tmp_path / "killed", 0.2)
    shards = tmp_path / "killed" / "work" / "shards"
    deadline = time.monotonic() + 30
    while len(list(shards.glob("shard-?????.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    finished = {path: path.stat().st_mtime_ns for path in shards.glob("shard-?????.jsonl")}
    assert 3 <= len(finished) < 20
    assert not (tmp_path / "killed" / "rows.jsonl").exists()

    assert start(tmp_path / "killed", 0).wait() == 0
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items() if path.with_suffix(".json").exists())
    for name in ("rows.jsonl", "drops.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
