"""recipes/quickstart at reduced size, end to end, with vLLM."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from reduced import SIZES, align, overrides, reduced

from align.report.results import Results

pytestmark = pytest.mark.slow

# Few instructions and pairs make a weak reward model; its margins are small.
SMALL_QUICKSTART = (
    "stages.sft.num_epochs=2",
    "stages.pairs.min_margin=0.0",
    "stages.dpo.pairs.min_margin=0.0",
    "stages.ppo.num_episodes=32",
    "stages.ppo.rollout_batch_size=16",
    "stages.ppo.mini_batch_size=8",
)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_from_base_model_to_table(tmp_path: Path) -> None:
    recipe, settings = reduced("quickstart", tmp_path / "mine"), overrides(*SMALL_QUICKSTART)
    first = align("run", str(recipe), "--out", str(tmp_path), *settings)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "mine"
    assert "sft_best" in first.stdout
    assert "gold" in first.stdout
    assert str(run / "report.html") in first.stdout
    assert "compare: done" in first.stderr
    # Every line is ours: it begins with the names of stages or inputs, or that of the recipe.
    names = [path.name for folder in ("stages", "inputs") for path in (run / folder).iterdir()] + [run.name]
    ours = re.compile(rf"(?:(?:{'|'.join(map(re.escape, names))})(?: \([^)]*\))?(?:, |: ))+")
    assert [line for line in first.stderr.splitlines() if not ours.match(line)] == []

    results = Results.from_json(json.loads((run / "results.json").read_text()))
    models = ["sft_best", "rejection_sampling", "orpo", "dpo-1", "dpo-2", "ppo"]
    assert list(results.models) == models
    assert results.prompts == SIZES["held_out"]
    assert results.engine.name == "vllm"
    assert results.models["sft_best"].scores["gold"].mean > 0.1
    manifests: dict[str, Any] = {
        path.parent.name: json.loads(path.read_text()) for path in (run / "stages").glob("*/manifest.json")
    }
    assert manifests["candidates"]["versions"]["vllm"] == results.engine.version
    assert manifests["candidates"]["metrics"]["finish_reasons"]["stop"] > 0
    assert manifests["candidates"]["fingerprint"] == manifests["dpo-1-generate"]["fingerprint"]
    assert manifests["reward_model"]["metrics"]["pairs_held_out"] > 0
    assert manifests["sft_best"]["metrics"]["epochs"].keys() == {"1", "2"}
    ppo = manifests["ppo"]
    assert ppo["versions"]["vllm"] == results.engine.version
    # What is shipped for CPUs computes in float32 on every CPU, whatever it could do, so that tables can be compared.
    trained = {name: m["metrics"]["precision"] for name, m in manifests.items() if "precision" in m["metrics"]}
    assert set(trained) == {"sft", "reward_model", "rejection_sampling", "orpo", "dpo-1", "dpo-2", "ppo"}
    assert set(trained.values()) == {"float32"}
    assert ppo["metrics"]["rollout/sampler_gap"] < 1e-4

    second = align("run", str(recipe), "--out", str(tmp_path), *settings, "--json")
    assert second.returncode == 0, second.stderr
    answer = json.loads(second.stdout)
    assert {stage["status"] for stage in answer["stages"]} == {"cached"}
    assert list(answer["results"]["models"]) == models

    plan = align("plan", str(recipe), "--out", str(tmp_path), *settings, "--set", "stages.ppo.kl_coef=0.3", "--json")
    assert [stage["name"] for stage in json.loads(plan.stdout)["stages"] if stage["status"] == "run"] == ["ppo", "compare"]
