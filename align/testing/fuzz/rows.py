"""The fuzz target of rows: files of data in every format, read and validated as an input of a recipe is."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from align.data.reader import FORMATS
from align.data.source import Source, SourceFile
from align.data.validation import RowRules, collect_rows
from align.errors import DataError
from align.rows import data_kinds
from align.testing.fuzz.mutate import as_json, changed_tree, mutated
from align.testing.fuzz.target import ACCEPTED, MUCH, Finding, refusal

MESSAGES = [{"role": "user", "content": "가 나"}, {"role": "assistant", "content": "b"}]
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": 1}}}
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "text": "d"},
    {
        "id": "1",
        "prompt": MESSAGES[:1],
        "completion": "b",
        "chosen": MESSAGES[1:],
        "rejected": "c",
        "text": "d",
        "reference": "4",
    },
    {"messages": MESSAGES, "chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "c"}], "text": "e"},
    {"prompt": MESSAGES[:1], "completion": "b", "label": True, "chosen_score": 1.5, "rejected_score": 0.5, "text": "f"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "text": "\n\nHuman: a\n\nAssistant: b"},
    {"instruction": "a", "input": "", "output": "b", "text": "g"},
    {"messages": [MESSAGES[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "1"}]},
)
TEXT_FORMATS = tuple(one for one in FORMATS if one not in (".parquet", ".arrow"))
COMPRESSED = 4
"""One in so many text files is compressed: before the changes or after."""
SPARE_ROWS = 3
MANY_ROWS = 10_000


class RowsTarget:
    """Files of every format, read as rows of every kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.on_progress: Callable[[], None] = lambda: None
        self.kinds = tuple(data_kinds())
        self.corpora = {ending: _files(ending) for ending in FORMATS}
        self.names = sorted({name for row in ROWS for name in row} | {"role", "content", "from", "value", "tools"})

    def make(self, random: Random) -> bytes:
        """Text formats most of the time: columnar files are read by a library and take longer."""
        ending = random.choice(TEXT_FORMATS) if random.randrange(10) else random.choice(FORMATS)
        if ending in (".jsonl", ".ndjson", ".json") and random.randrange(2):
            rows = [as_json(random, changed_tree(random, row, self.names)) for row in random.sample(ROWS, SPARE_ROWS)]
            rows = [row.replace(b"\n", b" ") for row in rows]
            content = b"[" + b",\n".join(rows) + b"]" if ending == ".json" else b"\n".join(rows) + b"\n"
        else:
            content = mutated(random, self.corpora[ending])
        if ending in TEXT_FORMATS and random.randrange(COMPRESSED) == 0:
            ending, content = ending + ".gz", gzip.compress(content, compresslevel=1, mtime=0)
            if random.randrange(2):
                content = mutated(random, [content])
        return f"x{ending} {random.choice(self.kinds)}\n".encode() + content

    def read(self, data: bytes) -> str:
        """Only DataError is a refusal; every row is kept or dropped with a reason."""
        head, _, content = data.partition(b"\n")
        name, kind = head.decode().split(" ")
        path = self.folder / name
        path.write_bytes(content)
        problems: list[Any] = []
        source = Source((SourceFile(path, name, {}),), name)
        try:
            rules = RowRules(data_kinds()[kind], on_invalid="drop")
            with collect_rows(source, rules, on_problem=problems.append, on_progress=lambda *_: self.on_progress()) as rows:
                summary = rows.summary
                kept, dropped = list(rows.records()), list(rows.drops())
        except DataError as error:
            return refusal(error)
        if summary.rows_in != len(kept) + len(dropped) or summary.rows_out != len(kept):
            raise Finding(f"{summary.rows_in} rows in, {len(kept)} kept, {len(dropped)} dropped")
        for record in kept:
            type(record).model_validate_json(record.model_dump_json())
        for problem in problems:
            problem.render()
        if summary.rows_in > MANY_ROWS:
            return MUCH
        return ACCEPTED if kept else "no row kept"


def _files(ending: str) -> list[bytes]:
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
    if ending in (".jsonl", ".ndjson"):
        return [b"\n".join(lines) + b"\n", *(line + b"\n" for line in lines)]
    if ending == ".json":
        return [b"[" + b",\n".join(lines) + b"]\n", *(b"[" + line + b"]" for line in lines)]
    if ending == ".txt":
        return ["one line\nanother 가\n\nlast".encode(), b"\xef\xbb\xbfa\r\nb\r\n"]
    if ending in (".csv", ".tsv"):
        cells = [["id", "prompt", "completion", "text"], ["1", "a", 'b "quoted"', "가"], ["2", "two\nlines", "c", "d,e\t"]]
        stream = io.StringIO()
        csv.writer(stream, delimiter="," if ending == ".csv" else "\t").writerows(cells)
        return [stream.getvalue().encode(), stream.getvalue().replace("\r\n", "\n").encode("utf-8-sig")]
    return _columnar(ending)


def _columnar(ending: str) -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    flat = {"prompt": ["a", "가", None], "completion": ["b", "c", "d"], "text": ["e", "f", "g"], "label": [True, False, None]}
    nested = {"messages": [MESSAGES, MESSAGES], "n": [1, 2]}
    files = []
    for table in (pyarrow.table(flat), pyarrow.table(nested)):
        for form in range(2):
            sink = pyarrow.BufferOutputStream()
            if ending == ".parquet":
                parquet.write_table(table, sink, compression=("none", "snappy")[form], use_dictionary=bool(form))
            else:
                open_writer = (pyarrow.ipc.new_stream, pyarrow.ipc.new_file)[form]
                with open_writer(sink, table.schema) as writer:
                    writer.write_table(table)
            files.append(sink.getvalue().to_pybytes())
    return files
