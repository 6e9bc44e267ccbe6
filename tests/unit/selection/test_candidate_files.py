"""What files of scored candidates may look like, and what is said of those that do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align import load_recipe
from align.cli.stage_recipe import StageRequest
from align.errors import DataError, RecipeError, StageError
from align.formats import parquet_pages, raw
from align.pipeline.inputs import resolve_inputs
from align.selection.files import jsonl
from align.selection.files.open import open_file
from align.selection.files.reader import RowFile
from align.selection.pair import PairSelector
from align.selection.pair_rule import PairRule
from align.selection.run import select_from_files
from align.stages import pairs
from align.store.artifact import Store
from align.testing import stage_context

ROW: dict[str, Any] = {"prompt_id": "p", "prompt": "x", "completion": "a", "scores": {"rm": 1.0}}
ROWS: list[dict[str, Any]] = [ROW, {**ROW, "completion": "b", "scores": {"rm": 2.0}}]


def written(path: Path, rows: list[dict[str, Any]], schema: Any = None) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows))
    return path


def pairs_from(file: RowFile, folder: Path, scorer: str = "rm") -> list[dict[str, Any]]:
    open_file(file).check()
    selector = PairSelector(PairRule(scorer=scorer))
    select_from_files([file], selector, name="pairs", output=folder / "out", work=folder / "work", count=lambda *_: None)
    return [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
class TestForms:
    def test_what_is_optional_may_be_absent(self, tmp_path: Path, suffix: str) -> None:
        (pair,) = pairs_from(RowFile(written(tmp_path / f"x{suffix}", ROWS)), tmp_path)
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ([{"role": "user", "content": "x"}], "b", "a")

    def test_messages_with_further_fields(self, tmp_path: Path, suffix: str) -> None:
        prompt = [{"role": "system", "name": "n", "content": "s"}, {"role": "user", "name": None, "content": "안녕"}]
        rows = [{**row, "prompt": prompt} for row in ROWS]
        (pair,) = pairs_from(RowFile(written(tmp_path / f"x{suffix}", rows)), tmp_path)
        assert pair["prompt"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "안녕"}]

    def test_scores_in_columns_of_other_names_and_numbers_as_ids(self, tmp_path: Path, suffix: str) -> None:
        rows = [{"qid": 7, "prompt": "x", "completion": text, "reward": score} for text, score in (("a", 1), ("b", 2))]
        file = RowFile(written(tmp_path / f"x{suffix}", rows), {"prompt_id": "qid", "scores.rm": "reward"})
        (pair,) = pairs_from(file, tmp_path)
        assert (pair["id"], pair["chosen_score"]) == ("7", 2.0)

    def test_a_single_score(self, tmp_path: Path, suffix: str) -> None:
        rows = [{**row, "score": 1.0 + index, "scores": None} for index, row in enumerate(ROWS)]
        for row in rows:
            del row["scores"]
        assert pairs_from(RowFile(written(tmp_path / f"x{suffix}", rows)), tmp_path, scorer="score")[0]["chosen"] == "b"

    def test_not_finite_scores_and_cut_completions(self, tmp_path: Path, suffix: str) -> None:
        more = [{**ROW, "completion": "c", "scores": {"rm": float("nan")}}, {**ROW, "completion": "d", "scores": {"rm": None}}]
        cut = {**ROW, "completion": "e", "scores": {"rm": 9.0}, "finish_reason": "length"}
        rows = [{"finish_reason": None, **row} for row in [*ROWS, *more, cut]]
        assert pairs_from(RowFile(written(tmp_path / f"x{suffix}", rows)), tmp_path)[0]["chosen"] == "b"

    @pytest.mark.parametrize(
        ("wrong", "expected"),
        [
            ({"completion": None}, ":2: completion: expected a"),
            ({"prompt_id": ""}, ":2: prompt_id: "),
            ({"finish_reason": "eos"}, ":2: finish_reason: expected stop or length"),
            ({"candidate_index": -1}, ":2: candidate_index: expected a whole number"),
            ({"prompt": "y"}, "two different prompts have the id 'p'"),
            ({"candidate_index": 0}, "prompt 'p' has candidate 0 twice"),
        ],
    )
    def test_a_wrong_row_is_named(self, tmp_path: Path, suffix: str, wrong: dict[str, Any], expected: str) -> None:
        rows = [{**row, "candidate_index": index, "finish_reason": "stop"} for index, row in enumerate(ROWS)]
        path = written(tmp_path / f"x{suffix}", [rows[0], {**rows[1], **wrong}])
        if suffix == ".jsonl":
            path.write_text(path.read_text().replace("\n\n", "\n"))
        with pytest.raises((DataError, StageError)) as caught:
            pairs_from(RowFile(path), tmp_path)
        assert expected in str(caught.value)

    def test_a_scorer_that_is_not_there(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(StageError, match=r"no score by 'gold'; it has rm"):
            pairs_from(RowFile(written(tmp_path / f"x{suffix}", ROWS)), tmp_path, scorer="gold")

    def test_a_missing_column(self, tmp_path: Path, suffix: str) -> None:
        rows = [{key: value for key, value in row.items() if key != "completion"} for row in ROWS]
        with pytest.raises(DataError, match="completion"):
            open_file(RowFile(written(tmp_path / f"x{suffix}", rows))).check()
        rows = [{key: value for key, value in row.items() if key != "scores"} for row in ROWS]
        with pytest.raises(DataError, match="no score: expected scores"):
            open_file(RowFile(written(tmp_path / f"y{suffix}", rows))).check()


def test_a_row_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*ROWS, {**ROW, "prompt_id": "q", "completion": "x" * 10_000}]
    lines, columns = written(tmp_path / "x.jsonl", rows), written(tmp_path / "x.parquet", rows)
    assert pairs_from(RowFile(lines), tmp_path / "a") == pairs_from(RowFile(columns), tmp_path / "b")
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 5000)
    monkeypatch.setattr(parquet_pages, "MAX_PAGE_BYTES", 5000)
    with pytest.raises(DataError, match=re.escape(f"{lines}:5: the line is longer than 5,000 bytes")):
        pairs_from(RowFile(lines), tmp_path)
    with pytest.raises(DataError, match=re.escape(f"{columns}: a page of the column completion unpacks to 1")):
        pairs_from(RowFile(columns), tmp_path)
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 20_000)
    for module in (jsonl, raw):
        monkeypatch.setattr(module, "LONG_CHARACTERS", 5000)
    monkeypatch.setattr(raw, "MAX_VALUES", 12)
    with pytest.raises(DataError, match=re.escape(f"{lines}:5: it has 3 commas and 5 colons")):
        pairs_from(RowFile(lines), tmp_path)


@pytest.mark.parametrize("most", [1, 2, 7])
def test_rows_of_parquet_are_read_few_at_a_time_where_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    rows = [
        {**ROW, "prompt_id": f"p{number // 3}", "completion": f"{number}", "scores": {"rm": number}, "unread": "x" * 5000}
        for number in range(30)
    ]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    wanted = pairs_from(RowFile(path), tmp_path / "a")
    monkeypatch.setattr(parquet_pages, "MAX_BATCH_VALUES", most)
    monkeypatch.setattr(parquet_pages, "MAX_PAGE_BYTES", 1000)  # the column that is not read has larger ones
    assert len(wanted) == 10
    assert pairs_from(RowFile(path), tmp_path / "b") == wanted


def test_nothing_kept_says_why(tmp_path: Path) -> None:
    rows = [*(dict(row, scores={"rm": 1.0}) for row in ROWS), {**ROW, "prompt_id": "q"}]
    with pytest.raises(StageError, match=r"pairs: none of the 2 prompts gave a row \(tie 1, too_few_candidates 1\)"):
        pairs_from(RowFile(written(tmp_path / "x.jsonl", rows)), tmp_path)


def test_scores_in_a_map(tmp_path: Path) -> None:
    fields = [("prompt_id", pa.string()), ("prompt", pa.string()), ("completion", pa.string())]
    schema = pa.schema([*fields, ("scores", pa.map_(pa.string(), pa.float32()))])
    rows = [{**row, "scores": list(row["scores"].items())} for row in ROWS]
    file = RowFile(written(tmp_path / "x.parquet", rows, schema))
    assert pairs_from(file, tmp_path)[0]["chosen"] == "b"
    with pytest.raises(DataError, match=r"x.parquet:1: no score by 'gold'"):
        pairs_from(file, tmp_path / "other", scorer="gold")


def test_columns_of_the_wrong_type_and_files_that_are_none(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", [{**row, "completion": 5} for row in ROWS])
    with pytest.raises(DataError, match="completion: expected texts, got a column of int64"):
        pairs_from(RowFile(path), tmp_path)
    path.write_text("not parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_file(RowFile(path))
    with pytest.raises(DataError, match=r"x.csv: expected scored candidates in .parquet or .jsonl"):
        open_file(RowFile(tmp_path / "x.csv"))
    (tmp_path / "x.jsonl").write_text('{"prompt_id": "p"\n')
    with pytest.raises(DataError, match=r"x.jsonl:1: not JSON"):
        open_file(RowFile(tmp_path / "x.jsonl")).check()


RECIPE = """\
name: shards
inputs:
  rows: {kind: scored_candidates, path: "*.parquet", columns: {scores.rm: reward}}
