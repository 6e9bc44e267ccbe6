"""A whole run of the tiny project: what it leaves behind, and that every piece of it can be trusted."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe, run_recipe
from align.errors import DataError, EnvironmentProblem, StageError
from align.pipeline.run import run_recipe as run_stages
from align.report.results import Results
from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import RunFinished, RunPlanned, Sample, StageFinished, StageStarted
from align.runtime.replay import metrics_of
from align.store.artifact import Manifest
from align.testing import Recorder

STAGES = ["sft", "reward", "sampled", "scored", "best", "rs", "pairs", "dpo", "compare"]


def manifest_of(run: Path, stage: str) -> Manifest:
    return Manifest.model_validate_json((run / "stages" / stage / "manifest.json").read_bytes())


def rows_of(run: Path, stage: str, name: str = "rows.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stages" / stage / name).read_text().splitlines()]


def test_every_stage_leaves_a_manifest_with_what_it_came_from(finished_run: Path) -> None:
    manifests = {stage: manifest_of(finished_run, stage) for stage in STAGES}
    assert all(manifest.files for manifest in manifests.values())
    assert manifests["dpo"].inputs["sft"] == manifests["sft"].fingerprint
    assert manifests["dpo"].inputs["pairs"] == manifests["pairs"].fingerprint
    assert manifests["sampled"].versions["transformers"]
    assert manifests["sft"].seed == 5
    assert Path(manifests["sft"].input_sources["instructions"]).name == "instructions.jsonl"
    assert Path(manifests["sft"].input_sources["base"]).name == "base"
    assert manifests["dpo"].input_sources == {}
    assert manifests["sft"].peak_memory_bytes > 10**8
    assert manifests["sft"].seconds > 0


def test_results_and_report_are_published(finished_run: Path) -> None:
    results = Results.from_json(json.loads((finished_run / "results.json").read_text()))
    assert list(results.models) == ["sft", "rs", "dpo"]
    assert results.baseline == "sft"
    assert results.prompts == 6
    assert results.seed == 5
    assert results.command == ["align", "run"]
    assert results.models["dpo"].retention_perplexity > 1  # type: ignore[operator]
    assert results.models["dpo"].train_seconds > 0  # type: ignore[operator]
    assert results.models["rs"].kl_to_baseline is not None
    for row in results.models.values():
        assert row.cost is not None
        # Every stage recorded its part, and the files of every model show its parameters.
        assert None not in row.cost.model_dump().values()
        assert row.cost.flops > 6e4 * row.cost.trained_tokens > 0  # type: ignore[operator]
    page = (finished_run / "report.html").read_text()
    assert "열쇠를 잃어버렸어" in page


def test_every_comparison_of_a_recipe_is_in_the_result(finished_run: Path, project: Path, tmp_path: Path) -> None:
    recipe, out = project / "recipe.yaml", Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))
    before, _, comparison = recipe.read_text().partition("  compare:")
    # The same comparison under a second name, so that nothing has to run.
    recipe.write_text(f"{before}  first:{comparison}  compare:{comparison}")
    result = run_stages(load_recipe(recipe), out)
    assert list(result.comparisons) == ["first", "compare"]
    published = json.loads((out / "tiny" / "results.json").read_text())
    assert result.results == result.comparisons["compare"] == published
    assert (published["num_candidates"], published["temperature"]) == (1, 1.0)
    assert result.to_json()["comparisons"] == result.comparisons


def test_a_folder_in_the_place_of_a_file_goes_if_it_is_empty(finished_run: Path, project: Path, tmp_path: Path) -> None:
    recipe, out = (
        load_recipe(project / "recipe.yaml"),
        Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)),
    )
    report = out / "tiny" / "report.html"
    wanted = report.read_bytes()
    files = [report, *(out / "tiny" / name for name in ("results.json", "recipe.json", "events.jsonl"))]
    files += [out / ".store" / "run-tiny.lock", out / "tiny" / "run.log"]
    for path in files:
        path.unlink()
        path.mkdir()
    run_stages(recipe, out)
    assert report.read_bytes() == wanted
    assert all(path.is_file() for path in files[:-1])
    assert not files[-1].is_dir()  # no stage ran, so nothing was logged
    report.unlink()
    (report / "notes").mkdir(parents=True)
    with pytest.raises(EnvironmentProblem, match="is a folder; a file is to be written there"):
        run_stages(recipe, out)


def test_a_link_in_the_place_of_a_published_file_is_replaced_and_not_followed(
    finished_run: Path, project: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))
    report, results = out / "tiny" / "report.html", out / "tiny" / "results.json"
    wanted, same, other = report.read_bytes(), tmp_path / "same.html", tmp_path / "other.json"
    same.write_bytes(wanted)
    other.write_text("mine")
    for path, target in ((report, same), (results, other)):
        path.unlink()
        path.symlink_to(target)
    run_stages(load_recipe(project / "recipe.yaml"), out)
    assert not report.is_symlink() and report.read_bytes() == wanted == same.read_bytes()
    assert not results.is_symlink() and other.read_text() == "mine"


@pytest.mark.parametrize("target", ["/nowhere/at/all", "/dev/null"])
def test_a_link_that_leads_to_no_file_goes(finished_run: Path, project: Path, tmp_path: Path, target: str) -> None:
    out = Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))
    names = ("recipe.json", "events.jsonl", "run.log", "results.json")
    for name in names:
        (out / "tiny" / name).unlink()
        (out / "tiny" / name).symlink_to(target)
    run_stages(load_recipe(project / "recipe.yaml"), out)
    assert [name for name in names if (out / "tiny" / name).is_symlink()] == []
    assert isinstance(next(read_events(out / "tiny" / EVENTS_NAME)), RunPlanned)


def test_events_tell_the_run_from_plan_to_end(finished_run: Path) -> None:
    events = list(read_events(finished_run / EVENTS_NAME))
    planned, finished = events[0], events[-1]
    assert isinstance(planned, RunPlanned)
    assert (planned.recipe, planned.command) == ("tiny", ("align", "run"))
    names = [stage.name for stage in planned.stages]
    assert [event.stage for event in events if isinstance(event, StageStarted)] == names
    assert [event.stage for event in events if isinstance(event, StageFinished)] == names
    assert isinstance(finished, RunFinished)
    assert finished == RunFinished(time=finished.time, exit_code=0, seconds=finished.seconds)
    assert [event.time for event in events] == sorted(event.time for event in events)
    curves = metrics_of(finished_run / EVENTS_NAME)
    assert curves == {name: rows_of(finished_run, name, "metrics.jsonl") for name in curves}
    assert curves.keys() == {path.parent.name for path in (finished_run / "stages").glob("*/metrics.jsonl")}


def test_the_phases_of_a_stage_are_all_its_time(finished_run: Path) -> None:
    events = list(read_events(finished_run / EVENTS_NAME))
    started = {event.stage: event.time for event in events if isinstance(event, StageStarted)}
    finished = {event.stage: event for event in events if isinstance(event, StageFinished)}
    for name, event in finished.items():
        assert sum(event.phases.values()) == pytest.approx(event.time - started[name], abs=0.5), name
        assert min(event.phases.values()) >= 0, (name, event.phases)
    own = {name: set(event.phases) - {"start", "save", "hash", "other"} for name, event in finished.items()}
    assert own["sft"] == {"load", "tokenize", "train"}
    assert own["sampled"] - {"load"} == {"engine", "tokenize", "sample"}
    assert own["scored"] == {"load", "score"}
    assert own["pairs"] == set()
    assert own["ppo"] == {"load", "engine", "tokenize", "sample", "score", "train"}
    assert isinstance(events[-1], RunFinished)
    assert events[-1].seconds >= sum(sum(event.phases.values()) for event in finished.values())  # type: ignore[operator]


def test_events_show_a_few_completions(finished_run: Path) -> None:
    samples = [event for event in read_events(finished_run / EVENTS_NAME) if isinstance(event, Sample)]
    (sampled,) = [event for event in samples if event.stage == "sampled"]
    rows = [row for row in rows_of(finished_run, "sampled") if row["candidate_index"] == 0]
    assert [(text.prompt_id, text.completion) for text in sampled.completions] == [
        (row["prompt_id"], row["completion"]) for row in rows[:3]
    ]
    rollouts = [event for event in samples if event.stage == "ppo"]
    assert [event.step for event in rollouts] == [0, 1, 2]
    assert all(math.isfinite(text.score or 0.0) for event in rollouts for text in event.completions)
    assert {len(event.completions) for event in rollouts} == {3}


def test_sft_keeps_one_checkpoint_per_epoch(finished_run: Path) -> None:
    sft = finished_run / "stages" / "sft"
    assert sorted(path.name for path in (sft / "epochs").iterdir()) == ["epoch-1", "epoch-2", "epoch-3"]
    weights = [(sft / "epochs" / f"epoch-{n}" / "model.safetensors").read_bytes() for n in (1, 2, 3)]
    assert len(set(weights)) == 3
    assert weights[2] == (sft / "model" / "model.safetensors").read_bytes()


def test_the_last_epoch_and_the_model_are_one_file_on_the_disk(finished_run: Path) -> None:
    sft = finished_run / "stages" / "sft"
    last, model = sft / "epochs" / "epoch-3", sft / "model"
    assert sorted(path.name for path in last.iterdir()) == sorted(path.name for path in model.iterdir())
    assert all((last / path.name).samefile(path) and path.stat().st_nlink == 2 for path in model.iterdir())
    weights = [path.stat() for path in sft.rglob("*.safetensors")]
    once = {status.st_ino: status.st_blocks for status in weights}
    # Four models by name, three on the disk.
    assert sum(once.values()) * 4 == sum(status.st_blocks for status in weights) * 3


def test_every_prompt_is_accounted_for(finished_run: Path) -> None:
    sampled, scored = rows_of(finished_run, "sampled"), rows_of(finished_run, "scored")
    assert len(sampled) == len(scored) == 12 * 3
    assert [(row["prompt_id"], row["candidate_index"]) for row in sampled] == [(f"p{i}", k) for i in range(12) for k in range(3)]
    for stage in ("best", "pairs"):
        ids = {row["id"] for row in rows_of(finished_run, stage)} | {
            row["id"] for row in rows_of(finished_run, stage, "drops.jsonl")
        }
        assert ids == {f"p{i}" for i in range(12)}
    chosen = {row["id"]: row for row in rows_of(finished_run, "pairs")}
    by_id = {(row["prompt_id"], row["completion"]): row["scores"]["rm"] for row in scored}
    for row in chosen.values():
        assert by_id[row["id"], row["chosen"]] == row["chosen_score"] > row["rejected_score"] == by_id[row["id"], row["rejected"]]


def test_dpo_starts_at_ln_2(finished_run: Path) -> None:
    metrics = manifest_of(finished_run, "dpo").metrics
    assert metrics["loss_at_step_0"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["loss"] < math.log(2)


def test_the_reward_model_reports_its_accuracy_and_that_of_length(finished_run: Path) -> None:
    metrics = manifest_of(finished_run, "reward").metrics
    assert metrics["pairs_train"] + metrics["pairs_held_out"] == 24
    assert 0 <= metrics["accuracy_ci95"][0] <= metrics["accuracy"] <= metrics["accuracy_ci95"][1] <= 1
    assert 0 <= metrics["length_only_accuracy"] <= 1


def test_nothing_unpickled_or_secret_is_left(finished_run: Path) -> None:
    files = [path for path in finished_run.parent.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    assert not [path for path in files if "work" in path.parts]


def test_bad_rows_stop_the_run_before_any_stage(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)  # with long paths a message has room for fewer rows
    with (project / "preferences.jsonl").open("a") as stream:
        stream.write('{"prompt": "a", "chosen": "b", "rejected": "b"}\nnot json\n')
    recorder = Recorder()
    with pytest.raises(DataError) as caught:
        run_recipe(load_recipe(Path("recipe.yaml")), tmp_path / "runs", sinks=[recorder])
    assert "preferences.jsonl:25: " in str(caught.value)
    assert "preferences.jsonl:26: " in str(caught.value)
    assert recorder.of(StageStarted) == []


def test_dropped_rows_are_counted_and_explained(project: Path, tmp_path: Path) -> None:
    with (project / "instructions.jsonl").open("a") as stream:
        stream.write('{"id": "empty", "prompt": "a", "completion": " "}\n')
    recipe = load_recipe(project / "recipe.yaml", ["inputs.instructions.on_invalid=drop"])
    run = run_recipe(recipe, tmp_path / "runs", only="sft").folder
    assert manifest_of(run, "sft").rows_in == 24
    entries = list((tmp_path / "runs" / ".store").glob("input-*/drops.jsonl"))
    drops = [json.loads(line) for path in entries for line in path.read_text().splitlines()]
    assert [(drop["id"], drop["drop_reason"]) for drop in drops] == [("empty", "empty_completion")]


def test_a_row_longer_than_the_limit_is_named_with_its_line(project: Path, tmp_path: Path) -> None:
    with (project / "instructions.jsonl").open("a") as stream:
        stream.write(json.dumps({"prompt": "long", "completion": "열쇠 " * 200}) + "\n")
    recipe_path, out = project / "recipe.yaml", tmp_path / "runs"
    with pytest.raises(DataError, match=r"instructions.jsonl:25: .* tokens; max_tokens is 128"):
        run_recipe(load_recipe(recipe_path), out, only="sft")
    run = run_recipe(load_recipe(recipe_path, ["stages.sft.on_invalid=drop"]), out, only="sft").folder
    assert manifest_of(run, "sft").dropped == {"too_long": 1}
    assert manifest_of(run, "sft").rows_out == 24


def test_divergence_stops_the_stage_and_saves_nothing(project: Path, tmp_path: Path) -> None:
    recipe = load_recipe(project / "recipe.yaml", ["stages.sft.learning_rate=1e30", "stages.sft.warmup_ratio=0.0"])
    with pytest.raises(StageError, match="not finite|loss is nan|loss is inf") as caught:
        run_stages(recipe, tmp_path / "runs", only="sft", quick=True)  # such a rate is refused otherwise
    assert caught.value.exit_code == 5
    entry = next((tmp_path / "runs" / ".store").glob("sft-*/"))
    assert not (entry / "manifest.json").exists()
    assert not (entry / "model").exists()
