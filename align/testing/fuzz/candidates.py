"""The fuzz target of scored candidates: files of a user in JSON Lines and Parquet, read and made into pairs as a stage does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from align.errors import DataError, StageError
from align.selection.files.open import open_file
from align.selection.files.reader import RowFile
from align.selection.pair import PairSelector
from align.selection.pair_rule import PairRule
from align.selection.run import select_from_files
from align.store.artifact import ROWS_NAME
from align.testing.fuzz.mutate import as_json, changed_tree, mutated
from align.testing.fuzz.target import ACCEPTED, Finding, refusal

MESSAGES = [{"role": "user", "content": "가"}]
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt_id": "p", "prompt": "x", "completion": "a", "candidate_index": 0, "finish_reason": "stop", "scores": {"rm": 1.0}},
    {"prompt_id": "p", "prompt": "x", "completion": "b", "candidate_index": 1, "finish_reason": "stop", "scores": {"rm": -2.5}},
    {"prompt_id": "q", "prompt": MESSAGES, "completion": "c", "scores": {"rm": 0.5, "length": 3}},
    {"prompt_id": "q", "prompt": MESSAGES, "completion": "d", "scores": {"rm": 0.0, "length": 4}},
    {"prompt_id": 7, "prompt": "y", "completion": "e", "scores.rm": 1},
    {"prompt_id": 7, "prompt": "y", "completion": "f", "scores.rm": 2},
    {"prompt_id": "r", "prompt": "z", "completion": "g", "finish_reason": "length", "scores": {"rm": None}},
    {"prompt_id": "r", "prompt": "z", "completion": "h", "finish_reason": "length", "scores": {"rm": 0.0}},
)
"""Four prompts with two candidates each, in the forms that are read; the last prompt is dropped."""


class CandidatesTarget:
    """Files of scored candidates, from which pairs are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.selector = PairSelector(PairRule(scorer="rm"))
        lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS]
        self.lines = [b"".join(lines), b"".join(lines[:2]), b"".join(lines[4:]), b"".join(lines[::2] + lines[1::2])]
        self.tables = [_table(form, codec, groups) for form in range(4) for codec, groups in (("none", 1), ("snappy", 9))]
        self.names = sorted({name for row in ROWS for name in row} | {"score", "role", "content", "rm"})

    def make(self, random: Random) -> bytes:
        """JSON Lines most of the time, half of them with changed values; Parquet is read by a library."""
        if random.randrange(5) == 0:
            return b".parquet\n" + mutated(random, self.tables)
        if random.randrange(2):
            return b".jsonl\n" + mutated(random, self.lines)
        rows = [
            changed_tree(random, row, self.names) if random.randrange(6) == 0 else row for row in random.choice((ROWS, ROWS[2:6]))
        ]
        return b".jsonl\n" + b"".join(as_json(random, row).replace(b"\n", b" ") + b"\n" for row in rows)

    def read(self, data: bytes) -> str:
        """DataError and StageError are refusals; every prompt gives a pair or is dropped with a reason."""
        ending, _, content = data.partition(b"\n")
        path = self.folder / f"x{ending.decode()}"
        path.write_bytes(content)
        output, work = self.folder / "output", self.folder / "work"
        for made in (output, work):
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
        try:
            open_file(RowFile(path)).check()
            outcome = select_from_files(
                [RowFile(path)], self.selector, name="pairs", output=output, work=work, count=lambda *_: None, num_workers=1
            )
        except (DataError, StageError) as error:
            return refusal(error)
        pairs = [json.loads(line) for line in (output / ROWS_NAME).read_bytes().splitlines()]
        if outcome.rows_in != len(pairs) + sum(outcome.dropped.values()):
            raise Finding(f"{outcome.rows_in} prompts, {len(pairs)} pairs, dropped: {outcome.dropped}")
        for pair in pairs:
            if not pair["chosen_score"] > pair["rejected_score"]:
                raise Finding(f"a pair with the scores {pair['chosen_score']} and {pair['rejected_score']}")
        return ACCEPTED


def _table(form: int, codec: str, group_rows: int) -> bytes:
    """A Parquet file with the columns in one of the types that writers choose."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(list(ROWS[2:4] if form == 1 else ROWS[:2]))
    if form == 2:
        scores = pyarrow.array(
            [[("rm", 1.0)], [("rm", 2.0), ("length", None)]], pyarrow.map_(pyarrow.string(), pyarrow.float64())
        )
        table = table.set_column(table.schema.get_field_index("scores"), "scores", scores)
    elif form == 3:
        texts = {"prompt_id": pyarrow.array([7, 7], pyarrow.uint64()), "prompt": table["prompt"].dictionary_encode()}
        numbers = {"candidate_index": pyarrow.array([0, 1], pyarrow.uint64()), "scores.rm": pyarrow.array([1, 2], pyarrow.int8())}
        table = pyarrow.table({**texts, "completion": table["completion"].cast(pyarrow.large_string()), **numbers})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink, compression=codec, row_group_size=group_rows)
    content: bytes = sink.getvalue().to_pybytes()
    return content
