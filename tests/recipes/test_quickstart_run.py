"""recipes/quickstart at reduced size, end to end, with vLLM."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from align.cli.main import main
from align.report.results import Results
from align.testing.reduced import overrides, reduced

pytestmark = pytest.mark.slow

SIZES = {"instructions": 96, "preferences": 120, "prompts": 24, "validation": 8, "held_out": 12}
# vLLM starts for PPO, which gives it new weights, and for the comparison; every start takes some 10 s, and `make quickstart` has
# it everywhere. Few instructions and pairs make a weak reward model; its margins are small.
SMALL_QUICKSTART = (
    *(f"stages.{stage}.engine=transformers" for stage in ("sft_best", "candidates", "dpo.generate")),
    "stages.sft.num_epochs=2",
    "stages.pairs.min_margin=0.0",
    "stages.dpo.pairs.min_margin=0.0",
    "stages.ppo.num_episodes=32",
    "stages.ppo.rollout_batch_size=16",
    "stages.ppo.mini_batch_size=8",
)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_from_base_model_to_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe, run = reduced("quickstart", tmp_path / "mine", **SIZES), tmp_path / "mine"

    def align(command: str, *arguments: str) -> Any:
        capfd.readouterr()
        code = main([command, str(recipe), "--out", str(tmp_path), *overrides(*SMALL_QUICKSTART), *arguments])
        output, errors = capfd.readouterr()
        assert code == 0, errors
        return json.loads(output) if "--json" in arguments else (output, errors)

    output, errors = align("run")
    assert "sft_best" in output
    assert "gold" in output
    assert str(run / "report.html") in output
    assert "compare: done" in errors
    # Every line is ours: it begins with the names of stages or inputs, or that of the recipe.
    names = [path.name for folder in ("stages", "inputs") for path in (run / folder).iterdir()] + [run.name]
    ours = re.compile(rf"(?:(?:{'|'.join(map(re.escape, names))})(?: \([^)]*\))?(?:, |: ))+")
    assert [line for line in errors.splitlines() if not ours.match(line)] == []

    results = Results.from_json(json.loads((run / "results.json").read_text()))
    best_of = ["sft_best best of 2", "sft_best best of 4"]
    models = ["sft_best", *best_of, "rejection_sampling", "orpo", "dpo-1", "dpo-2", "ppo"]
    assert list(results.models) == models
    assert results.deciding_scorer == "gold"
    assert results.prompts == SIZES["held_out"]
    assert results.engine.name == "vllm"
    assert results.models["sft_best"].scores["gold"].mean > 0.1
    manifests: dict[str, Any] = {
        path.parent.name: json.loads(path.read_text()) for path in (run / "stages").glob("*/manifest.json")
    }
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

    answer = align("run", "--json")
    assert {stage["status"] for stage in answer["stages"]} == {"cached"}
    assert list(answer["results"]["models"]) == models

    plan = align("plan", "--set", "stages.ppo.kl_coef=0.3", "--json")
    assert [stage["name"] for stage in plan["stages"] if stage["status"] == "run"] == ["ppo", "compare"]
