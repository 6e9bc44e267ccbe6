"""The recipes of public models are planned at their true size, from configurations alone; no weight is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from public_shapes import SHAPES
from reduced import RECIPES

from align.models.folder import ModelFolder
from align.pipeline import inputs
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.estimate.rates import unusual_rates
from align.pipeline.estimate.shape import read_shape
from align.pipeline.plan import Plan, make_plan
from align.pipeline.recipe import load_recipe

GB = 10**9
NAMES = sorted(path.parent.name for path in RECIPES.glob("models/*/recipe.yaml"))
MACHINE = Machine("cuda", "GPU", 80 * GB, 78 * GB, 1000 * GB, has_bfloat16=True)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def plan_of(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    def fetch_model(hub_id: str, revision: str, *, weights: bool = True) -> tuple[Path, str]:
        folder = hub / hub_id.replace("/", "--")
        return (folder if folder.exists() else SHAPES[hub_id].write(folder)), "0" * 40

    monkeypatch.setattr(inputs, "fetch_model", fetch_model)

    def plan(name: str) -> Plan:
        return make_plan(load_recipe(RECIPES / "models" / name), tmp_path, sizes_only=True)

    return plan


@pytest.mark.parametrize("name", NAMES)
def test_every_training_stage_has_an_estimate(name: str, plan_of: object) -> None:
    plan = plan_of(name)  # type: ignore[operator]
    assert {stage.status for stage in plan.stages} == {"run"}
    assert None not in [stage.of_recipe for stage in estimate_plan(plan, MACHINE).stages]


def test_only_a_published_rate_is_called_unusual(plan_of: object) -> None:
    said = {name: dict(unusual_rates(plan_of(name))) for name in NAMES}  # type: ignore[operator]
    (sentence,) = said.pop("smollm2-1.7b").values()
    assert sentence.startswith("learning_rate 0.0003 is high for sft of all weights of a model of 1.7 B parameters")
    assert set(map(len, said.values())) == {0}


@pytest.mark.parametrize("hub_id", SHAPES)
def test_a_shape_has_as_many_parameters_as_are_published(hub_id: str, hub: Path) -> None:
    folder = hub / hub_id.replace("/", "--")
    folder = folder if folder.exists() else SHAPES[hub_id].write(folder)
    shape = read_shape(ModelFolder(folder))
    assert shape is not None
    assert shape.parameters == SHAPES[hub_id].parameters
