"""Durations of stages, from earlier ones in the same store; and a result with two names, which is made once."""

from __future__ import annotations

import io
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from align import load_recipe, run_recipe
from align.config.machine_file import read_machine_settings
from align.metric import METRICS, is_number
from align.pipeline.estimate.duration import DurationEstimator
from align.pipeline.estimate.machine import read_machine
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.estimate.spread_view import workers_of
from align.pipeline.estimate.stage_time import StageTime, stage_times
from align.pipeline.plan import Plan, make_plan
from align.progress.display import ProgressDisplay
from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import StageCached, StageFinished, StageStarted
from align.store.artifact import Manifest
from align.store.seal import write_sealed


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    (tmp_path / "runs" / "tiny" / "recipe.json").unlink()  # it names the folder of another copy of the recipe
    return tmp_path / "runs"


def planned(recipe: Path, out: Path, *settings: str) -> Plan:
    return make_plan(load_recipe(recipe, settings), out)


def manifest_of(out: Path, stage: str) -> Manifest:
    return Manifest.model_validate_json((out / "tiny" / "stages" / stage / "manifest.json").read_bytes())


def seconds_of(out: Path, stage: str) -> float:
    return manifest_of(out, stage).seconds


def start_of(out: Path, stage: str) -> float:
    return manifest_of(out, stage).start_seconds


def test_time_is_scaled_by_epochs_and_rows(project: Path, out: Path, tmp_path: Path) -> None:
    recipe = project / "recipe.yaml"
    plan = planned(recipe, out, "stages.sft.num_epochs=6", "stages.sampled.num_candidates=9")
    estimator, stages = DurationEstimator(plan), {stage.name: stage for stage in plan.stages}
    # The first stage of a run waits for the imports, as the first one did.
    starts = sorted(start_of(out, name) for name in stages)
    first, later = starts[-1], statistics.median(starts)
    # 6 epochs in place of 3; 9 candidates in place of 3.
    assert estimator.seconds(stages["sft"]) == pytest.approx(first + 2 * seconds_of(out, "sft"))
    assert estimator.seconds(stages["sampled"]) == pytest.approx(later + 3 * seconds_of(out, "sampled"))
    # DPO is as long as it was: nothing is known yet of its pairs.
    assert estimator.seconds(stages["dpo"]) == pytest.approx(later + seconds_of(out, "dpo"))
    after = [name for name in stages if name != "sft"]
    after_sft = sum(estimator.seconds(stages[name]) or 0.0 for name in after)
    assert estimator.later_seconds(stages["sft"]) == pytest.approx(after_sft)
    assert estimator.later_seconds(stages["compare"]) == 0
    # A plan shows these times, and guesses none.
    times = {time.name: time for time in stage_times(plan, read_machine(tmp_path))}
    assert times["sft"] == StageTime("sft", estimator.seconds(stages["sft"]))
    assert not any(time.is_stated for time in times.values())


def test_time_is_scaled_by_processes_and_engines_with_devices_of_their_own(project: Path, out: Path, tmp_path: Path) -> None:
    settings = ("stages.sft.num_epochs=6", "stages.sampled.num_candidates=9")
    machine = replace(read_machine(tmp_path), device="cuda", num_gpus=8, total_bytes=80 << 30, free_bytes=80 << 30)
    spread = read_machine_settings({"training": {"processes": 4}, "sampling": {"engines": 8}}, tmp_path, {})
    plan = make_plan(load_recipe(project / "recipe.yaml", settings), out, machine_file=spread)
    workers = workers_of(plan, estimate_plan(plan, machine))
    assert (workers["sft"], workers["sampled"]) == (2, 8)  # a batch of sft has two rows
    assert "ppo" not in workers
    alone, spread_out = DurationEstimator(plan), DurationEstimator(plan, workers)
    stages = {stage.name: stage for stage in plan.stages}
    finished = out / "tiny" / "stages" / "sampled" / "manifest.json"
    manifest = manifest_of(out, "sampled").model_copy(update={"machine": {"engines": 2, "tensor_parallel": 1}})
    finished.unlink()
    write_sealed(finished, manifest.model_dump(mode="json", exclude={"seal"}))
    # Of one process then, two now; of two engines then, 8 now. Starts are not divided.
    starts = {name: start_of(out, name) for name in stages}
    first, later = max(starts.values()), statistics.median(starts.values())
    assert spread_out.seconds(stages["sft"]) == pytest.approx(first + 2 * seconds_of(out, "sft") / 2)
    assert spread_out.seconds(stages["sampled"]) == pytest.approx(later + 3 * seconds_of(out, "sampled") * 2 / 8)
    assert spread_out.is_scaled_by_workers(stages["sft"])
    assert not alone.is_scaled_by_workers(stages["sft"])
    # On a CPU the same cores do the work of any number of processes.
    assert workers_of(plan, estimate_plan(plan, replace(machine, device="cpu", num_gpus=0))) == {}


