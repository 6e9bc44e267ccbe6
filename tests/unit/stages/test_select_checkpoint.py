"""The choice of a checkpoint: by score, not by loss; on a tiny model, with the transformers engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe, run_recipe
from align.errors import AlignError, Interrupted, RecipeError
from align.models.folder import ModelFolder
from align.pipeline.plan import make_plan
from align.runtime.events import Progress
from align.selection.checkpoint import highest_score_epoch, lowest_loss_epoch, scored_everywhere
from align.stages.select_checkpoint import run as run_stage
from align.store.artifact import MODEL_FOLDER, Artifact, Manifest
from align.testing import Recorder, stage_context

pytestmark = pytest.mark.slow

# The more it is trained, the likelier are the words of the data; a rule that forbids the letters of those words likes the first
# epoch best, while the loss on the very data it is trained on is lowest after the last.
RULE = "{rules: [{type: avoids, name: untrained, none_of: ['[a-z가-힣]{3}']}]}"
RECIPE = f"""\
name: choice
seed: 5
inputs:
  base:         {{kind: model, path: base}}
  instructions: {{kind: instructions, path: instructions.jsonl}}
  prompts:      {{kind: prompts, path: prompts.jsonl}}
stages:
  sft: {{stage: sft, model: base, data: instructions, num_epochs: 3, learning_rate: 1e-2, batch_size: 2, max_tokens: 128}}
  best: {{stage: select_checkpoint, model: sft, prompts: prompts, data: instructions, scorer: {RULE}, temperature: 1.0,
         num_candidates: 4, max_completion_tokens: 8, max_prompt_tokens: 96, engine: transformers, bootstrap_resamples: 200}}
"""


def run(project: Path, out: Path, *overrides: str) -> Path:
    (project / "recipe.yaml").write_text(RECIPE)
    return run_recipe(load_recipe(project, overrides), out).folder


def manifest_of(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stages" / stage / "manifest.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(project_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder; must not be written to."""
    project = Path(shutil.copytree(project_template, tmp_path_factory.mktemp("choice") / "project"))
    return run(project, project.parent / "runs")


def test_the_best_by_score_is_kept_though_another_has_the_lowest_loss(finished: Path) -> None:
    metrics = manifest_of(finished, "best")["metrics"]
    scores = {int(epoch): numbers["score"]["mean"] for epoch, numbers in metrics["epochs"].items()}
    losses = {int(epoch): numbers["eval_loss"] for epoch, numbers in metrics["epochs"].items()}
    assert list(scores) == [1, 2, 3]
    assert metrics["selected_epoch"] == max(scores, key=lambda epoch: (scores[epoch], -epoch))
    assert metrics["epoch_of_lowest_loss"] == min(losses, key=lambda epoch: losses[epoch])
    assert metrics["selected_epoch"] != metrics["epoch_of_lowest_loss"]
    difference = metrics["score_over_lowest_loss"]
    assert difference["mean"] == pytest.approx(scores[metrics["selected_epoch"]] - scores[metrics["epoch_of_lowest_loss"]])
    assert difference["ci95"][0] <= difference["mean"] <= difference["ci95"][1]
    chosen = finished / "stages" / "sft" / "epochs" / f"epoch-{metrics['selected_epoch']}"
    kept = finished / "stages" / "best" / MODEL_FOLDER
    assert sorted(path.name for path in kept.iterdir()) == sorted(path.name for path in chosen.iterdir())
    assert all(path.samefile(chosen / path.name) for path in kept.iterdir()), "a choice takes no room on the disk"


def test_the_scores_are_those_of_the_answers_and_both_curves_are_logged(finished: Path) -> None:
    metrics, folder = manifest_of(finished, "best")["metrics"], finished / "stages" / "best"
    curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [1, 2, 3]
    for row in curve:
        answers = (folder / "answers" / f"epoch-{row['epoch']}.jsonl").read_text().splitlines()
        scores = [json.loads(line)["scores"]["score"] for line in answers]
        assert len(scores) == 12 * 4
        assert row["score"] == pytest.approx(sum(scores) / len(scores))
        assert row["score"] == metrics["epochs"][str(row["epoch"])]["score"]["mean"]
        assert row["eval_loss"] == metrics["epochs"][str(row["epoch"])]["eval_loss"]


