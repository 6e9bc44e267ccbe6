"""Every stage, bfloat16 against float32, strategies, the sampler's gap, memory against the plan, and a kill in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gpu_check.job import stage_launcher
from gpu_check.line import Report
from gpu_check.project import ALONE, ARITHMETICS, DIVIDED, RANK, SCORED, TRAINED, Project

from align import load_recipe, run_recipe
from align.config.machine_file import read_machine_settings
from align.errors import AlignError, StageError
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.plan import make_plan
from align.pipeline.worker import ENVIRONMENT
from align.runtime.events import Emit, Event, Saving
from align.runtime.job import Job
from align.runtime.launcher import run_one
from align.runtime.signals import StopSignals
from align.training.checkpoint import PREFIX, SEAL_NAME

LOSS_TOLERANCE = 0.02
"""Of bfloat16's first loss, as a share of float32's, or of 1 where that is smaller: weights and rows are the same."""
GAP_TOLERANCE = {"mean": 0.05, "max": 0.5}
"""Nats a token, between the sampler's and the trainer's log-probabilities of sampled tokens."""
MEMORY_TOLERANCE = 0.25
"""As in docs/memory.md."""
RESUMED_TOLERANCE = {"cpu": 0.0, "cuda": 1e-3}
"""Of the last loss after a kill, as a share of the undisturbed one: a GPU adds in another order each time."""
STRATEGY_TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3}
"""Of losses with another strategy, as a share; docs/scale.md promises the first."""


def run_stages(project: Project, report: Report) -> None:
    """Every stage of the recipe runs; the parts that follow read what it leaves."""
    recipe = load_recipe(project.recipe)
    plan = make_plan(recipe, project.runs, machine_file=read_machine_settings(RANK, project.folder, {}))
    estimates = {stage.name: stage.of_recipe for stage in estimate_plan(plan).stages}
    try:
        run_recipe(recipe, project.runs, machine=RANK)
    finally:
        for stage in plan.stages:
            manifest = project.manifest(stage.name)
            if manifest is None:
                report.not_run(stage.name, "a stage before it failed, or it did")
                continue
            report.check(stage.name, True, f"{manifest.seconds:.1f} s, {manifest.peak_memory_bytes / 2**30:.2f} GiB", "finishes")
            estimate = estimates.get(stage.name)
            figures = {"seconds": manifest.seconds, "peak_memory_bytes": manifest.peak_memory_bytes}
            if estimate is not None:
                # What torch allocates on a GPU does not hold the CUDA context, which the estimate counts.
                outside = estimate.memory.process if project.device == "cuda" else 0
                figures["estimated_bytes"] = estimate.memory.peak - outside
            report.keep(stage.name, figures)


def compare_arithmetics(project: Project, report: Report) -> None:
    """The first loss of every training on given rows is the same in bfloat16 and in float32, to rounding."""
    for name in TRAINED:
        manifests = [project.manifest(f"{name}_{arithmetic}") for arithmetic in ARITHMETICS]
        if None in manifests:
            report.not_run(name, "a training did not finish")
            continue
        exact, rounded = (
            [row["loss"] for row in project.curve(f"{name}_{arithmetic}") if "loss" in row] for arithmetic in ARITHMETICS
        )
        off = abs(rounded[0] - exact[0]) / max(1.0, abs(exact[0]))
        report.keep(name, dict(zip(ARITHMETICS, (exact, rounded), strict=True)))
        found = f"{rounded[0]:.5f} beside {exact[0]:.5f}, off by {off:.1e}; last {rounded[-1]:.5f} beside {exact[-1]:.5f}"
        report.check(name, off <= LOSS_TOLERANCE, found, f"first loss within {LOSS_TOLERANCE:.0%}")


def compare_samplers(project: Project, report: Report) -> None:
    """Trainer and sampler agree on what was sampled in every rollout batch, so also after each exchange of weights."""
    for stage in (f"{name}_{arithmetic}" for arithmetic in ARITHMETICS for name in SCORED):
        if project.manifest(stage) is None:
            report.not_run(stage, "it did not finish")
            continue
        rows = [row for row in project.curve(stage) if "rollout/sampler_gap" in row]
        mean, most = (max(row[f"rollout/sampler_gap{end}"] for row in rows) for end in ("", "_max"))
        report.keep(stage, rows)
        passed = len(rows) > 1 and mean <= GAP_TOLERANCE["mean"] and most <= GAP_TOLERANCE["max"]
        wanted = f"mean ≤ {GAP_TOLERANCE['mean']}, largest ≤ {GAP_TOLERANCE['max']} nats in each of several batches"
        report.check(stage, passed, f"mean {mean:.1e}, largest {most:.1e} in {len(rows)} batches", wanted)


def compare_memory(project: Project, report: Report) -> None:
    """Peak memory of every training is near what `align plan` said."""
    for stage, figures in report.figures.get(project.shape, {}).get("stages", {}).items():
        if "estimated_bytes" not in figures:
            continue
        estimated, measured = figures["estimated_bytes"], figures["peak_memory_bytes"]
        ratio = estimated / measured
        report.keep(stage, {"estimated_bytes": estimated, "measured_bytes": measured})
        found = f"estimated {estimated / 2**30:.2f} GiB, measured {measured / 2**30:.2f}: ratio {ratio:.2f}"
        report.check(stage, abs(ratio - 1) <= MEMORY_TOLERANCE, found, f"within {MEMORY_TOLERANCE:.0%}")


def compare_strategies(project: Project, report: Report) -> None:
    """A model that is divided by fsdp2, among one rank, learns what one with ddp did."""
    stage, runs = "sft_float32", project.folder / "divided"
    undivided = project.manifest(stage)
    if undivided is None:
        report.not_run(stage, "there is no training with ddp to compare with")
        return
    run_recipe(load_recipe(project.recipe), runs, only=stage, machine=DIVIDED)
    divided = project.manifest(stage, runs)
    spreads = [manifest.machine if manifest is not None else {} for manifest in (undivided, divided)]
    ours, theirs = ([row["loss"] for row in project.curve(stage, folder) if "loss" in row] for folder in (runs, project.runs))
    off = max(abs(loss - other) / abs(other) for loss, other in zip(ours, theirs, strict=True))
    tolerance = STRATEGY_TOLERANCE[project.device]
    report.keep(stage, {"fsdp2": ours, "ddp": theirs, "fsdp2_peak_bytes": divided.peak_memory_bytes if divided else 0})
    passed = off <= tolerance and spreads == [RANK["training"], DIVIDED["training"]]
    report.check(stage, passed, f"losses off by {off:.1e}; {spreads[1]}", f"within {tolerance:g} of ddp")


def kill_and_resume(project: Project, report: Report) -> None:
    """A training without ranks that is killed right after its first checkpoint goes on from it, and ends as one with a rank."""
    stage = "sft_bfloat16"
    if project.manifest(stage) is None:
        report.not_run(stage, "there is no undisturbed training to compare with")
        return
    runs = project.folder / "killed"
    job = Job(stage, partial(_train_until_killed, project.recipe, runs, stage), project.folder / "killed.log", ENVIRONMENT)
    ended = "it ended by itself"
    try:
        # Where stages are forked from a server with the trainers, this is too: the imports take longer than the training.
        run_one(stage_launcher(project.folder), job, lambda event: None, StopSignals())
    except StageError as error:
        ended = error.message
    kept = _checkpoints(runs)
    if signal.SIGKILL.name not in ended or not kept:
        report.check(stage, False, ended[-400:], "a checkpoint, then a kill")
        return
    try:
        run_recipe(load_recipe(project.recipe), runs, only=stage, machine=ALONE)
    except AlignError as error:
        report.check(stage, False, f"the second run ended with {error}", "it goes on")
        return
    last, undisturbed = (project.curve(stage, folder)[-1]["loss"] for folder in (runs, project.runs))
    off = abs(last - undisturbed) / abs(undisturbed)
    tolerance = RESUMED_TOLERANCE[project.device]
    found = f"killed after step {kept[-1]}; last loss {last:.6f} beside {undisturbed:.6f}"
    report.keep(stage, {"killed_after_step": kept[-1], "last_loss": last, "undisturbed": undisturbed})
    report.check(stage, off <= tolerance, found, "equal" if tolerance == 0 else f"within {tolerance:g}")


class _Kill:
    """Ends the process as soon as a checkpoint is written."""

    def handle(self, event: Event) -> None:
        if isinstance(event, Saving) and event.seconds is not None:
            os.kill(os.getpid(), signal.SIGKILL)


def _train_until_killed(recipe: Path, runs: Path, stage: str, _emit: Emit, _stop: Callable[[], int | None]) -> None:
    # In this process, so that no step is taken between the checkpoint and the kill.
    run_recipe(recipe, runs, only=stage, machine=ALONE, in_process=True, sinks=[_Kill()])


def _checkpoints(runs: Path) -> list[int]:
    """Steps of the checkpoints that are whole."""
    found = runs.glob(f".store/*/work/checkpoints/{PREFIX}*/{SEAL_NAME}")
    return sorted(int(path.parent.name.removeprefix(PREFIX)) for path in found)