def test_a_manifest_has_what_a_user_waited_for(out: Path) -> None:
    """From the order to start a stage to its result."""
    events = list(read_events(out / "tiny" / EVENTS_NAME))
    started = {event.stage: event.time for event in events if isinstance(event, StageStarted)}
    finished = {event.stage: event.time for event in events if isinstance(event, StageFinished)}
    for stage, begin in started.items():
        assert start_of(out, stage) > 0
        waited = finished[stage] - begin
        # What is left out: choosing the memory, removing the work folder, the events' way.
        assert start_of(out, stage) + seconds_of(out, stage) == pytest.approx(waited, rel=0.05, abs=0.5)


def test_nothing_is_known_without_a_similar_stage(project: Path, out: Path, tmp_path: Path) -> None:
    recipe = project / "recipe.yaml"
    plan = planned(recipe, tmp_path / "empty")
    estimator = DurationEstimator(plan)
    assert estimator.seconds(plan.stages[0]) is None
    assert estimator.later_seconds(plan.stages[0]) is None
    # A stage that starts from another model is not similar.
    config = project / "base" / "generation_config.json"
    config.write_text(config.read_text().replace("{", '{"top_k": 7,', 1))
    plan = planned(recipe, out)
    assert plan.stages[0].status == "run"
    assert DurationEstimator(plan).seconds(plan.stages[0]) is None


def test_a_result_with_two_names_runs_once_and_takes_no_time(project: Path, out: Path) -> None:
    recipe, stream = project / "recipe.yaml", io.StringIO()
    again = "  again:   {stage: pairs, scored: scored, scorer: rm, keep_truncated: true, min_margin: 0.01}\n"
    recipe.write_text(recipe.read_text().partition("  orpo:")[0] + again)
    with ProgressDisplay(stream) as display:
        run_recipe(load_recipe(recipe, ["stages.pairs.min_margin=0.01"]), out, sinks=[display])
    events = list(read_events(out / "tiny" / EVENTS_NAME))
    started = [event.stage for event in events if isinstance(event, StageStarted)]
    assert started[-1] == "pairs"
    (twin,) = [event for event in events if isinstance(event, StageCached) and event.stage == "again"]
    assert twin.source == "pairs"
    assert (out / "tiny" / "stages" / "again").resolve() == (out / "tiny" / "stages" / "pairs").resolve()
    lines = stream.getvalue().splitlines()
    assert "again: reused from pairs" in lines
    assert "sft, reward, sampled, scored, best, rs: reused from an earlier run" in lines


def test_a_result_of_another_recipe_says_whose(project: Path, out: Path) -> None:
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: tiny", "name: other"))
    stream = io.StringIO()
    with ProgressDisplay(stream) as display:
        run_recipe(load_recipe(recipe), out, until="sft", sinks=[display])
    assert "pairs, orpo, ppo, dpo: reused from the run tiny" in stream.getvalue()


def test_every_number_of_a_run_has_words(finished_run: Path) -> None:
    for path in finished_run.glob("stages/*/manifest.json"):
        metrics = Manifest.model_validate_json(path.read_bytes()).metrics
        assert {name.removeprefix("held_out/") for name, value in metrics.items() if is_number(value)} <= METRICS.keys(), path
