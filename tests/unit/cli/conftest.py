"""A command line in this process, with a pipeline that does nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import init_place
import pytest

from align.cli.main import main
from align.config.recipe import Recipe
from align.runtime.events import StageFinished, StageStarted

RECIPE = """\
name: small
inputs:
  base: {kind: model, path: base}
  lessons: {kind: instructions, path: lessons.jsonl}
stages:
  sft: {stage: sft, model: base, data: lessons}
"""


@dataclass
class FakePipeline:
    """Remembers what it was asked to run, and answers what a test puts into it."""

    recipe: Recipe | None = None
    out: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    comparisons: dict[str, dict[str, Any]] = field(default_factory=dict)
    estimates: tuple[Any, ...] = ()
    times: tuple[Any, ...] = ()
    error: BaseException | None = None

    def run_recipe(self, recipe: Recipe, out: Path, **options: Any) -> Any:
        self.recipe, self.out, self.options = recipe, out, options
        (display,) = options["sinks"]
        display.handle(StageStarted(stage="sft", reason="no result yet"))
        if self.error is not None:
            raise self.error
        display.handle(StageFinished(stage="sft", seconds=2.0, metrics={"loss": 1.23456}))
        phases = {"start": 0.5, "train": 1.75, "other": 0.25}
        stages = [{"name": "sft", "status": "run", "seconds": 2.0, "phases": phases}]
        folder = out / recipe.name
        return SimpleNamespace(
            folder=folder,
            seconds=4.0,
            overlap_seconds=0.0,
            comparisons=self.comparisons,
            stages=stages,
            to_json=lambda: {"folder": str(folder)},
        )

    def checked_plan(self, recipe: Recipe, out: Path, **options: Any) -> Any:
        self.recipe, self.out, self.options = recipe, out, options
        stage = SimpleNamespace(
            name="sft", stage_type="sft", fingerprint="f", status="run", reason="beta: 0.1 → 0.3", seconds=None
        )
        found = {"stages": [{"name": "sft"}]}
        return SimpleNamespace(stages=[stage], inputs={}, run_folder=out / recipe.name, to_json=lambda: found), []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "lessons.jsonl").write_text("")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    from align.pipeline import beside
    from align.pipeline.checks import plan as checks
    from align.pipeline.estimate import plan as estimate
    from align.pipeline.estimate import rates, spread_view, stage_time
    from align.pipeline.estimate.machine import Machine

    fake = FakePipeline()
    here = Machine("cpu", "memory", 8 << 30, 4 << 30, 9 << 30, False)
    monkeypatch.setattr(beside, "groups_of", lambda plan, machine: ())
    monkeypatch.setattr(estimate, "estimate_plan", lambda plan, machine, shares: estimate.PlanEstimate(here, fake.estimates))
    monkeypatch.setattr(rates, "unusual_rates", lambda plan: ())
    monkeypatch.setattr(spread_view, "stage_spreads", lambda plan, estimate: ())
    monkeypatch.setattr(checks, "checked_plan", fake.checked_plan)
    monkeypatch.setattr(spread_view, "workers_of", lambda plan, estimate: {})
    monkeypatch.setattr(stage_time, "stage_times", lambda plan, machine, workers: fake.times)
    module = ModuleType("align.pipeline.run")
    module.run_recipe = fake.run_recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake


@pytest.fixture
def align(capsys: pytest.CaptureFixture[str]) -> Callable[..., init_place.Answer]:
    def call(*arguments: str) -> init_place.Answer:
        code = main(arguments)
        captured = capsys.readouterr()
        return init_place.Answer(code, captured.out, captured.err)

    return call


@pytest.fixture
def place(project_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder."""
    monkeypatch.chdir(tmp_path)
    init_place.fill(project_template / "base")
    return tmp_path


@pytest.fixture
def init(place: Path, align: Callable[..., init_place.Answer], capsys: pytest.CaptureFixture[str]) -> init_place.Init:
    def call(*arguments: str, model: str = "model") -> init_place.Answer:
        capsys.readouterr()
        return align("init", *arguments, *(["--model", model] if model else []))

    return call
