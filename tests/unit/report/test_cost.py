from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.report.cost import Cost, answer_cost, mean_cost, model_costs, stage_costs
from align.store.artifact import Artifact, Manifest

SIZES = {"base": 10, "reward": 7}
"""Parameters; models that are trained here are as large as their base."""
TRAINING = {"learning_rate": 1e-5, "peft": None}
SAMPLING = {"num_candidates": 2, "model": "sft"}


def made(
    name: str, fingerprint: str, *needs: str, stage: str = "sft", seconds: float = 0.0, config: Any = None, **metrics: Any
) -> Artifact:
    kind = "reward_model" if name == "reward" else "model"
    return Artifact(
        name,
        Path(),
        Manifest(
            kind=kind, stage=stage, stage_version=1, fingerprint=fingerprint, config=config or {}, seed=17, rows_in=96,
            inputs={NAMES[need]: need for need in needs}, seconds=seconds, metrics=metrics, peak_memory_bytes=int(100 * seconds),
        ),
    )  # fmt: skip


NAMES = {
    "b": "base",
    "s": "sft",
    "w": "reward",
    "c": "candidates",
    "x": "scored",
    "e": "best",
    "1": "dpo-trial-1",
    "2": "dpo-trial-2",
    "3": "dpo",
}
TRAINED: Any = {"gradient_checkpointing": False}
LORA = {"peft": {"method": "lora"}, "reference": None}
ONLINE = {"rollout_batch_size": 8, "scorers": {"rm": "reward"}, "watch": {}, "value_model": None}
ARTIFACTS = [
    made("base", "b", stage="input", seconds=99.0),
    made("sft", "s", "b", seconds=40.0, config={**TRAINING, "model": "base"}, trained_tokens=3000, **TRAINED),
    made("reward", "w", "s", stage="reward_model", seconds=30.0,
         config={**TRAINING, "model": "sft"}, trained_tokens=500, tokens=500, gradient_checkpointing=True),
    made("candidates", "c", "s", stage="generate", seconds=25.0, config=SAMPLING, prompt_tokens=100, new_tokens=600),
    # Equal to the one before, so it ran once.
    made("dpo-1-generate", "c", "s", stage="generate", seconds=25.0, config=SAMPLING, prompt_tokens=100, new_tokens=600),
    made("scored", "x", "c", "w", stage="score", seconds=5.0, config={"candidates": "candidates", "scorers": {"rm": "reward"}}),
    made("best", "e", "x", stage="best_of_n", seconds=1.0, config={"scored": "scored", "scorer": "rm"}),
    made("rs", "r", "s", "e", seconds=7.0, config={**TRAINING, "model": "sft"}, trained_tokens=50, **TRAINED),
    made("dpo-1", "d", "s", "x", stage="dpo", seconds=10.0,
         config={**TRAINING, "model": "sft", **LORA}, tokens=80, trained_tokens=160, **TRAINED),
    made("ppo", "p", "s", "w", stage="ppo", seconds=70.0,
         config={**TRAINING, "model": "sft", **ONLINE},
         episodes=768, new_tokens=900, tokens=1000, trained_tokens=4000, **TRAINED),
    made("other", "o", "b", seconds=500.0),
]  # fmt: skip
MODELS = ["sft", "rs", "dpo-1", "ppo", "outside"]


def parameters(model: Artifact) -> int | None:
    return SIZES.get(model.name, SIZES["base"])


COSTS = stage_costs(ARTIFACTS, MODELS, parameters)


def test_every_stage_is_counted_once_with_the_models_that_need_it() -> None:
    assert [(cost.names, cost.models, cost.seconds) for cost in COSTS] == [
        (["sft"], ["sft", "rs", "dpo-1", "ppo"], 40.0),
        (["reward"], ["rs", "dpo-1", "ppo"], 30.0),
        (["candidates", "dpo-1-generate"], ["rs", "dpo-1"], 25.0),
        (["scored"], ["rs", "dpo-1"], 5.0),
        (["best"], ["rs"], 1.0),
        (["rs"], ["rs"], 7.0),
        (["dpo-1"], ["dpo-1"], 10.0),
        (["ppo"], ["ppo"], 70.0),
    ]
    assert [(cost.sampled_tokens, cost.trained_tokens, cost.scored_completions) for cost in COSTS] == [
        (0, 3000, 0),
        (0, 500, 0),
        (600, 0, 0),
        (0, 0, 96),
        (0, 0, 0),
        (0, 50, 0),
        (0, 160, 0),
        (900, 4000, 768),
    ]


