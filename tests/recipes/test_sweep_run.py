"""A sweep from end to end on a tiny project: what is trained, what is found again, and which model the name stands for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe
from align.cli.main import main
from align.errors import RecipeError
from align.pipeline.checks.plan import checked_plan
from align.pipeline.run import run_recipe
from align.store.artifact import MODEL_FOLDER
from align.testing.project import write_jsonl

pytestmark = pytest.mark.slow

SAMPLING = "max_completion_tokens: 8, max_prompt_tokens: 96, engine: transformers, bootstrap_resamples: 200"
SHORT = "{rules: [{type: length, name: short, max_characters: 12}]}"
RECIPE = f"""\
name: swept
seed: 5
inputs:
  base:         {{kind: model, path: base}}
  instructions: {{kind: instructions, path: instructions.jsonl}}
  comparisons:  {{kind: preferences, path: preferences.jsonl}}
  validation:   {{kind: prompts, path: validation.jsonl}}
  held_out:     {{kind: prompts, path: held_out.jsonl}}
stages:
  sft: {{stage: sft, model: base, data: instructions, learning_rate: 1e-3, batch_size: 8, max_tokens: 128}}
  dpo: {{stage: dpo, model: sft, pairs: comparisons, learning_rate: 1e-3, batch_size: 8, max_tokens: 128}}
  compare: {{stage: compare, models: [sft, dpo], baseline: sft, prompts: held_out, scorers: {{short: {SHORT}}}, {SAMPLING}}}
sweep:
  dpo: {{fields: {{dpo.learning_rate: [1e-3, 1e-2]}}, prompts: validation, scorer: {SHORT}, num_candidates: 4, {SAMPLING}}}
"""


def write(project: Path, text: str = RECIPE) -> Path:
    rows = [json.loads(line) for line in (project / "prompts.jsonl").read_text().splitlines()]
    write_jsonl(project / "validation.jsonl", ({**row, "prompt": f"{row['prompt']} !"} for row in rows))
    (project / "recipe.yaml").write_text(text)
    return project


def run(project: Path, out: Path, *overrides: str) -> dict[str, str]:
    """Status by stage."""
    return {stage["name"]: stage["status"] for stage in run_recipe(load_recipe(project, overrides), out, in_process=True).stages}


def manifest(out: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "swept" / "stages" / stage / "manifest.json").read_text())
    return found


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["sweep", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_trials_run_once_and_the_best_takes_the_name(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    assert set(run(write(project), out).values()) == {"run"}
    metrics = manifest(out, "dpo")["metrics"]
    means = {label: numbers["score"]["mean"] for label, numbers in metrics["models"].items()}
    assert metrics["selected"] == max(means, key=lambda label: means[label])
    best = f"dpo-trial-{list(means).index(metrics['selected']) + 1}"
    stages = out / "swept" / "stages"
    weights = f"{MODEL_FOLDER}/model.safetensors"
    assert (stages / "dpo" / weights).samefile(stages / best / weights)
    # The command shows what the choice found, and the table how many chances the row had.
    (state,) = json.loads(shown(capsys, project, "--out", out, "--json"))["sweeps"]
    assert [trial["stage"] for trial in state["trials"] if trial["chosen"]] == [best]
    assert [trial["score"]["mean"] for trial in state["trials"]] == list(means.values())
    assert all(trial["status"] == "cached" and trial["seconds"] > 0 for trial in state["trials"])
    assert f"dpo is the model of {best}." in shown(capsys, project, "--out", out)
    results = json.loads((out / "swept" / "results.json").read_text())
    assert {name: row["cost"]["trials"] for name, row in results["models"].items()} == {"sft": 1.0, "dpo": 2.0}
    assert f"{metrics['selected']} (chosen)</li>" in (out / "swept" / "report.html").read_text()
    # Nothing is left to do.
    assert set(run(project, out).values()) == {"cached"}
    # The same trials in another order are named otherwise and found again, the choice too.
    turned = "sweep.dpo.fields.dpo.learning_rate=[1e-2, 1e-3]"
    assert set(run(project, out, turned).values()) == {"cached"}
    assert manifest(out, "dpo")["metrics"] == metrics
    # One more value trains one more trial, and chooses anew.
    more = run(project, out, "sweep.dpo.fields.dpo.learning_rate=[3e-3, 1e-3, 1e-2]")
    trained = {name for name, status in more.items() if status == "run"}
    assert trained - {"compare"} == {"dpo-trial-1", "dpo"}
    # The chosen settings without a sweep give the same bytes.
    label = metrics["selected"].partition("=")[2]
    (project / "recipe.yaml").write_text(RECIPE[: RECIPE.index("sweep:")])
    assert run(project, out, f"stages.dpo.learning_rate={label}", "name=plain")["dpo"] == "cached"


def test_prompts_with_the_content_of_the_held_out_ones_are_refused(project: Path, tmp_path: Path) -> None:
    write(project)
    shutil.copy(project / "held_out.jsonl", project / "validation.jsonl")
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:14:\d+: sweep.dpo.prompts: all 6 prompts of 'validation' are in 'held_out'"
    ):
        checked_plan(load_recipe(project), tmp_path)
    rows = [json.loads(line) for line in (project / "held_out.jsonl").read_text().splitlines()]
    write_jsonl(project / "validation.jsonl", [{"prompt": "Something else."}, {"prompt": rows[0]["prompt"]}])
    with pytest.raises(
        RecipeError, match="1 of 2 prompts of 'validation' are in 'held_out', which 'compare' holds out"
    ) as caught:
        checked_plan(load_recipe(project), tmp_path)
    assert "decontaminate: [held_out]" in caught.value.render()
    plan, _ = checked_plan(load_recipe(project, ["inputs.validation.decontaminate=[held_out]"]), tmp_path)
    # Shares of one file have no prompt in common.
    halves = ["inputs.validation.path=held_out.jsonl", "inputs.validation.share=[0, 0.5]", "inputs.held_out.share=[0.5, 1]"]
    checked_plan(load_recipe(project, halves), tmp_path)
    with pytest.raises(RecipeError, match="'validation' is the same file as 'held_out'"):
        load_recipe(project, [*halves, "inputs.held_out.share=[0.4, 1]"])
    assert [stage.name for stage in plan.stages] == ["sft", "dpo-trial-1", "dpo-trial-2", "dpo", "compare"]


@pytest.mark.parametrize(("width", "settings"), [(80, "learning_rate=0.001"), (200, "0.001")])
def test_trials_are_shown_before_they_have_run(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, settings: str
) -> None:
    monkeypatch.setattr("align.cli.options.PIPE_WIDTH", width)
    fields = "sweep.dpo.fields={dpo: {learning_rate: [1e-3, 1e-2], batch_size: [4, 8], max_grad_norm: [0.5, 1.0], beta: [0.1]}}"
    text = shown(capsys, write(project), "--out", tmp_path, "--set", fields)
    assert "Sweep of dpo: 8 trials, chosen by rules on the prompts validation." in text
    assert settings in text.split()
    assert text.count("to run") == 8
    assert max(map(len, text[: text.index("No trial is chosen yet")].splitlines())) <= width
    (project / "recipe.yaml").write_text(RECIPE[: RECIPE.index("sweep:")])
    assert main(["sweep", str(project)]) == 2
    assert "the recipe has no sweep" in capsys.readouterr().err
