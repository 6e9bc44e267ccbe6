"""Selection from files is selection from records: format, cuts, scattering, processes and kills change no byte."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.errors import StageError
from align.records import Message, ScoredCandidate
from align.selection import best_of_n, build_pairs, group_candidates
from align.selection.best_of_n import BestRule, BestSelector
from align.selection.files import parquet, regroup
from align.selection.files.reader import RowFile
from align.selection.pair import PairSelector
from align.selection.pair_rule import PairRule
from align.selection.run import select_from_files
from align.selection.selector import Selector
from align.testing import scored_candidate

SEEDED = random.Random(5)


def candidates(prompts: int, each: int, generator: random.Random = SEEDED) -> list[ScoredCandidate]:
    return [
        scored_candidate(
            completion=generator.choice(["", "a", "bb", "c" * 40, "돋", f"{index}"]),
            index=index,
            prompt_id=f"p{number}",
            prompt=[Message(role="system", content="be kind"), Message(role="user", content=f"질문 {number}")],
            finish_reason=generator.choice(["stop", "stop", "stop", "length"]),
            scores={name: generator.choice([None, -0.0, 0.1, 0.2, 0.3, 1.0, 2.5]) for name in ("rm", "gold")},
        )
        for number in range(prompts)
        for index in range(each)
    ]


def as_lines(folder: Path, rows: Sequence[ScoredCandidate], cuts: Sequence[int]) -> list[RowFile]:
    def write(path: Path, part: Sequence[ScoredCandidate]) -> None:
        path.write_bytes(dumped(part))

    return _in_files(folder, rows, cuts, ".jsonl", write)


def as_parquet(folder: Path, rows: Sequence[ScoredCandidate], cuts: Sequence[int]) -> list[RowFile]:
    def write(path: Path, part: Sequence[ScoredCandidate]) -> None:
        table = pa.Table.from_pylist([row.model_dump(exclude={"reference"}) for row in part])
        pq.write_table(table, path, row_group_size=7)

    return _in_files(folder, rows, cuts, ".parquet", write)


def _in_files(
    folder: Path, rows: Sequence[ScoredCandidate], cuts: Sequence[int], suffix: str, write: Callable[[Path, Any], object]
) -> list[RowFile]:
    folder.mkdir(parents=True)
    files = []
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
        path = folder / f"{number}{suffix}"
        write(path, rows[start:stop])
        files.append(RowFile(path))
    return files


def select(files: Sequence[RowFile], selector: Selector[Any], folder: Path, **options: Any) -> tuple[bytes, bytes, Any]:
    options = {"num_workers": 1, "task_rows": 9, **options}
    made = select_from_files(files, selector, name="pairs", output=folder, work=folder / "work", count=lambda *_: None, **options)
    return (folder / "rows.jsonl").read_bytes(), (folder / "drops.jsonl").read_bytes(), made


def dumped(rows: Sequence[Any]) -> bytes:
    return "".join(row.model_dump_json() + "\n" for row in rows).encode()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that prompts lie across the borders of chunks."""
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 5)
    monkeypatch.setattr(parquet, "ID_ROWS", 4)
    monkeypatch.setattr(regroup, "PARTITION_ROWS", 16)


def pair_selector(seed: int = 0, **settings: Any) -> PairSelector:
    return PairSelector(PairRule(**settings), seed)


RULES = st.sampled_from(
    [
        {"scorer": "rm", "policy": "max_min"},
        {"scorer": "gold", "policy": "max_random", "seed": 3},
        {"scorer": "rm", "policy": "best_vs_each", "min_margin": 0.2},
        {"scorers": {"rm": 1.0, "gold": 2.0}, "combine": "z_scores", "policy": "top_k_bottom_k", "min_agreement": 0.5},
        {"scorers": {"rm": 1.0, "gold": 2.0}, "combine": "vote", "length_penalty": 1.0, "on_length_flip": "keep"},
    ]
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    options=RULES,
    seed=st.integers(0, 10_000),
    prompts=st.integers(1, 9),
    each=st.integers(2, 6),
    shuffled=st.booleans(),
    write=st.sampled_from([as_lines, as_parquet]),
)
def test_files_give_what_records_give(
    tmp_path_factory: pytest.TempPathFactory,
    options: dict[str, Any],
    seed: int,
    prompts: int,
    each: int,
    shuffled: bool,
    write: Callable[..., list[RowFile]],
) -> None:
    generator, folder = random.Random(seed), tmp_path_factory.mktemp("selection")
    rows = candidates(prompts, each, generator)
    if shuffled:
        generator.shuffle(rows)
    files = write(folder / "in", rows, sorted(generator.sample(range(1, len(rows)), min(2, len(rows) - 1))))
    pairs, drops = build_pairs(group_candidates(rows), **options)
    if not pairs:
        with pytest.raises(StageError, match="none of the"):
            select(files, pair_selector(**options), folder)
        return
    made = select(files, pair_selector(**options), folder)
    assert made[:2] == (dumped(pairs), dumped(drops))
    assert made[2].rows_in == prompts
    kept, left = best_of_n(group_candidates(rows), scorer="rm", keep=2)
    if kept:
        assert select(files, BestSelector(BestRule(scorer="rm", keep=2)), folder / "best")[:2] == (dumped(kept), dumped(left))


def test_processes_and_cuts_change_nothing(tmp_path: Path) -> None:
    files = as_parquet(tmp_path / "in", candidates(40, 4, random.Random(1)), [50, 90])
    selector = pair_selector(scorer="rm")
    one = select(files, selector, tmp_path / "one", task_rows=10_000)
    several = select(files, selector, tmp_path / "several", num_workers=2)
    assert one == several
    assert len(list((tmp_path / "several" / "work" / "shards").glob("shard-*.json"))) > 8


def test_a_shard_that_is_whole_is_not_made_again_and_a_damaged_one_is(tmp_path: Path) -> None:
    files = as_lines(tmp_path / "in", candidates(20, 4, random.Random(2)), [])
    selector = pair_selector(scorer="rm")
    undisturbed = select(files, selector, tmp_path / "out")
    shards = tmp_path / "out" / "work" / "shards"
    times = {path: path.stat().st_mtime_ns for path in shards.glob("shard-*0[01].jsonl")}
    (shards / "shard-00001.jsonl").write_text("cut sh")
    assert select(files, selector, tmp_path / "out") == undisturbed
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"shard-00001.jsonl"}


def test_metrics_do_not_depend_on_the_cuts(tmp_path: Path) -> None:
    generator = random.Random(3)
    rows = [row.model_copy(update={"scores": {"rm": generator.gauss(0, 1e8)}}) for row in candidates(50, 3, generator)]
    files, selector = as_lines(tmp_path / "in", rows, []), pair_selector(scorer="rm")
    made = [select(files, selector, tmp_path / str(size), task_rows=size) for size in (3, 40, 1000)]
    assert made[0] == made[1] == made[2]
    pairs = [json.loads(line) for line in made[0][0].splitlines()]
    assert made[0][2].metrics["margin_min"] == min(pair["chosen_score"] - pair["rejected_score"] for pair in pairs)
