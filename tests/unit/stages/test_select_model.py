"""The choice of a model by its score, with and without successive halving; tiny models, the transformers engine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align.cli.stage_recipe import StageRequest
from align.config.recipe import parse_document
from align.errors import Interrupted, RecipeError
from align.records import Prompt
from align.runtime.events import Progress
from align.selection.halving import better_half, rungs
from align.stage import StageContext
from align.stages.registry import STAGES
from align.stages.select_model import Config, run
from align.store.artifact import MODEL_FOLDER, Artifact, Manifest
from align.testing import Recorder, stage_context, tiny_causal_lm

pytestmark = pytest.mark.slow

TEXTS = ["I lost my keys.", "열쇠를 잃어버렸어.", "My train was late."] * 4
# Untrained models differ in how long their answers are.
RULE = {"rules": [{"type": "length", "name": "short", "max_characters": 12}]}
NAMES = {"beta=0.05": "dpo-trial-1", "beta=0.1": "dpo-trial-2", "beta=0.3": "dpo-trial-3", "beta=1.0": "dpo-trial-4"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder, found = tmp_path_factory.mktemp("models"), {}
    for seed, name in enumerate(NAMES.values(), start=1):
        tiny_causal_lm(folder / name / MODEL_FOLDER, texts=TEXTS, seed=seed)
        found[name] = Artifact(name, folder / name, _manifest("model", "dpo", name))
    rows = [{"id": f"p{n}", "prompt": [{"role": "user", "content": text}]} for n, text in enumerate(TEXTS[:11])]
    (folder / "prompts").mkdir()
    lines = [json.dumps(Prompt.model_validate({**row, "reference": None, "fields": {}}).model_dump(mode="json")) for row in rows]
    (folder / "prompts" / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return found | {"prompts": Artifact("prompts", folder / "prompts", _manifest("prompts", "input", "prompts"))}


def _manifest(kind: str, stage: str, name: str) -> Manifest:
    return Manifest(kind=kind, stage=stage, stage_version=1, fingerprint=name, config={}, inputs={}, seed=1)


def context(inputs: dict[str, Artifact], out: Path, **fields: Any) -> StageContext[Config]:
    settings: dict[str, Any] = {
        "models": NAMES,
        "prompts": "prompts",
        "scorer": RULE,
        "num_candidates": 2,
        "max_completion_tokens": 8,
        "max_prompt_tokens": 96,
        "engine": "transformers",
        "bootstrap_resamples": 200,
    }
    more = {name: fields.pop(name) for name in ("emit", "stop_requested") if name in fields}
    return stage_context(Config.model_validate(settings | fields), out, inputs, **more)


def answers(out: Path) -> list[list[dict[str, Any]]]:
    files = sorted((out / "answers").glob("*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def test_the_model_with_the_highest_mean_is_kept_and_takes_no_room(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    metrics = run(context(inputs, tmp_path / "entry")).metrics
    means = {}
    for label, rows in zip(NAMES, answers(tmp_path / "entry"), strict=True):
        assert len(rows) == 11 * 2
        means[label] = sum(row["scores"]["score"] for row in rows) / len(rows)
    assert {label: numbers["score"]["mean"] for label, numbers in metrics["models"].items()} == pytest.approx(means)
    assert len(set(means.values())) > 1, "models that are all the same choose nothing"
    assert metrics["selected"] == max(means, key=lambda label: means[label])
    assert metrics["models"][metrics["selected"]]["over_selected"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    chosen = inputs[NAMES[metrics["selected"]]].path / MODEL_FOLDER
    kept = tmp_path / "entry" / MODEL_FOLDER
    assert all(path.samefile(chosen / path.name) for path in kept.iterdir())
    assert (metrics["prompts"], metrics["scored_completions"]) == (11, 88)


def test_halving_answers_no_prompt_twice_and_goes_on_after_a_stop(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    undisturbed = run(context(inputs, tmp_path / "a", first_prompts=3)).metrics
    # Rungs of 3, 3 and 5 prompts: four models, then two.
    assert sorted(numbers["prompts"] for numbers in undisturbed["models"].values()) == [3, 3, 11, 11]
    assert undisturbed["scored_completions"] == 2 * (4 * 3 + 2 * 8)
    for rows in answers(tmp_path / "a"):
        assert set(Counter(row["prompt_id"] for row in rows).values()) == {2}
    assert undisturbed["models"][undisturbed["selected"]]["prompts"] == 11
    recorder, stopping = Recorder(), True

    def stop_requested() -> int | None:
        # Four lists of the first rung, one of the second.
        scored = [event for event in recorder.of(Progress) if event.task.startswith("score ")]
        return 15 if stopping and len(scored) == 5 else None

    def again() -> StageContext[Config]:
        return context(inputs, tmp_path / "b", first_prompts=3, emit=recorder.handle, stop_requested=stop_requested)

    with pytest.raises(Interrupted):
        run(again())
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "b" / "work").rglob("*.jsonl")}
    stopping = False
    metrics = run(again()).metrics
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert {**metrics, "engine_seconds": 0} == {**undisturbed, "engine_seconds": 0}
    assert answers(tmp_path / "b") == answers(tmp_path / "a")


def test_rungs_double_and_the_better_half_goes_on() -> None:
    assert [list(part) for part in rungs(range(10), 2)] == [[0, 1], [2, 3], [4, 5, 6, 7], [8, 9]]
    assert [list(part) for part in rungs(range(4), None)] == [list(part) for part in rungs(range(4), 4)] == [[0, 1, 2, 3]]
    assert better_half({"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.3, "e": 0.2}) == ["b", "c", "d"]
    assert better_half({"a": 0.1, "b": 0.2}) == ["a", "b"]


def test_a_model_is_named_once() -> None:
    with pytest.raises(ValueError, match="'dpo' is here twice"):
        Config.model_validate({"models": {"a": "dpo", "b": "dpo"}, "prompts": "prompts", "scorer": "reward"})


def test_models_are_options_of_the_command(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    request = StageRequest("select_model", Config, out=tmp_path / "out", seed=1, columns=[])
    folders = [inputs[name].path / MODEL_FOLDER for name in list(NAMES.values())[:2]]
    request.set_field("models", [f"mild={folders[0]}", f"strong={folders[1]}"])
    request.set_field("prompts", str(inputs["prompts"].path / "rows.jsonl"))
    (tmp_path / "gold.yaml").write_text("rules: [{type: length, name: short, max_words: 5}]\n")
    request.set_field("scorer", str(tmp_path / "gold.yaml"))
    recipe = parse_document(request.finish(), path=Path("x"), folder=Path(), stage_types=STAGES)
    assert {name: recipe.kinds[name] for name in ("mild", "strong")} == {"mild": "model", "strong": "model"}
    assert recipe.stages["select_model"].config.model_dump()["models"] == {"mild": "mild", "strong": "strong"}
    with pytest.raises(RecipeError, match="expected NAME=PATH"):
        request.set_field("models", [str(folders[0])])
