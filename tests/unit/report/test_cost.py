from pathlib import Path
from typing import Any

from align.report.cost import model_costs, stage_costs
from align.store.artifact import Artifact, Manifest


def made(name: str, fingerprint: str, *needs: str, stage: str = "sft", seconds: float = 0.0, **metrics: Any) -> Artifact:
    return Artifact(
        name,
        Path(),
        Manifest(
            kind="model", stage=stage, stage_version=1, fingerprint=fingerprint, config={}, seed=17,
            inputs={f"input {index}": need for index, need in enumerate(needs)}, seconds=seconds, metrics=metrics,
        ),
    )  # fmt: skip


ARTIFACTS = [
    made("base", "b", stage="input", seconds=99.0),
    made("sft", "s", "b", seconds=40.0, tokens=1000),
    made("candidates", "c", "s", stage="generate", seconds=25.0, new_tokens=600),
    made("dpo-1-generate", "c", "s", stage="generate", seconds=25.0, new_tokens=600),  # equal, so it ran once
    made("best", "e", "c", stage="best_of_n", seconds=1.0),
    made("rs", "r", "s", "e", seconds=7.0),
    made("dpo-1", "d", "s", "c", stage="dpo", seconds=10.0),
    made("ppo", "p", "s", stage="ppo", seconds=70.0, episodes=768),
    made("other", "o", "b", seconds=500.0),
]
MODELS = ["sft", "rs", "dpo-1", "ppo", "outside"]


def test_every_stage_is_counted_once_with_the_models_that_need_it() -> None:
    costs = stage_costs(ARTIFACTS, MODELS)
    assert [(cost.names, cost.models, cost.seconds) for cost in costs] == [
        (["sft"], ["sft", "rs", "dpo-1", "ppo"], 40.0),
        (["candidates", "dpo-1-generate"], ["rs", "dpo-1"], 25.0),
        (["best"], ["rs"], 1.0),
        (["rs"], ["rs"], 7.0),
        (["dpo-1"], ["dpo-1"], 10.0),
        (["ppo"], ["ppo"], 70.0),
    ]
    assert [(cost.sampled_tokens, cost.trained_tokens, cost.episodes) for cost in costs[:2]] == [
        (None, 1000, None),
        (600, None, None),
    ]


def test_a_model_costs_everything_it_was_made_from() -> None:
    models = model_costs(stage_costs(ARTIFACTS, MODELS), MODELS)
    assert {name: (cost.own, cost.alone, cost.shared, cost.total) for name, cost in models.items()} == {
        "sft": (40.0, 0, 0, 40.0),
        "rs": (7.0, 1.0, 65.0, 73.0),
        "dpo-1": (10.0, 0, 65.0, 75.0),
        "ppo": (70.0, 0, 40.0, 110.0),
    }
    assert {name: (cost.sampled_tokens, cost.episodes) for name, cost in models.items()} == {
        "sft": (0, 0),
        "rs": (600, 0),
        "dpo-1": (600, 0),
        "ppo": (0, 768),
    }
