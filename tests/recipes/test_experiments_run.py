"""The recipes that ask one question each, at reduced size, to their tables. They share a folder of runs, as a user's do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
from reduced import RECIPES, run_small

from align.config.sections import DpoVariant
from align.pipeline.recipe import load_recipe

pytestmark = pytest.mark.slow

BOTH_METHODS = (
    "stages.candidates.engine=transformers",
    "stages.candidates.max_completion_tokens=16",
    "stages.best_of_n.keep_truncated=true",
    "stages.pairs.keep_truncated=true",
    "stages.pairs.min_margin=0.0",
)
"""Short samples for rejection sampling and DPO, of which none is left out."""
TUNED = ("rejection_sampling_tuned", "dpo_tuned")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most recipes are equal up to `sft_best`: the first that runs trains it for all."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves of all trainings takes longer than the trainings."""
    monkeypatch.setattr("align.report.html.write_report", lambda path, **_: path.write_text(""))


@pytest.mark.usefixtures("no_drawings")
def test_every_way_of_pairing(runs: Path, tmp_path: Path) -> None:
    ways = [name for name in load_recipe(RECIPES / "preference-data").stages if name.endswith("-pairs-s17")]
    names = [way.removesuffix("-pairs-s17") for way in ways]
    results = run_small(
        "preference-data",
        tmp_path,
        runs,
        "stages.candidates.seeds=[17]",
        "stages.candidates.engine=transformers",
        "stages.candidates.max_completion_tokens=16",
        "stages.margin-window-pairs.min_margin=0.0",
        "stages.margin-window-pairs.max_margin=100.0",
        "stages.length-matched-pairs.max_length_ratio=10.0",
        "stages.agreed-pairs.min_agreement=0.0",
        *(f"stages.{name}-pairs.keep_truncated=true" for name in names),
        *(f"stages.{name}.num_epochs=1" for name in names),
    )
    assert set(results.models) == {"sft_best", *names}
    assert len(names) == 11


@pytest.mark.usefixtures("no_drawings")
def test_dpo_against_rejection_sampling(runs: Path, tmp_path: Path) -> None:
    results = run_small(
        "dpo-vs-rejection-sampling",
        tmp_path,
        runs,
        *BOTH_METHODS,
    )
    assert [row for row in results.models if "best of" not in row] == ["sft_best", "rejection_sampling", "dpo"]
    assert [row for row in results.models if "best of" in row] == [f"sft_best best of {n}" for n in (1, 2, 4, 8, 16)]
    assert list(results.models["rejection_sampling"].replicates or {}) == [f"rejection_sampling-s{seed}" for seed in (17, 18, 19)]
    assert results.models["sft_best best of 4"].kl_bound == pytest.approx(math.log(4) - 3 / 4)


@pytest.mark.usefixtures("no_drawings")
def test_tuning(runs: Path, tmp_path: Path) -> None:
    """Two trials of each method, one of which is the row that is not tuned."""
    results = run_small(
        "tuning",
        tmp_path,
        runs,
        *BOTH_METHODS,
        "sweep.rejection_sampling_tuned.fields={rejection_sampling_tuned: {learning_rate: [1e-3], num_epochs: [1, 2]}}",
        "sweep.dpo_tuned.fields={dpo_tuned: {learning_rate: [2e-4], beta: [0.03, 0.1]}}",
        *(f"sweep.{name}.{setting}" for name in TUNED for setting in ("engine=transformers", "max_completion_tokens=16")),
    )
    trials = {row: model.cost and model.cost.trials for row, model in results.models.items()}
    assert trials == {"sft_best": 1, "rejection_sampling": 1, "dpo": 1, **dict.fromkeys(TUNED, 2)}


@pytest.mark.usefixtures("no_drawings")
def test_preference_methods(runs: Path, tmp_path: Path) -> None:
    """Some of the methods: every variant of DPO is trained in test_pairwise_stages.py."""
    models = ["sft_best", "ld_dpo", "kto"]
    results = run_small(
        "preference-methods",
        tmp_path,
        runs,
        "stages.candidates.engine=transformers",
        "stages.candidates.max_completion_tokens=16",
        "stages.pairs.keep_truncated=true",
        "stages.pairs.min_margin=0.0",
        f"stages.compare.models=[{', '.join(models)}]",
        options=("--until", "compare"),
    )
    assert list(results.models) == models


def test_preference_methods_are_compared_in_full() -> None:
    stages = load_recipe(RECIPES / "preference-methods").stages
    trained = [name for name, node in stages.items() if node.type in ("dpo", "orpo", "simpo", "kto")]
    assert stages["compare"].config.models == ["sft_best", *trained]  # type: ignore[attr-defined]
    variants = {stages[name].config.variant for name in trained if stages[name].type == "dpo"}  # type: ignore[attr-defined]
    assert variants == set(get_args(DpoVariant))


def test_reward_hacking(runs: Path, tmp_path: Path) -> None:
    small = ("num_episodes=8", "rollout_batch_size=4", "mini_batch_size=4", "max_completion_tokens=16", "engine=transformers")
    settings = [f"stages.{stage}.{setting}" for stage in ("ppo_kl", "ppo_no_kl") for setting in small]
    results = run_small("reward-hacking", tmp_path, runs, *settings)
    assert [row for row in results.models if "best of" not in row] == ["sft_best", "ppo_kl", "ppo_no_kl"]
    assert "optimised and watched scores" in (runs / "reward-hacking" / "report.html").read_text()
