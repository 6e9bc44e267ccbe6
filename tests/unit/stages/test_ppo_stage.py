"""The ppo stage on the tiny project: what it writes, and what it refuses before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe, run_recipe
from align.errors import AlignError, DataError, RecipeError, StageError
from align.stages.ppo import Config
from align.store.artifact import Manifest
from align.testing import fill_weights, tiny_causal_lm, tiny_reward_model

pytestmark = pytest.mark.slow

RECIPE = """\
name: tiny-ppo
seed: 5
inputs:
  base:    {{kind: model, path: base}}
  reward:  {{kind: reward_model, path: {reward}}}
  prompts: {{kind: prompts, path: prompts.jsonl}}
stages:
  ppo: {{stage: ppo, model: base, prompts: prompts, scorers: {{rm: reward}}, num_episodes: 16, rollout_batch_size: 8,
        mini_batch_size: 4, ppo_epochs: 1, max_completion_tokens: 6, max_prompt_tokens: 96, engine: transformers{more}}}
"""
TEXTS = ["열쇠를 잃어버렸어", "I lost my keys", "우산을 두고 왔어", "My train was late"] * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_causal_lm(tmp_path / "base", texts=TEXTS, seed=1)
    tiny_reward_model(tmp_path / "reward", texts=TEXTS, seed=2)
    rows = [{"id": f"p{n}", "prompt": text} for n, text in enumerate(TEXTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def run(folder: Path, *, reward: str = "reward", more: str = "") -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(reward=reward, more=f", {more}" if more else ""), encoding="utf-8")
    return Path(run_recipe(load_recipe(recipe), folder / "runs").folder)


def refusal(folder: Path, kind: type[AlignError], **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        run(folder, **changes)
    text = caught.value.render()
    assert len(text.splitlines()) <= 15
    assert "Traceback" not in text
    return text


def test_what_it_leaves(folder: Path) -> None:
    stage = (
        run(folder, more="watch: {short: {rules: [{type: length, name: short, max_characters: 5}]}}, kl_target: 6.0")
        / "stages"
        / "ppo"
    )
    manifest = Manifest.model_validate_json((stage / "manifest.json").read_bytes())
    assert manifest.kind == "model" and (stage / "model" / "model.safetensors").exists()
    metrics = manifest.metrics
    assert (metrics["rollouts"], metrics["episodes"], metrics["nonfinite_scores"]) == (2, 16, 0)
    assert {"rollout", "score", "experience", "train", "sync"} <= metrics["seconds"].keys()
    assert 0 <= metrics["sync_share"] < 1
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [row["episode"] for row in rows] == [8, 16]
    assert metrics["new_tokens"] == pytest.approx(sum(8 * row["rollout/completion_tokens"] for row in rows))
    assert metrics["trained_tokens"] == metrics["tokens"] > metrics["new_tokens"]  # with the prompts, once
    assert rows[0]["objective/kl"] == 0 and rows[1]["objective/kl_coef"] != rows[0]["objective/kl_coef"]
    assert all({"objective/scores/short", "val/explained_var", "policy/clipfrac_avg"} <= row.keys() for row in rows)


def test_only_what_is_watched_is_logged_beside_the_optimised_score(folder: Path) -> None:
    rules = "{rules: [{type: length, name: short, max_characters: 5}]}"
    stage = run(folder, more=f"watch: {{short: {rules}}}") / "stages" / "ppo"
    row = json.loads((stage / "metrics.jsonl").read_text().splitlines()[0])
    assert [key for key in row if key.startswith(("objective/scores/", "objective/parts/"))] == ["objective/scores/short"]
    text = RECIPE.format(reward="reward", more=", score_weights: {short: 2.0}").replace(
        "{rm: reward}", f"{{rm: reward, short: {rules}}}"
    )
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    stage = Path(run_recipe(load_recipe(folder / "recipe.yaml"), folder / "runs").folder) / "stages" / "ppo"
    row = json.loads((stage / "metrics.jsonl").read_text().splitlines()[0])
    assert "objective/scores/short" not in row
    assert row["objective/parts/rm"] + 2 * row["objective/parts/short"] == pytest.approx(row["objective/scores"], abs=1e-5)


def test_rules_alone_can_be_the_reward(folder: Path) -> None:
    text = RECIPE.format(reward="reward", more="").replace(
        "{rm: reward}", "{short: {rules: [{type: length, name: s, max_characters: 5}]}}"
    )
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert (Path(run_recipe(load_recipe(folder / "recipe.yaml"), folder / "runs").folder) / "stages" / "ppo" / "model").exists()


def test_a_reward_model_with_another_tokenizer(folder: Path) -> None:
    tiny_reward_model(folder / "foreign", texts=["completely other words", "from another world"] * 5, seed=2)
    text = refusal(folder, RecipeError, reward="foreign")
    assert "reward: the value model starts from this reward model, but its tokenizer is not that of base" in text
    assert "Set value_model" in text


def test_a_value_model_of_another_width_is_fine_and_of_another_head_is_not(folder: Path) -> None:
    tiny_reward_model(folder / "wide", texts=TEXTS, seed=2, hidden_size=64, head_dim=64)
    run(folder, reward="wide")
    tiny_reward_model(folder / "two", texts=TEXTS, seed=2, num_labels=2)
    assert "score.weight is [2, 32] in the weights, but [1, 32] is needed" in refusal(folder, RecipeError, reward="two")


def test_a_value_model_that_sees_too_little(folder: Path) -> None:
    tiny_reward_model(folder / "short", texts=TEXTS, seed=2, max_position_embeddings=64)
    assert "the value model sees 64 tokens, prompt and completion may have 102" in refusal(folder, RecipeError, reward="short")


def test_a_reward_model_whose_scores_are_not_finite(folder: Path) -> None:
    fill_weights(folder / "reward", 3e38, "score.weight")  # finite, and no product with it is
    text = refusal(folder, StageError)
    assert "None of 8 completions got a finite score from rm" in text
    fill_weights(folder / "reward", float("inf"), "score.weight")
    assert "weights that are NaN or infinite: score.weight" in refusal(folder, RecipeError)


def test_a_policy_without_a_chat_template(folder: Path) -> None:
    for path in (folder / "base").glob("chat_template*"):
        path.unlink()
    config = folder / "base" / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values.pop("chat_template", None)
    config.write_text(json.dumps(values))
    assert "chat template" in refusal(folder, AlignError)


def test_prompts_that_are_too_long_are_named_or_dropped_and_counted(folder: Path) -> None:
    with (folder / "prompts.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"id": "long", "prompt": "word " * 200}) + "\n")
    text = refusal(folder, DataError)
    assert "prompts.jsonl:13: long: prompt:" in text and "max_prompt_tokens is 96" in text
    stage = run(folder, more="on_invalid: drop") / "stages" / "ppo"
    assert Manifest.model_validate_json((stage / "manifest.json").read_bytes()).dropped == {"too_long": 1}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("score_weights: {other: 1.0}", "score_weights names 'other', which is not among the scorers (rm)"),
        ("watch: {rm: reward}", "'rm' is both in scorers and in watch"),
        ("kl_coeff: 0.1", "did you mean 'kl_coef'"),
        ("cliprange: 0.0", "cliprange"),
        ("gamma: 1.5", "gamma"),
        ("temperature: 0.0", "temperature"),
        ("dual_clip: 1.0", "dual_clip"),
        ("value_model: base", "wants a reward model"),
    ],
)
def test_wrong_settings_are_refused_when_the_recipe_is_read(folder: Path, more: str, told: str) -> None:
    text = refusal(folder, RecipeError, more=more)
    assert told in text
    assert "recipe.yaml:" in text


def test_the_value_model_is_the_first_reward_model_unless_named() -> None:
    rules = {"rules": [{"type": "length", "name": "s", "max_characters": 5}]}
    common: dict[str, Any] = {"model": "m", "prompts": "p"}
    assert Config.model_validate({**common, "scorers": {"a": rules, "b": "second", "c": "third"}}).value_source() == "second"
    assert Config.model_validate({**common, "scorers": {"b": "second"}, "value_model": "v"}).value_source() == "v"
    assert Config.model_validate({**common, "scorers": {"a": rules}}).value_source() is None
