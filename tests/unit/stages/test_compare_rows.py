"""The comparison of tiny models, with best of n and with several seeds as one row: from the configuration to the files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.records import Message, Prompt, ScoredCandidate
from align.report.training import train_seconds
from align.stages import compare
from align.store.artifact import INPUT_STAGE, Artifact, Manifest, read_rows, write_rows
from align.testing import stage_context
from align.testing.tiny import tiny_causal_lm

pytestmark = pytest.mark.slow

RULES = {
    "rules": [{"type": "length", "name": "short", "max_characters": 9}, {"type": "length", "name": "long", "min_characters": 4}]
}
SHORT = {"rules": [{"type": "length", "name": "few", "max_words": 1}]}
MODELS = ("sft", "dpo-1", "dpo-2", "orpo")
Compare = Callable[..., Path]


def artifact(name: str, path: Path, kind: str, **fields: Any) -> Artifact:
    defaults: dict[str, Any] = {
        "stage": INPUT_STAGE,
        "stage_version": 1,
        "fingerprint": name,
        "config": {},
        "inputs": {},
        "seed": None,
    }
    return Artifact(name, path, Manifest(kind=kind, **(defaults | fields)))


@pytest.fixture(scope="module")
def run_compare(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """Run the stage on four tiny models and six prompts; the folder it wrote."""
    folder = tmp_path_factory.mktemp("compared")
    artifacts = {}
    for seed, name in enumerate(MODELS):
        tiny_causal_lm(folder / name, texts=["hello there", "안녕하세요"], seed=seed)
        artifacts[name] = artifact(name, folder / name, "model")
    prompts = [Prompt(id=f"p{n}", prompt=[Message(role="user", content="hi " * (n + 1))], reference=None) for n in range(6)]
    (folder / "held_out").mkdir()
    write_rows(folder / "held_out" / "rows.jsonl", prompts)
    artifacts["held_out"] = artifact("held_out", folder / "held_out", "prompts")

    def run(label: str, **fields: Any) -> Path:
        output = folder / label / "out"
        config = {
            "models": list(MODELS),
            "baseline": "sft",
            "prompts": "held_out",
            "scorers": {"gold": RULES, "few": SHORT},
            "engine": "transformers",
            "num_candidates": 2,
            "max_completion_tokens": 6,
            "bootstrap_resamples": 200,
        }
        compare.run(stage_context(compare.Config.model_validate(config | fields), output, artifacts, name="compare", seed=3))
        return output

    return run


@pytest.fixture(scope="module")
def plain(run_compare: Compare) -> Path:
    return run_compare("plain")


@pytest.fixture(scope="module")
def rich(run_compare: Compare) -> Path:
    return run_compare("rich", best_of=[1, 4, 2], methods={"dpo": ["dpo-1", "dpo-2"]}, best_of_scorer="few")


def results_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return value


def test_without_the_new_fields_there_are_only_the_models(plain: Path) -> None:
    results = results_of(plain)
    assert list(results["models"]) == list(MODELS)
    for model in results["models"].values():
        assert model["replicates"] is model["kl_bound"] is model["best_of"] is None
    assert not (plain / "best_of_candidates.jsonl").exists()


def test_rows_are_the_baseline_best_of_n_methods_and_the_rest(rich: Path) -> None:
    results = results_of(rich)
    assert list(results["models"]) == ["sft", "sft best of 1", "sft best of 2", "sft best of 4", "dpo", "orpo"]
    best = results["models"]["sft best of 4"]
    assert best["kl_to_baseline"] is None
    assert best["kl_bound"] == pytest.approx(math.log(4) - 0.75)
    assert best["best_of"] == {"n": 4, "num_candidates": 4, "scorer": "few", "never_chosen": 0}
    assert list(results["models"]["dpo"]["replicates"]) == ["dpo-1", "dpo-2"]
    assert sorted(path.name for path in (rich / "answers").iterdir()) == sorted(f"{name}.jsonl" for name in MODELS)


def test_nothing_of_a_model_moves_when_more_is_asked(plain: Path, rich: Path) -> None:
    before, after = results_of(plain)["models"], results_of(rich)["models"]
    assert after["sft"] == before["sft"]
    assert after["orpo"] == before["orpo"]
    assert after["dpo"]["replicates"] == {name: before[name] for name in ("dpo-1", "dpo-2")}
    for name in MODELS:
        assert (rich / "answers" / f"{name}.jsonl").read_bytes() == (plain / "answers" / f"{name}.jsonl").read_bytes()


def test_best_of_n_is_taken_from_the_candidates_beside_it(rich: Path) -> None:
    pool = list(read_rows(rich / "best_of_candidates.jsonl", ScoredCandidate))
    assert {(row.prompt_id, row.candidate_index) for row in pool} == {(f"p{n}", index) for n in range(6) for index in range(4)}
    best = [max(row.scores["few"] or 0.0 for row in pool if row.prompt_id == f"p{n}") for n in range(6)]
    models = results_of(rich)["models"]
    assert models["sft best of 4"]["scores"]["few"]["mean"] == pytest.approx(sum(best) / 6)
    assert models["sft best of 1"]["scores"]["gold"]["mean"] == pytest.approx(sum(row.scores["gold"] or 0.0 for row in pool) / 24)


def test_the_first_candidates_are_the_baselines_own_answers(rich: Path) -> None:
    own = {(row.prompt_id, row.candidate_index): row for row in read_rows(rich / "answers" / "sft.jsonl", ScoredCandidate)}
    pool = {(row.prompt_id, row.candidate_index): row for row in read_rows(rich / "best_of_candidates.jsonl", ScoredCandidate)}
    assert {key: row.seed for key, row in own.items()} == {key: pool[key].seed for key in own}
    # Batches of another size may move a last bit, and with it now and then a token; a batch of 12 of 24 does not here.
    assert {key: row.completion for key, row in own.items()} == {key: pool[key].completion for key in own}


def test_enough_answers_are_not_drawn_again(run_compare: Compare) -> None:
    folder = run_compare("enough", models=["sft"], best_of=[1, 2], pass_at=[1, 2])
    assert (folder / "best_of_candidates.jsonl").read_bytes() == (folder / "answers" / "sft.jsonl").read_bytes()
    models = results_of(folder)["models"]
    delta = models["sft best of 1"]["scores"]["gold"].pop("delta")
    assert (delta["mean"], delta["ci95"]) == (0.0, [0.0, 0.0])
    assert models["sft best of 1"]["scores"]["gold"].items() <= models["sft"]["scores"]["gold"].items()
    # By the deciding scorer, which is one rule: right or wrong, so that pass@1 is its mean, and best of 2 is pass@2.
    assert results_of(folder)["pass_at"] == {"k": [1, 2], "scorer": "few", "score": 1.0}
    assert models["sft"]["scores"]["pass@1"] == models["sft"]["scores"]["few"]
    chosen = sum(any(row.scores["few"] for row in rows) for rows in _by_prompt(folder).values()) / 6
    assert models["sft"]["scores"]["pass@2"]["mean"] == pytest.approx(chosen)


def _by_prompt(folder: Path) -> dict[str, list[ScoredCandidate]]:
    groups: dict[str, list[ScoredCandidate]] = {}
    for row in read_rows(folder / "answers" / "sft.jsonl", ScoredCandidate):
        groups.setdefault(row.prompt_id, []).append(row)
    return groups


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"baseline": "dpo"}, r"baseline: 'dpo' is not one of the models that are compared \(sft, dpo-1, dpo-2, orpo\)"),
        ({"models": ["sft", "sft"]}, "models.1: 'sft' is here twice"),
        ({"best_of": [2, 2]}, "best_of: 2 is there twice"),
        ({"best_of": [2], "best_of_scorer": "rm"}, "best_of_scorer 'rm' is not in scorers: gold"),
        ({"best_of_scorer": "gold"}, "best_of_scorer chooses among the candidates of best_of, which is not given"),
        ({"methods": {"dpo": ["dpo-3"]}}, "methods: 'dpo-3' is not in models"),
        ({"methods": {"dpo": ["sft"]}}, "methods: 'sft' is the baseline"),
        ({"methods": {"dpo": ["dpo-1"], "other": ["dpo-1"]}}, "methods: 'dpo-1' is there twice"),
        ({"methods": {"orpo": ["dpo-1"]}}, "rows: 'orpo' is there twice"),
        ({"pass_at": [1, 8], "num_candidates": 4}, "pass_at.1: pass@8 needs at least 8 completions per prompt and model"),
        ({"pass_at": [2], "num_candidates": 4, "temperature": 0}, "temperature: temperature 0 gives the same completion"),
        ({"pass_at": [1, 1]}, "pass_at.1: 1 is here twice"),
        ({"pass_at": [1], "scorers": {"gold": RULES, "rm": "rm"}}, "pass_at: .* which 'rm' does not; set pass_scorer: gold"),
        ({"pass_at": [1], "scorers": {"rm": "rm"}}, "which 'rm' does not; add one made of rules to scorers"),
        ({"pass_at": [1], "pass_scorer": "glod"}, "pass_scorer: unknown scorer; did you mean 'gold'?"),
        ({"pass_at": [1], "scorers": {"pass@1": RULES}}, "scorers.pass@1: a column of pass_at has this name"),
        ({"pass_score": 0.5}, "pass_score: pass_score is for pass@k; say which k in pass_at"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_runs(fields: dict[str, Any], message: str) -> None:
    config = {"models": list(MODELS), "baseline": "sft", "prompts": "p", "scorers": {"gold": RULES}}
    with pytest.raises(ValidationError, match=message):
        compare.Config.model_validate(config | fields)


def test_pass_at_1_is_possible_with_one_greedy_completion() -> None:
    config = {"models": list(MODELS), "baseline": "sft", "prompts": "p", "scorers": {"gold": RULES}}
    made = compare.Config.model_validate(config | {"pass_at": [1], "temperature": 0})
    assert (made.num_candidates, made.pass_score, made.decider) == (1, 1.0, "gold")


def test_a_method_may_be_called_like_its_first_seed() -> None:
    config = {"models": list(MODELS), "baseline": "sft", "prompts": "p", "scorers": {"gold": RULES}}
    assert compare.Config.model_validate(config | {"methods": {"dpo-1": ["dpo-1", "dpo-2"]}}).pool_candidates == 0


def test_a_selected_checkpoint_costs_its_training_and_its_selection(tmp_path: Path) -> None:
    sft = artifact("sft", tmp_path, "model", stage="sft", seconds=40.0)
    reward = artifact("reward", tmp_path, "reward_model", stage="reward_model", seconds=7.0)
    chosen = artifact(
        "best", tmp_path, "model", stage="select_checkpoint", seconds=5.0, inputs={"sft": "sft", "reward": "reward"}
    )
    artifacts = {"sft": sft, "reward": reward, "best": chosen}
    assert train_seconds(chosen, artifacts) == 45.0
    assert train_seconds(sft, artifacts) == 40.0
    assert train_seconds(chosen, {"best": chosen}) is None
    assert train_seconds(artifact("base", tmp_path, "model"), artifacts) is None


def test_rules_are_counted_one_by_one_and_every_scorer_is_probed(plain: Path) -> None:
    results = results_of(plain)
    for name, model in results["models"].items():
        rows = list(read_rows(plain / "answers" / f"{name}.jsonl", ScoredCandidate))
        long = sum(len(row.completion.strip()) >= 4 for row in rows) / len(rows)
        assert model["rules"]["gold"]["long"] == pytest.approx(long)
        assert list(model["rules"]) == ["gold", "few"]
    for scorer in ("gold", "few"):
        probes = {probe["kind"]: probe for probe in results["probes"][scorer]}
        # Whether any of these random models' best answers has two words to shuffle depends on the processor's last bits.
        assert [kind for kind in probes if kind != "shuffled"] == ["same_answer", "echo", "everything"]
    # One word is enough for the rule, so one answer of one word is the best for all prompts, and an echo of several is not.
    probes = {probe["kind"]: probe["mean"] for probe in results["probes"]["few"]}
    assert (probes["same_answer"], probes["echo"]) == (1.0, pytest.approx(1 / 6))
