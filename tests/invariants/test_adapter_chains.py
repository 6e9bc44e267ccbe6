"""Stages that go on from adapters: where they start, what their reference is, what is loaded for it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_workshop import LORA, PREFIX, PROMPT, QLORA, RULES, Workshop, watch_started
from safetensors.torch import load_file

from align.errors import RecipeError
from align.models.files import ADAPTER_WEIGHTS_NAME, BASE_NAME, WEIGHTS_NAME
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm, load_reward_model
from align.models.trainable import TrainableModel, load_trainable
from align.stages import dpo, orpo, ppo, reward_model, sft
from align.store.artifact import ROWS_NAME
from align.testing import tiny_seq2seq_lm
from align.training.online.layout import Episode
from align.training.online.models import ForwardSettings, Models, ValueStart, load_models, policy_logps
from align.training.pass_size import PassSize

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("peft", [LORA, QLORA, PREFIX, PROMPT], ids=lambda peft: peft["method"])
def test_dpo_goes_on_from_an_adapter_that_is_its_own_reference(
    shop: Workshop, base: Path, peft: dict[str, Any], loaded: list[Path]
) -> None:
    shop.run("taught", sft, peft=peft, learning_rate=2e-2)
    taught = shop.model
    loaded.clear()
    outcome = shop.run("liked", dpo, model="taught", peft=peft)
    assert loaded == [base.resolve()], "one model: the reference is the adapter as it came"
    assert outcome.metrics["loss_at_step_0"] == pytest.approx(math.log(2), abs=1e-5)
    assert outcome.metrics["loss"] < math.log(2)
    record = json.loads((shop.model / BASE_NAME).read_text())
    assert record == json.loads((taught / BASE_NAME).read_text()), "of the same base, not an adapter on an adapter"
    # Were the reference the base instead, the first loss would be another.
    away = shop.run("away", dpo, model="taught", peft=peft, reference="base")
    assert abs(away.metrics["loss_at_step_0"] - math.log(2)) > 1e-4


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_a_new_lora_is_nothing_before_its_first_step(shop: Workshop, peft: dict[str, Any], loaded: list[Path]) -> None:
    outcome = shop.run("liked", dpo, peft=peft)
    assert len(loaded) == 1
    assert outcome.metrics["loss_at_step_0"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("peft", [PREFIX, PROMPT], ids=lambda peft: peft["method"])
def test_new_virtual_tokens_are_measured_against_the_model_without_them(
    shop: Workshop, peft: dict[str, Any], loaded: list[Path]
) -> None:
    first = shop.run("liked", dpo, peft=peft)
    assert len(loaded) == 1
    assert abs(first.metrics["loss_at_step_0"] - math.log(2)) > 1e-5
    # The reference is the base: the same numbers as where it is named, from another model that is loaded for it.
    found = reference_logps(shop)
    shutil.rmtree(shop.folder / "store")
    shop.run("whole", dpo)
    assert found.keys() == reference_logps(shop).keys()
    for name, values in reference_logps(shop).items():
        assert found[name] == pytest.approx(values, abs=1e-3), name


def reference_logps(shop: Workshop) -> dict[str, tuple[float, float]]:
    (path,) = (shop.folder / "store").glob(f"reference_logps-*/{ROWS_NAME}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["id"]: (row["chosen_logps"], row["rejected_logps"]) for row in rows}


@pytest.mark.parametrize("peft", [LORA, QLORA, PREFIX, PROMPT], ids=lambda peft: peft["method"])
@pytest.mark.parametrize("stage", [sft, orpo], ids=["sft", "orpo"])
def test_a_second_stage_starts_from_the_first_ones_numbers(
    shop: Workshop, stage: Any, peft: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.run("first", sft, peft=peft)
    kept = sorted(float(value.double().square().sum()) for value in load_file(shop.model / ADAPTER_WEIGHTS_NAME).values())
    began: list[list[float]] = []

    def look(model: Any) -> None:
        trained = [float(value.detach().double().square().sum()) for value in model.parameters() if value.requires_grad]
        began.append(sorted(trained))

    watch_started(monkeypatch, look)
    shop.run("second", stage, model="first", peft=peft)
    assert began == [kept]


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_without_peft_training_starts_from_the_merged_model(shop: Workshop, peft: dict[str, Any]) -> None:
    shop.run("first", sft, peft=peft)
    merged = load_causal_lm(shop.model)
    begun = load_trainable(TrainableModel(ModelFolder(shop.model), None, shop.folder / "store", "whole"))
    assert all(torch.equal(value, dict(merged.named_parameters())[name]) for name, value in begun.named_parameters())
    assert all(value.requires_grad for value in begun.parameters())
    outcome = shop.run("second", dpo, model="first")
    assert outcome.metrics["loss_at_step_0"] == pytest.approx(math.log(2), abs=1e-5)
    assert (shop.model / WEIGHTS_NAME).exists() and not (shop.model / "adapter_config.json").exists()
    whole = load_causal_lm(shop.model)
    assert {name for name, value in whole.named_parameters() if not torch.equal(value, dict(merged.named_parameters())[name])}


def test_without_peft_virtual_tokens_are_refused(shop: Workshop) -> None:
    shop.run("first", sft, peft=PROMPT)
    with pytest.raises(RecipeError, match="the model is 3 virtual tokens in front of a base, which cannot become part"):
        shop.run("second", dpo, model="first")


def test_an_encoder_decoder_model_is_trained_whole(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, tiny_seq2seq_lm(tmp_path / "t5"))
    with pytest.raises(RecipeError, match=r"first: peft is for decoder-only models, and base\.x is encoder–decoder") as error:
        shop.run("first", sft, peft=LORA)
    assert "Leave peft out" in error.value.render()


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_a_reward_adapter_keeps_its_head_and_its_scores(
    shop: Workshop, base: Path, peft: dict[str, Any], started: list[Any]
) -> None:
    shop.run("taught", sft, peft=peft)
    shop.run("judge", reward_model, model="taught", peft=peft)
    model = started[-1]
    tokenizer = ModelFolder(shop.model).tokenizer
    batch = tokenizer(["Oh no 1!", "So?", "I lost key 5."], return_tensors="pt", padding=True, return_token_type_ids=False)
    again = load_reward_model(shop.model, new_head=False)
    with torch.no_grad():
        expected, found = model(**batch).logits, again(**batch).logits
    assert float((expected - found).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))
    assert float(expected.std()) > 1e-3
    head = load_file(shop.model / ADAPTER_WEIGHTS_NAME)["base_model.model.score.weight"]
    assert torch.equal(head, again.score.weight)
    torch.manual_seed(3)
    assert not torch.equal(head, load_reward_model(base, new_head=True).score.weight)


def test_a_reward_model_can_score_and_be_the_value_model(shop: Workshop, started: list[Any]) -> None:
    shop.run("judge", reward_model, peft={**LORA, "rank": 4})
    head = load_file(shop.model / ADAPTER_WEIGHTS_NAME)["base_model.model.score.weight"]
    started.clear()
    outcome = shop.run(
        "policy", ppo, peft=LORA, scorers={"rm": "judge"}, value_head="reward_model", value_learning_rate=1e-9, checkpoint_steps=9
    )
    assert math.isfinite(outcome.metrics["objective/scores"])
    value = next(model for model in started if hasattr(model, "score"))
    assert torch.allclose(value.score.weight, head, atol=1e-6)
    assert value.get_submodule("model.layers.0.self_attn.q_proj").lora_A["default"].weight.shape[0] == 4
    shop.run("whole", ppo, scorers={"rm": "judge"})
    assert (shop.model / WEIGHTS_NAME).exists()


def ppo_models(folder: Path, base: Path, peft: dict[str, Any]) -> tuple[Models, Callable[[Any], torch.Tensor]]:
    """Models of PPO, and the log-probabilities of some episodes under one of them."""
    lora = ppo.Config.model_validate({"model": "m", "prompts": "p", "scorers": {"short": RULES}, "peft": peft}).peft
    pad = int(ModelFolder(base).tokenizer.pad_token_id)
    start = TrainableModel(ModelFolder(base), lora, folder / "store", "ppo")
    value = ValueStart(start, is_reward_model=False, zero_head=True)
    settings = ForwardSettings(torch.device("cpu"), "float32", 1.0, PassSize(256, "tokens"), pad)
    models = load_models(start, value, settings, seed=3)
    episodes = [Episode([5, 6, 7 + n], [20 + n, 21, 2]) for n in range(4)]
    (batch,) = settings.passes(episodes, range(4)).own

    def logps(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return policy_logps(model, batch, settings)

    return models, logps


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_the_reference_of_ppo_is_the_policy_as_it_began(shop: Workshop, base: Path, peft: dict[str, Any]) -> None:
    models, logps = ppo_models(shop.folder, base, peft)
    assert models.reference is None
    began = logps(models.policy)
    with torch.no_grad():
        for parameter in models.policy.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    moved, weights = logps(models.policy), [parameter.detach().clone() for parameter in models.policy.parameters()]
    places = [parameter.data_ptr() for parameter in models.policy.parameters()]
    assert float((moved - began).abs().max()) > 1e-3
    with models.as_reference() as reference:
        assert torch.equal(logps(reference), began)
    with pytest.raises(RuntimeError, match="in the middle"), models.as_reference():
        raise RuntimeError("in the middle")
    assert torch.equal(logps(models.policy), moved)
    assert all(torch.equal(now, then) for now, then in zip(models.policy.parameters(), weights, strict=True))
    assert [parameter.data_ptr() for parameter in models.policy.parameters()] == places, "the optimizer's tensors"


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_ppo_starts_at_its_reference_and_samples_from_what_it_trains(shop: Workshop, peft: dict[str, Any]) -> None:
    shop.run("taught", sft, peft=peft, learning_rate=2e-2)
    shop.run("policy", ppo, model="taught", peft=peft, kl_coef=0.0)
    rows = shop.curve()
    assert rows[0]["objective/kl"] == 0 and abs(rows[-1]["objective/kl"]) > 1e-4
    # The sampler's model and the one that learns agree, before the first update and after the last.
    assert max(abs(row["rollout/sampler_gap"]) for row in rows) < 1e-4
