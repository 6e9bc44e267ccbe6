"""The end of a run in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.cli.ending import facts, next_commands, report_lines, say_how_to_go_on, stage_lines
from align.errors import DataError, Interrupted, RecipeError, StageError
from align.pipeline.run_result import RunResult
from align.progress.state import RunState
from align.runtime.events import RunPlanned, StageCached, StageFailed, StageFinished, StagePlan
from align.store.artifact import Manifest
from align.store.seal import write_sealed

COMMAND = ["align", "run", "my recipe.yaml"]


def result_of(folder: Path, **stages: dict[str, Any]) -> RunResult:
    result = RunResult(folder)
    for name, fields in stages.items():
        status, kind = fields.pop("status", "run"), fields.pop("kind", "model")
        manifest = Manifest(
            kind=kind, stage="sft", stage_version=1, fingerprint=name, config={}, inputs={}, seed=1, seconds=61.0, **fields
        )
        (folder / "stages" / name).mkdir(parents=True)
        write_sealed(folder / "stages" / name / "manifest.json", manifest.model_dump(mode="json", exclude={"seal"}))
        result.stages.append({"name": name, "status": status, "seconds": 61.0})
    return result


def test_what_was_dropped_and_how_well_the_reward_model_ranks(tmp_path: Path) -> None:
    result = result_of(
        tmp_path,
        보상모델={"kind": "reward_model", "metrics": {"accuracy": 0.7975, "pairs_held_out": 1632}},
        pairs={"kind": "preferences", "rows_in": 720, "dropped": {"truncated": 2, "margin_below_min": 335}},
        dpo={"rows_in": 383},
    )
    (tmp_path / "stages" / "dpo-1-pairs").symlink_to("pairs")  # the same result under a second name is not counted twice
    result.stages.append({"name": "dpo-1-pairs", "status": "cached", "seconds": 61.0})
    assert list(facts(result)) == [
        "보상모델 ranks 79.8 % of 1,632 held-out pairs right.",
        "Dropped rows: pairs 337 of 720 (margin below min 335, truncated 2).",
    ]
    assert list(stage_lines(result))[2:] == ["dpo: made in 61 s", "dpo-1-pairs: reused"]
    folder = f"{tmp_path}/stages/dpo"
    assert list(next_commands(result, None)) == [
        f"Talk to it: align chat {folder}",
        f"Export it:  align export {folder} --to exported/dpo",
    ]


def test_without_a_model_the_rows_are_what_was_made(tmp_path: Path) -> None:
    result = result_of(tmp_path, pairs={"kind": "preferences"})
    assert list(next_commands(result, None)) == list(facts(result)) == []
    rows = tmp_path / "stages" / "pairs" / "rows.jsonl"
    rows.touch()
    assert list(next_commands(result, None)) == [f"Rows: {rows}"]


def test_every_comparison_has_a_report_of_its_own() -> None:
    folder = Path("runs/r")
    assert list(report_lines(RunResult(folder))) == ["Results: runs/r"]
    assert list(report_lines(RunResult(folder, comparisons={"greedy": {}, "sampled": {}}))) == [
        "Report of greedy: runs/r/stages/greedy/report.html",
        "Report of sampled: runs/r/stages/sampled/report.html",
    ]


def state_after(*events: Any) -> RunState:
    state = RunState()
    names = ("sft", "reward", "dpo")
    stages = tuple(StagePlan(name=name, stage_type="sft", status="run", reason="", fingerprint=name) for name in names)
    for event in (RunPlanned(recipe="r", stages=stages), StageCached(stage="sft", seconds=1.0), *events):
        state.update(event)
    return state


def test_an_interrupted_run_says_what_is_kept_and_how_to_go_on() -> None:
    error = Interrupted("reward: Stopped at step 3 of 9; a checkpoint is kept.")
    say_how_to_go_on(error, state_after(), COMMAND)
    assert error.render().splitlines() == [
        "reward: Stopped at step 3 of 9; a checkpoint is kept.",
        "→ Run the same command again to go on from here: align run 'my recipe.yaml'",
        "1 of 3 stages are finished and kept.",
    ]


def test_a_failed_stage_is_named_with_its_log_and_the_command() -> None:
    error = StageError("The loss is nan at step 3 of 9", hint="Lower learning_rate.")
    failed = StageFailed(stage="reward", error="", exit_code=5, log="runs/r/run.log")
    say_how_to_go_on(error, state_after(failed), COMMAND)
    assert error.render().splitlines() == [
        "reward: The loss is nan at step 3 of 9",
        "→ Lower learning_rate.",
        "To go on afterwards: align run 'my recipe.yaml'",
        "Log: runs/r/run.log",
        "1 of 3 stages are finished and kept.",
    ]
    # The stage and the log are named once.
    named = DataError("reward: no rows", hint="Log: runs/r/run.log")
    say_how_to_go_on(named, state_after(StageFinished(stage="reward", seconds=1.0), failed), COMMAND)
    assert named.render().splitlines() == [
        "reward: no rows",
        "→ Log: runs/r/run.log",
        "To go on afterwards: align run 'my recipe.yaml'",
        "2 of 3 stages are finished and kept.",
    ]


def test_a_mistake_before_any_stage_stays_as_it_is() -> None:
    error = RecipeError("recipe.yaml:3: no")
    say_how_to_go_on(error, state_after(), COMMAND)
    assert error.render() == "recipe.yaml:3: no"
