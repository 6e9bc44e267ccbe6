"""Learning rates that are unusual for the size of the model: said by plan, run and doctor, never of a toy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from align.cli.main import main
from align.config.learning_rates import METHODS, usual_rates
from align.models.shape import read_shape
from align.pipeline.estimate import rates
from align.pipeline.estimate.rates import unusual_rates
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe
from align.stages.registry import STAGES


@pytest.fixture
def billion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has 1.2 billion parameters."""

    def read_large(folder: object) -> object:
        shape = read_shape(folder)  # type: ignore[arg-type]
        assert shape is not None
        return replace(shape, backbone_parameters=1_200_000_000)

    monkeypatch.setattr(rates, "read_shape", read_large)


def sentences(project: Path, out: Path, *overrides: str) -> dict[str, str]:
    return dict(unusual_rates(make_plan(load_recipe(project / "recipe.yaml", overrides), out)))


def test_a_toy_may_have_any_rate(project: Path, tmp_path: Path) -> None:
    assert sentences(project, tmp_path, "stages.sft.learning_rate=3") == {}
    assert usual_rates("sft", 99_999_999, adapter=False) is None


@pytest.mark.usefixtures("billion")
def test_the_sentence_has_value_size_range_and_the_line_to_write(project: Path, tmp_path: Path) -> None:
    said = sentences(project, tmp_path, "stages.sft.learning_rate=1e-4", "stages.dpo.learning_rate=1e-6")
    assert list(said) == ["sft", "reward", "rs", "orpo", "ppo"]  # the project's own rates, of 1e-3, are for toys
    assert said["sft"] == (
        "learning_rate 0.0001 is high for sft of all weights of a model of 1.2 B parameters, for which 2e-06 to 8e-05 is usual. "
        "To start with, write learning_rate: 2e-05"
    )
    low = sentences(project, tmp_path, "stages.dpo.learning_rate=1e-9")["dpo"]
    assert low.startswith("learning_rate 1e-09 is low for dpo of all weights")


@pytest.mark.usefixtures("billion")
def test_an_adapter_has_rates_of_its_own_and_virtual_tokens_none(project: Path, tmp_path: Path) -> None:
    lora, prompt = ("stages.sft.peft={method: lora, rank: 2}", "stages.sft.peft={method: prompt_tuning}")
    assert "sft" not in sentences(project, tmp_path, lora, "stages.sft.learning_rate=2e-4")
    assert "of an adapter" in sentences(project, tmp_path, lora, "stages.sft.learning_rate=1e-2")["sft"]
    assert "sft" not in sentences(project, tmp_path, prompt, "stages.sft.learning_rate=3e-2")


@pytest.mark.usefixtures("billion")
def test_a_default_is_called_one(tmp_path: Path, project: Path) -> None:
    text = (project / "recipe.yaml").read_text().replace("data: best, learning_rate: 1e-3,", "data: best,")
    (project / "recipe.yaml").write_text(text)
    assert sentences(project, tmp_path)["rs"].startswith("learning_rate 0.0001, the default, is high")


@pytest.mark.usefixtures("billion")
def test_plan_and_run_say_it(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(project / "recipe.yaml")
    assert main(["plan", recipe, "--out", str(tmp_path)]) == 0
    assert "sft: learning_rate 0.001 is high for sft" in " ".join(capsys.readouterr().out.split())
    assert main(["plan", recipe, "--out", str(tmp_path), "--json"]) == 0
    assert "sft" in json.loads(capsys.readouterr().out)["unusual_learning_rates"]
    # Said before anything is read or trained: a run of no stage says it of none.
    assert main(["run", recipe, "--out", str(tmp_path), "--set", "inputs.prompts.path=gone.jsonl"]) == 2
    (project / "instructions.jsonl").write_text("no JSON\n")
    assert main(["run", recipe, "--out", str(tmp_path), "--quick"]) == 3
    assert "learning_rate 0.001 is high" in (tmp_path / "tiny" / "events.jsonl").read_text()


def test_every_method_that_trains_has_rates_and_each_start_is_usual() -> None:
    assert set(METHODS) == {name for name, stage in STAGES.items() if "learning_rate" in stage.config_type.model_fields}
    for method in METHODS:
        for size in (2e8, 1e9):
            full, lora = (usual_rates(method, int(size), adapter=adapter) for adapter in (False, True))
            assert full is not None and lora is not None
            assert full.low < full.start < full.high
            assert lora.low < lora.start < lora.high
            assert full.high < lora.high or size < 5e8  # adapters want more
