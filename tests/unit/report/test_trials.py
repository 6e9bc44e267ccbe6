"""Trials of a sweep in the report: their validation scores, their costs, and which of them was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.report.results import Results
from align.report.trials import MAX_SETTINGS, trial_plots, trials_of
from align.store.artifact import Artifact, Manifest


def made(name: str, fingerprint: str, *needs: tuple[str, str], seconds: float, stage: str = "dpo", **fields: Any) -> Artifact:
    manifest = Manifest(
        kind="model", stage=stage, stage_version=1, fingerprint=fingerprint, inputs=dict(needs), seed=1, seconds=seconds,
        **({"config": {}} | fields),
    )  # fmt: skip
    return Artifact(name, Path("nowhere"), manifest)


def numbers(mean: float, prompts: int = 40) -> dict[str, Any]:
    return {"score": {"mean": mean, "ci95": [mean - 0.1, mean + 0.1]}, "over_selected": {}, "prompts": prompts}


def sweep(scores: dict[str, dict[str, Any]], *, selected: str) -> list[Artifact]:
    """A base, one trial per setting that takes 1, 2, 3, … seconds, and the choice, which was made under other names."""
    trials = [made(f"dpo-trial-{i}", f"t{i}", ("sft", "s"), seconds=float(i)) for i in range(1, len(scores) + 1)]
    models = {settings: f"other-{i}" for i, settings in enumerate(scores, start=1)}
    choice = made(
        "dpo",
        "c",
        *((f"other-{i}", f"t{i}") for i in range(1, len(scores) + 1)),
        seconds=9.0,
        stage="select_model",
        config={"models": models, "prompts": "validation"},
        metrics={"models": scores, "selected": selected},
    )
    return [made("sft", "s", seconds=10.0, stage="sft"), *trials, choice]


SCORES = {"beta=0.1": numbers(0.5), "beta=0.2": numbers(0.7), "beta=0.3": numbers(0.6), "beta=0.4": numbers(0.9, prompts=20)}


def test_a_trial_costs_all_that_it_was_made_from_and_not_the_choice() -> None:
    artifacts = sweep(SCORES, selected="beta=0.2")
    trials = trials_of(artifacts[-1], artifacts)
    assert [trial.settings for trial in trials] == list(SCORES)
    assert [trial.cost.total_seconds for trial in trials] == [11.0, 12.0, 13.0, 14.0]
    assert [trial.score.mean for trial in trials] == [0.5, 0.7, 0.6, 0.9]
    assert [trial.chosen for trial in trials] == [False, True, False, False]
    assert [trial.prompts for trial in trials] == [40, 40, 40, 20]


def test_one_point_per_trial_and_the_frontier_of_those_that_answered_all(results: Results) -> None:
    (plot,) = trial_plots(results, sweep(SCORES, selected="beta=0.2"))
    assert plot.title == "Trials of dpo"
    assert [entry.label for entry in plot.legend] == ["1: beta=0.1", "2: beta=0.2 (chosen)", "3: beta=0.3", "4: beta=0.4"]
    # The chosen one has the colour of its row everywhere on the page.
    assert plot.legend[1].variable in plot.svg
    assert [f">{number}<" in plot.svg for number in (1, 2, 3, 4)] == [True] * 4
    assert "on 40 prompts (validation)" in plot.description
    assert "dpo is the best of 4 trials, so its score here flatters it" in plot.description
    assert "Fainter trials left early" in plot.description
    assert "cost (seconds)" in plot.svg and "validation score" in plot.svg


def test_many_trials_are_numbered_but_not_listed(results: Results) -> None:
    scores = {f"beta={i}": numbers(i / 100) for i in range(MAX_SETTINGS + 1)}
    (plot,) = trial_plots(results, sweep(scores, selected="beta=12"))
    assert [entry.label for entry in plot.legend] == ["13: beta=12 (chosen)"]
    assert "`align sweep` lists the settings" in plot.description
    assert "left early" not in plot.description


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_choice_there_is_no_drawing(results: Results, count: int) -> None:
    artifacts = sweep({"beta=0.1": numbers(0.5)}, selected="beta=0.1")
    assert list(trial_plots(results, artifacts[: 2 + count])) == []