stages:
  pairs: {stage: pairs, scored: rows, scorers: {rm: 2.0}, combine: z_scores}
"""


def test_a_recipe_reads_files_where_they_lie(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{n}.parquet", [{**row, "prompt_id": f"p{n}"} for row in ROWS]) for n in range(2)]
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    store = Store(tmp_path / "store")
    resolved = resolve_inputs(recipe, store)[0]["rows"]
    assert resolved.artifact is not None
    assert resolved.artifact.row_paths == paths
    config = recipe.stages["pairs"].config
    assert isinstance(config, pairs.Config)
    outcome = pairs.run(stage_context(config, tmp_path / "out", {"rows": resolved.artifact}, name="pairs", seed=17))
    assert (outcome.rows_in, outcome.rows_out, outcome.metrics["disagreement_share"]) == (2, 2, 0.0)
    assert [json.loads(line)["id"] for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()] == ["p0", "p1"]
    written(paths[1], ROWS)
    assert resolve_inputs(recipe, store)[0]["rows"].fingerprint != resolved.fingerprint


def test_options_of_a_command_line(tmp_path: Path) -> None:
    written(tmp_path / "x.jsonl", ROWS)
    request = StageRequest("pairs", pairs.Config, out=tmp_path / "out", seed=1, columns=["completion=text", "scores.rm=reward"])
    request.set_field("scored", str(tmp_path / "*.jsonl"))
    request.set_field("scorers", ["rm=1.5", "gold=2"])
    document = request.finish().value
    columns = {"completion": "text", "scores.rm": "reward"}
    assert document["inputs"] == {"scored": {"kind": "scored_candidates", "path": str(tmp_path / "*.jsonl"), "columns": columns}}
    assert document["stages"]["pairs"] == {"stage": "pairs", "scored": "scored", "scorers": {"rm": 1.5, "gold": 2}}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("k: 3, scorer: rm", "k: goes with policy: top_k_bottom_k only; here the policy is max_min"),
        ("policy: margin_window, scorer: rm", "max_margin must be given with margin_window"),
        ("policy: max_min", "scorer: this key is missing"),
        ("scorer: rm, scorers: {rm: 1.0}", "one of scorer and scorers must be given"),
    ],
)
def test_a_recipe_with_options_that_make_no_sense(tmp_path: Path, options: str, expected: str) -> None:
    written(tmp_path / "x.parquet", ROWS)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("scorers: {rm: 2.0}, combine: z_scores", options))
    with pytest.raises(RecipeError, match=re.escape(expected)):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "twice",
    [
        '"completion": "other", ',
        '"completion" : "with a space", ',
        r'"compl\u0065tion": "written otherwise", ',
        '"unread": 1, "unread": 2, ',
        '"scores": {"length": 1.0, "length": 2.0}, ',
        '"extra": {"a": 1, "a": 2}, ',
    ],
)
def test_a_key_that_is_there_twice(tmp_path: Path, twice: str) -> None:
    """The last of them would be used, and nobody would know."""
    path = tmp_path / "x.jsonl"
    line = json.dumps({**ROWS[0], "completion": "12:30, 가"})
    path.write_text("{" + twice + line[1:] + "\n")
    with pytest.raises(DataError, match=r"x.jsonl:1: not usable JSON: the key '\w+' is there twice"):
        open_file(RowFile(path)).check()
    path.write_text('{"extra": {"a:b": 5, "b": [{"a": 1}, {"a": 1}]}, ' + line[1:] + "\n")
    open_file(RowFile(path)).check()