def test_the_loss_is_that_of_training_per_completion_token(finished: Path) -> None:
    """The last epoch's model is the trained model; its loss, taken again by the plain formula."""
    import torch

    from align.data.encoding import encode_instructions
    from align.data.template import ChatFormat
    from align.models.load import load_causal_lm
    from align.records import Instruction

    folder = finished / "stages" / "sft" / MODEL_FOLDER
    inputs = finished / "inputs" / "instructions"
    data = Artifact("instructions", inputs, Manifest.model_validate_json((inputs / "manifest.json").read_text()))
    chat_format = ChatFormat(ModelFolder(folder).tokenizer, where="")
    encoded = encode_instructions(data.rows(Instruction), chat_format, max_tokens=128, on_invalid="error", where=data.where)
    model = load_causal_lm(folder, dtype="float32").eval()
    total, tokens = 0.0, 0
    for row in encoded.rows:
        ids = torch.tensor([row.prompt_token_ids + row.completion_token_ids])
        with torch.no_grad():
            logps = model(input_ids=ids).logits.log_softmax(-1)
        for position in range(len(row.prompt_token_ids), ids.shape[1]):
            total -= float(logps[0, position - 1, ids[0, position]])
            tokens += 1
    found = manifest_of(finished, "best")["metrics"]["epochs"]["3"]["eval_loss"]
    assert found == pytest.approx(total / tokens, rel=1e-5)


def test_one_epoch_by_a_reward_model_without_data(project: Path, tmp_path: Path) -> None:
    overrides = [
        "stages.sft.num_epochs=1",
        "inputs.comparisons={kind: preferences, path: preferences.jsonl}",
        "stages.reward={stage: reward_model, model: sft, data: comparisons, max_tokens: 128}",
        *("stages.best.scorer=reward", "stages.best.data=null", "stages.best.num_candidates=1"),
    ]
    folder = run(project, tmp_path / "runs", *overrides)
    metrics = manifest_of(folder, "best")["metrics"]
    assert metrics["selected_epoch"] == 1
    assert "reward" in manifest_of(folder, "best")["inputs"]
    assert metrics["epochs"]["1"]["over_selected"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert "epoch_of_lowest_loss" not in metrics
    assert "eval_loss" not in (folder / "stages" / "best" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("base", "best.model: wants a model made by an sft stage, which keeps a checkpoint per epoch, but 'base' was made by no"),
        ("other", "but 'other' was made by select_checkpoint; name sft"),
    ],
)
def test_what_keeps_no_epochs_is_refused_when_the_recipe_is_read(project: Path, model: str, expected: str) -> None:
    other = RECIPE.splitlines()[-2].replace("  best:", "  other:") + "\n" + RECIPE.splitlines()[-1] + "\n"
    (project / "recipe.yaml").write_text(RECIPE + other)
    with pytest.raises(RecipeError, match="made by") as caught:
        load_recipe(project, [f"stages.best.model={model}"])
    assert expected in str(caught.value)


