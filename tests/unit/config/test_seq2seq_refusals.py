"""Recipes that give an encoder–decoder model to a stage that cannot take it are refused when they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.config.architecture import architecture_in

T5 = {"is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
TOLD = "is an encoder–decoder model (T5ForConditionalGeneration)"


@pytest.fixture
def t5(folder: Path) -> Path:
    (folder / "base" / "config.json").write_text(json.dumps(T5))
    return folder


def test_stages_after_sft_are_refused_with_their_place(t5: Path, problems) -> None:  # type: ignore[no-untyped-def]
    assert problems() == [
        "recipe.yaml:8:28: stages.dpo.model: 'sft' "
        f"{TOLD}; sft, generate and compare take such models, dpo does not: name another model"
    ]


def test_sft_generate_and_compare_are_not_refused(t5: Path, problems) -> None:  # type: ignore[no-untyped-def]
    assert (
        problems("dpo: {stage: dpo, model: sft, pairs: pairs, beta: 0.1}", "dpo: {stage: sft, model: sft, data: lessons}") == []
    )


@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        ("orpo", "pairs: pairs"),
        ("reward_model", "data: pairs"),
        ("ppo", "prompts: prompts, scorers: {gold: {rules: gold.yaml}}"),
        ("select_checkpoint", "prompts: prompts, scorer: {rules: gold.yaml}"),
    ],
)
def test_every_other_training_stage_is_refused(t5: Path, problems, stage: str, fields: str) -> None:  # type: ignore[no-untyped-def]
    told = problems("  sampled:", f"  other: {{stage: {stage}, model: sft, {fields}}}\n  sampled:")
    assert [line for line in told if f"stages.other.model: 'sft' {TOLD}" in line and f"{stage} does not" in line]


def test_the_reference_of_dpo_is_looked_at_too(t5: Path, problems) -> None:  # type: ignore[no-untyped-def]
    told = problems("beta: 0.1", "reference: base")
    assert sum(TOLD in line for line in told) == 2
    assert any("stages.dpo.reference: 'base'" in line for line in told)


def test_a_result_of_another_run_is_known_by_its_model_folder(t5: Path, problems) -> None:  # type: ignore[no-untyped-def]
    (t5 / "done" / "model").mkdir(parents=True)
    (t5 / "done" / "manifest.json").write_text(json.dumps({"kind": "model", "stage": "sft"}))
    (t5 / "done" / "model" / "config.json").write_text(json.dumps(T5))
    (t5 / "base" / "config.json").write_text("{}")
    told = problems("base: {kind: model, path: base}", "base: {kind: model, artifact: done}")
    assert [line for line in told if f"stages.dpo.model: 'sft' {TOLD}" in line]


def test_vllm_is_refused_and_auto_is_not(t5: Path, problems) -> None:  # type: ignore[no-untyped-def]
    told = problems("prompts: prompts}", "prompts: prompts, engine: vllm}")
    place = "stages.sampled.engine: "
    assert [line for line in told if place in line and "which vllm does not serve; write transformers" in line]
    assert not [line for line in problems("prompts: prompts}", "prompts: prompts, engine: auto}") if place in line]


def test_adapters_are_refused(t5: Path, problems) -> None:  # type: ignore[no-untyped-def]
    told = problems("num_epochs: 3", "peft: {method: lora}")
    assert [line for line in told if f"stages.sft.peft: 'base' {TOLD}, whose weights are all trained; leave peft out" in line]


def test_a_reward_model_input_of_this_kind_is_refused(t5: Path, problems) -> None:  # type: ignore[no-untyped-def]
    told = problems("stages:\n", "  judge: {kind: reward_model, path: base}\nstages:\n")
    assert [line for line in told if "inputs.judge.path: base is an encoder–decoder model" in line.replace("./", "")]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"is_encoder_decoder": false}', '{"is_encoder_decoder": "yes"}'])
def test_any_other_configuration_is_none(tmp_path: Path, content: str) -> None:
    assert architecture_in(tmp_path) is None
    (tmp_path / "config.json").write_text(content)
    assert architecture_in(tmp_path) is None


def test_the_architecture_is_named_by_what_there_is(tmp_path: Path) -> None:
    for config, name in (
        ({"architectures": []}, "t5"),
        ({"architectures": None, "model_type": None}, "of no named architecture"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**T5, **config}))
        assert architecture_in(tmp_path) == name
