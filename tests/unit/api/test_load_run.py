"""What Python reads of a run: finished, half-finished, damaged, or not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow
import pytest

import align
from align.api.table import Table
from align.testing.damage import overwrite


@pytest.fixture
def run(finished_run: Path) -> align.Run:
    return align.load_run(str(finished_run))


def test_the_comparison_is_a_table(run: align.Run) -> None:
    table = run.table()
    assert table["model"] == ["sft", "rs", "dpo"]
    assert table["baseline"] == [True, False, False]
    dpo = table.to_list()[2]
    score = run.results.models["dpo"].scores["rm"]
    assert score.delta is not None
    assert (dpo["rm"], dpo["rm_low"], dpo["rm_delta_high"]) == (score.mean, score.ci95[0], score.delta.ci95[1])
    assert table["rm_delta"][0] is None
    assert isinstance(table.to_arrow(), pyarrow.Table)
    assert table.to_pandas().shape == (3, len(table.columns))
    assert pyarrow.table(table).column_names == table.columns  # as polars and DuckDB take it
    assert run.report.read_text(encoding="utf-8").startswith("<!")


def test_rows_curves_and_models_come_by_the_name_of_the_stage(run: align.Run) -> None:
    curve = run.metrics("dpo")
    assert curve["step"] == list(range(1, len(curve) + 1))
    assert curve["loss"][0] == pytest.approx(0.6931, abs=1e-3)
    assert list(run.candidates) == ["sampled", "scored"]
    assert list(run.pairs) == ["pairs"]
    assert len(run.candidates["scored"]) == 36
    assert set(run.rows("scored").to_arrow().schema.field("scores").type.names) == {"rm"}
    assert len(run.rows("instructions")) == 24  # an input
    assert sorted(set(run.rows("compare")["model"])) == ["dpo", "rs", "sft"]
    assert run.drops("pairs").columns in ([], ["id", "drop_reason", "detail"])
    assert (run.model("dpo") / "model.safetensors").is_file()
    assert (run.model("base") / "model.safetensors").is_file()


def test_models_load_with_their_tokenizer(run: align.Run) -> None:
    model, tokenizer = run.load_model("sft"), run.load_tokenizer("sft")
    assert not model.training
    assert model(**tokenizer("안녕", return_tensors="pt")).logits.shape[-1] == model.config.vocab_size
    assert run.load_model("reward").config.num_labels == 1


def test_a_run_shows_itself_at_a_prompt_and_in_a_notebook(run: align.Run) -> None:
    assert repr(run).splitlines()[0].endswith("11 of 11 stages are done")
    assert "separated" in str(run)
    assert max(map(len, str(run).splitlines())) <= 100
    html = run._repr_html_()
    assert "dpo" in html
    assert "<script" not in Table.of([{"a": "<script>"}])._repr_html_()
    assert "12 rows" in repr(run.rows("pairs"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.rows("par"), "par: unknown stage; did you mean 'pairs'"),
        (lambda run: run.rows("dpo"), "dpo: holds model, not rows"),
        (lambda run: run.rows("base"), "base: a model, which is used where it lies"),
        (lambda run: run.model("pairs"), "pairs: holds preferences, not a model"),
        (lambda run: run.metrics("pairs"), "pairs: a pairs stage has no curves"),
        (lambda run: run.table("dpo"), "dpo: holds model, not a comparison"),
        (lambda run: align.load_run(run.folder.parent), "a folder of runs: tiny"),
        (lambda run: align.load_run(run.folder.with_name("tinny")), "tinny: unknown run; did you mean 'tiny'"),
    ],
)
def test_what_cannot_be_read_is_named(run: align.Run, call: object, message: str) -> None:
    with pytest.raises(align.RecipeError, match=message):
        call(run)  # type: ignore[operator]


def test_a_damaged_result_is_not_used(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    run = align.load_run(tmp_path / "runs" / "tiny")
    rows = (run.folder / "stages" / "scored").resolve() / "rows.jsonl"
    overwrite(rows, rows.read_bytes().replace(b"p3", b"p4"))
    assert run.stages["scored"].state == "damaged"
    assert "damaged (rows.jsonl does not have the content it was written with (sha256 " in repr(run)
    with pytest.raises(align.EnvironmentProblem, match="scored: damaged"):
        run.rows("scored")


@pytest.mark.parametrize("name", ["a\\u0000b", "\\ud800", "1" * 300, "../sft", ""])
@pytest.mark.parametrize("what", ['"recipe": "tiny"', '"name": "sft"'])
def test_a_name_that_no_recipe_can_have_is_named_as_damage(finished_run: Path, tmp_path: Path, what: str, name: str) -> None:
    run = Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)) / "tiny"
    events = run / "events.jsonl"
    first, rest = events.read_text().split("\n", 1)
    assert what in first
    events.write_text(first.replace(what, f'{what.split(":")[0]}: "{name}"', 1) + "\n" + rest)
    with pytest.raises(align.EnvironmentProblem, match=r"events\.jsonl: names .*, as no recipe can"):
        _ = align.load_run(run).stages


def test_the_recipe_is_that_of_the_run_or_named_as_damaged(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "tiny", symlinks=True)
    run = align.load_run(tmp_path / "tiny")
    assert run.recipe["name"] == "tiny"
    assert "seal" not in run.recipe
    path = run.folder / "recipe.json"
    path.write_bytes(path.read_bytes().replace(b'"tiny"', b'"tony"', 1))
    with pytest.raises(align.EnvironmentProblem, match=r"recipe\.json: was changed after it was written"):
        assert run.recipe
    path.unlink()
    with pytest.raises(align.EnvironmentProblem, match=r"recipe\.json: there is no such file"):
        assert run.recipe


def test_a_result_of_earlier_settings_is_not_used(finished_run: Path, tmp_path: Path) -> None:
    """A run that was planned anew and stopped: its links still lead to what the earlier settings made."""
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    run = align.load_run(tmp_path / "runs" / "tiny")
    events = run.folder / "events.jsonl"
    planned = events.read_text().splitlines()[0].replace(run.stages["dpo"].path.name.partition("-")[2], "0" * 16)  # type: ignore[union-attr]
    events.write_text(f"{planned}\n")
    assert run.stages["dpo"].state == "not started"
    assert run.stages["sft"].state == "done"
    assert not run.is_finished
    with pytest.raises(align.EnvironmentProblem, match="dpo: not started; it has no result"):
        run.model("dpo")