def test_operations_follow_from_parameters_and_tokens() -> None:
    assert {cost.names[0]: cost.flops for cost in COSTS} == {
        "sft": 6 * 10 * 3000,
        "reward": 8 * 10 * 500,  # activations are computed again
        "candidates": 2 * 10 * (100 + 600),
        "scored": 2 * 7 * (2 * 100 + 600),  # every completion with its prompt
        "best": 0,
        "rs": 6 * 10 * 50,
        "dpo-1": 4 * 10 * 160 + 2 * 10 * 80,  # a frozen base, and a pass of the reference
        # Sampling, the policy as it was, the reference; the value model; the score; six for every trained token of both.
        "ppo": 3 * 2 * 10 * 1000 + 2 * 7 * 1000 + 2 * 7 * 1000 + 6 * (10 + 7) * 4000,
    }


@pytest.mark.parametrize(("kl_coef", "references"), [(0.0, 0), (0.1, 1)])
def test_a_method_on_groups_may_sample_more_than_it_learns_from(kl_coef: float, references: int) -> None:
    config = {**TRAINING, "model": "sft", **ONLINE, "group_size": 4, "kl_coef": kl_coef, "kl_limit": None}
    del config["value_model"]
    counts = {"scored_completions": 1024, "scored_tokens": 1300, "new_tokens": 1200, "tokens": 1000, "trained_tokens": 1000}
    trained = made("grpo", "g", "s", "w", stage="grpo", seconds=70.0, config=config, episodes=768, **counts, **TRAINED)
    (cost,) = [cost for cost in stage_costs([*ARTIFACTS, trained], ["grpo"], parameters) if cost.names == ["grpo"]]
    # Sampling; the policy as it was, the reference; the score; six for every trained token.
    assert cost.flops == 2 * 10 * 1300 + (1 + references) * 2 * 10 * 1000 + 2 * 7 * 1300 + 6 * 10 * 1000
    assert (cost.sampled_tokens, cost.scored_completions) == (1200, 1024)


@pytest.mark.parametrize("watch", [{}, {"rm": "reward"}])
def test_a_teacher_reads_what_is_learned_from(watch: dict[str, str]) -> None:
    config = {**TRAINING, "model": "sft", "teacher": "base", "rollout_batch_size": 8, "watch": watch}
    counts = {"new_tokens": 900, "tokens": 1000, "trained_tokens": 2000}
    trained = made("small", "t", "s", "b", "w", stage="distill", seconds=70.0, config=config, episodes=768, **counts, **TRAINED)
    (cost,) = [cost for cost in stage_costs([*ARTIFACTS, trained], ["small"], parameters) if cost.names == ["small"]]
    # Sampling; six for every trained token of the student, two of the teacher; the score.
    assert cost.flops == 2 * 10 * 1000 + 6 * 10 * 2000 + 2 * 10 * 2000 + len(watch) * 2 * 7 * 1000
    assert (cost.sampled_tokens, cost.scored_completions) == (900, 768 if watch else 0)


def test_a_model_costs_its_path_since_the_baseline() -> None:
    models = model_costs(COSTS, MODELS, "sft")
    assert {name: (cost.seconds, cost.own_seconds, cost.alone_seconds, cost.shared_seconds) for name, cost in models.items()} == {
        "sft": (40.0, 40.0, 0, 0),
        "rs": (68.0, 7.0, 1.0, 60.0),
        "dpo-1": (70.0, 10.0, 0, 60.0),
        "ppo": (100.0, 70.0, 0, 30.0),
    }
    assert {name: (cost.sampled_tokens, cost.trained_tokens, cost.scored_completions) for name, cost in models.items()} == {
        "sft": (0, 3000, 0),
        "rs": (600, 550, 96),
        "dpo-1": (600, 660, 96),
        "ppo": (900, 4500, 768),
    }
    assert models["rs"].flops == 40_000 + 14_000 + 11_200 + 3_000
    assert models["ppo"].memory_bytes == 7000
    # With what the baseline was made from.
    assert {name: cost.total_seconds for name, cost in models.items()} == {"sft": 40, "rs": 108, "dpo-1": 110, "ppo": 140}
    assert models["rs"].total_flops == (models["rs"].flops or 0) + (models["sft"].flops or 0)


