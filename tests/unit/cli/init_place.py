"""What the tests of `align init` begin with: a model, and data in the shapes that people have."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from align.testing.project import write_jsonl

NUMBER = 40
TURNS = [
    (f"I lost my {thing} number {index}.", "Oh no, I am sorry.", "Be careful.") for index, thing in enumerate(["cup"] * NUMBER)
]


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Init = Callable[..., Answer]


def fill(base: Path) -> None:
    """Write the files into the working folder.

    Args:
        base: folder of a model, which is copied.
    """
    shutil.copytree(base, "model")
    write_jsonl(Path("pairs.jsonl"), ({"prompt": p, "chosen": c, "rejected": r} for p, c, r in TURNS))
    lines = [f'"{p}","{c}","{r}"' for p, c, r in TURNS]
    Path("pairs.csv").write_text("\n".join(["query,good,bad", *lines]) + "\n")
    says = lambda role, text: {"role": role, "content": text}  # noqa: E731
    sides = {
        name: [[says("user", row[0]), says("assistant", row[number])] for row in TURNS]
        for number, name in ((1, "chosen"), (2, "rejected"))
    }
    pq.write_table(pa.table(sides), "talks.parquet")
    write_jsonl(Path("openai.jsonl"), ({"messages": [says("user", p), says("assistant", c)]} for p, c, _ in TURNS))
    share = [{"conversations": [{"from": "human", "value": p}, {"from": "gpt", "value": c}]} for p, c, _ in TURNS]
    Path("sharegpt.json").write_text(json.dumps(share))
    Path("alpaca.json").write_text(json.dumps([{"instruction": p, "input": "", "output": c} for p, c, _ in TURNS]))
    Path("pairs.txt").write_text("A text.\n")
    marked = ({"prompt": p, "completion": text, "label": good} for p, c, r in TURNS for text, good in ((c, True), (r, False)))
    write_jsonl(Path("marked.jsonl"), itertools.islice(marked, NUMBER))
    write_jsonl(Path("sums.jsonl"), ({"question": f"What is {i} + 1?", "answer": f"It is {i + 1}"} for i in range(NUMBER)))