def test_a_stage_that_keeps_no_epochs_is_refused_with_its_line(project: Path, tmp_path: Path) -> None:
    (project / "recipe.yaml").write_text(RECIPE.replace("num_epochs: 3,", "num_epochs: 3, keep_epochs: none,"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(project)
    line = next(number for number, text in enumerate(RECIPE.splitlines(), 1) if text.startswith("  best:"))
    expected = "'sft' keeps no checkpoint per epoch (keep_epochs: none); set keep_epochs: all there"
    assert f"recipe.yaml:{line}:" in str(caught.value)
    assert f"best.model: {expected}" in str(caught.value)

    # Without the choice it runs: of three epochs the trained model is left, and a choice from the result is refused, too.
    recipe = load_recipe(
        project, ["stages={sft: {stage: sft, model: base, data: instructions, num_epochs: 3, keep_epochs: none}}"]
    )
    made = run_recipe(recipe, tmp_path / "runs").folder / "stages" / "sft"
    assert sorted(path.name for path in made.iterdir()) == ["drops.jsonl", "manifest.json", "metrics.jsonl", "model"]
    (project / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match="'tuned' keeps no checkpoint per epoch"):
        load_recipe(project, [f"inputs.tuned={{kind: model, artifact: {made}}}", "stages.best.model=tuned"])


def test_the_trained_model_does_not_depend_on_what_is_kept(finished: Path, project: Path, tmp_path: Path) -> None:
    (project / "recipe.yaml").write_text(RECIPE.split("  best:")[0])
    made = run_recipe(load_recipe(project, ["stages.sft.keep_epochs=none"]), tmp_path / "runs").folder / "stages" / "sft"
    weights = "model/model.safetensors"
    assert (made / weights).read_bytes() == (finished / "stages" / "sft" / weights).read_bytes()
    assert not (made / "epochs").exists()


def test_a_result_of_another_run(project: Path, finished: Path, tmp_path: Path) -> None:
    """Any folder of an sft stage can be chosen from; one that lost its epochs is refused."""
    spec = f"inputs.tuned={{kind: model, artifact: {finished / 'stages' / 'sft'}}}"
    (project / "recipe.yaml").write_text(RECIPE)
    plan = make_plan(load_recipe(project, [spec, "name=other", "stages.best.model=tuned"]), finished.parent)
    assert {stage.name: stage.status for stage in plan.stages}["best"] == "cached"
    spec = f"inputs.tuned={{kind: model, artifact: {finished / 'stages' / 'best'}}}"
    with pytest.raises(AlignError, match="was made by select_checkpoint"):
        load_recipe(project, [spec, "stages.best.model=tuned"])


class TestChoice:
    def test_of_equal_scores_the_earlier_epoch(self) -> None:
        assert highest_score_epoch({1: 0.5, 2: 0.75, 3: 0.75}) == 2
        assert highest_score_epoch({3: 1.0, 1: 1.0}) == 1

    def test_of_equal_losses_the_earlier_epoch(self) -> None:
        assert lowest_loss_epoch({1: 2.0, 2: 1.0, 3: 1.0}) == 2

    def test_a_prompt_without_a_finite_score_somewhere_is_left_out_everywhere(self) -> None:
        found = scored_everywhere(
            {1: {"a": 1.0, "b": None, "c": 3.0, "d": 1.0}, 2: {"c": 4.0, "b": 1.0, "a": 0.0, "d": float("nan")}}
        )
        assert found.scores == {1: {"a": 1.0, "c": 3.0}, 2: {"a": 0.0, "c": 4.0}}
        assert [list(of_epoch) for of_epoch in found.scores.values()] == [["a", "c"], ["a", "c"]]
        assert [(drop.id, drop.drop_reason, drop.detail) for drop in found.drops] == [
            ("b", "nonfinite_score", "no finite score at epoch 1"),
            ("d", "nonfinite_score", "no finite score at epoch 2"),
        ]

    def test_a_prompt_that_an_epoch_lacks(self) -> None:
        found = scored_everywhere({1: {"a": 1.0}, 2: {"a": 1.0, "b": 2.0}})
        assert (found.scores, [drop.id for drop in found.drops]) == ({1: {"a": 1.0}, 2: {"a": 1.0}}, ["b"])


def test_an_interrupted_choice_goes_on_with_what_was_finished(finished: Path, project: Path, tmp_path: Path) -> None:
    """Stopped while epoch 2 is scored; the second attempt samples nothing again and comes to the same choice."""
    (project / "recipe.yaml").write_text(RECIPE)
    config: Any = load_recipe(project).stages["best"].config
    artifacts = {}
    for name, place in (("sft", "stages/sft"), ("prompts", "inputs/prompts"), ("instructions", "inputs/instructions")):
        manifest = Manifest.model_validate_json((finished / place / "manifest.json").read_text())
        artifacts[name] = Artifact(name, finished / place, manifest)
    recorder = Recorder()
    stopping = True

    def stop_requested() -> int | None:
        return 15 if stopping and "score epoch 2" in {event.task for event in recorder.of(Progress)} else None

    changes: Any = {"emit": recorder.handle, "stop_requested": stop_requested}
    context = stage_context(config, tmp_path / "entry", artifacts, name="best", seed=5, **changes)
    with pytest.raises(Interrupted):
        run_stage(context)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "entry" / "work" / "answers").rglob("*.jsonl")}
    assert len(shards) == 3
    assert len(list((tmp_path / "entry" / "work" / "scores").glob("*.jsonl"))) == 1
    stopping = False
    metrics = run_stage(context).metrics
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    undisturbed = manifest_of(finished, "best")["metrics"]
    assert {key: metrics[key] for key in undisturbed if key != "engine_seconds"} == {
        key: value for key, value in undisturbed.items() if key != "engine_seconds"
    }