def test_a_model_that_the_baseline_was_made_from_costs_what_the_baseline_does() -> None:
    models = model_costs(stage_costs(ARTIFACTS, ["sft", "rs"], parameters), ["sft", "rs"], "rs")
    assert (models["sft"].seconds, models["rs"].seconds) == (40.0, 108.0)


@pytest.mark.parametrize("missing", ["trained_tokens", "prompt_tokens"])
def test_what_was_not_recorded_is_not_taken_for_nothing(missing: str) -> None:
    def without(artifact: Artifact) -> Artifact:
        metrics = {name: value for name, value in artifact.manifest.metrics.items() if name != missing}
        return replace(artifact, manifest=artifact.manifest.model_copy(update={"metrics": metrics}))

    cost = model_costs(stage_costs([without(artifact) for artifact in ARTIFACTS], MODELS, parameters), MODELS, "sft")["rs"]
    assert (cost.seconds, cost.sampled_tokens, cost.flops) == (68.0, 600, None)
    assert cost.trained_tokens == (None if missing == "trained_tokens" else 550)


def test_operations_need_known_models() -> None:
    costs = stage_costs(ARTIFACTS, MODELS, lambda model: None)
    assert {cost.flops for cost in costs if cost.names[0] != "best"} == {None}
    # These files do not even exist.
    assert stage_costs(ARTIFACTS, MODELS)[0].flops is None


def test_a_method_costs_the_mean_of_its_seeds_and_the_highest_peak() -> None:
    one = Cost(seconds=10, own_seconds=10, shared_seconds=0, sampled_tokens=4, trained_tokens=None, scored_completions=2,
               flops=8.0, memory_bytes=5)  # fmt: skip
    two = one.model_copy(update={"seconds": 20.0, "sampled_tokens": 7.0, "trained_tokens": 3.0, "memory_bytes": 6})
    mean = mean_cost([one, two])
    assert mean is not None
    assert (mean.seconds, mean.own_seconds, mean.sampled_tokens, mean.trained_tokens) == (15, 10, 5.5, None)
    assert (mean.flops, mean.memory_bytes) == (8, 6)
    assert mean_cost([one, None]) is None


def test_best_of_n_is_paid_for_by_every_answer() -> None:
    cost = answer_cost(4, 12.5)
    assert (cost.per_answer, cost.seconds, cost.sampled_tokens, cost.trained_tokens) == (True, None, 50, 0)
    assert (cost.scored_completions, cost.flops) == (4, None)


def test_trials_of_a_sweep_are_counted_in_every_model_after_it() -> None:
    choice = {"models": {"beta=0.1": "dpo-trial-1", "beta=0.3": "dpo-trial-2"}, **SAMPLING}
    artifacts = [
        *ARTIFACTS[:2],
        made("dpo-trial-1", "1", "s", stage="dpo", seconds=10.0, config={**TRAINING, "model": "sft"}),
        made("dpo-trial-2", "2", "s", stage="dpo", seconds=20.0, config={**TRAINING, "model": "sft"}),
        made("dpo", "3", "1", "2", stage="select_model", seconds=5.0, config=choice, selected="beta=0.1"),
        made("later", "4", "3", seconds=1.0, config={**TRAINING, "model": "dpo"}),
    ]
    costs = model_costs(stage_costs(artifacts, ["sft", "dpo", "later"], parameters), ["sft", "dpo", "later"], "sft")
    assert {name: (cost.trials, cost.seconds) for name, cost in costs.items()} == {
        "sft": (1, 40.0),
        "dpo": (2, 35.0),
        "later": (2, 36.0),
    }
