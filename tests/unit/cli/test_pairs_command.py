"""`align pairs`: from options to a recipe, and from a run to files with a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config.sections import JudgeScorer, RulesScorer


@pytest.fixture
def files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what the options name; what a run would leave is not written."""
    from align.export import preference_set

    for name in ("reward", "other"):
        (folder / name).mkdir()
    (folder / "gold.yaml").write_text("- {type: length, name: short, max_words: 5}\n")
    (folder / "judge.yaml").write_text("base_url: http://127.0.0.1:1/v1\nmodel: m\n")
    (folder / "prompts.jsonl").write_text("")
    written = preference_set.PreferenceSet(Path("p.jsonl"), Path("d"), Path("c"), None)  # type: ignore[arg-type]
    monkeypatch.setattr(preference_set.PreferenceSet, "to_json", lambda self: {"pairs": "p.jsonl"})
    monkeypatch.setattr(preference_set, "write_preference_set", lambda *_, **__: written)
    return folder


SAMPLE = ("pairs", "--model", "base", "--prompts", "prompts.jsonl", "--json")


def test_options_become_three_stages(align: Any, pipeline: Any, files: Path) -> None:
    answer = align(
        *SAMPLE, "--reward-model", "reward", "--scorer", "gold=gold.yaml", "--scorer", "j=judge.yaml", "--scorer", "gold",
        "--out", "made/p.jsonl", "--num-candidates", "4", "--temperature", "0.7", "--policy", "best_vs_second",
        "--min-margin", "0.5", "--batch-tokens", "99", "--seed", "3", "--on-invalid", "drop",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert json.loads(answer.out) == {"pairs": "p.jsonl"}
    recipe = pipeline.recipe
    assert (recipe.name, recipe.seed, pipeline.out) == ("p.jsonl.work", 3, Path("made"))
    assert pipeline.options["store"] == Path("made/p.jsonl.work/.store")
    generate, score, pairs = (recipe.stages[name].config for name in ("generate", "score", "pairs"))
    assert (generate.num_candidates, generate.temperature, generate.model) == (4, 0.7, "model")
    assert (score.candidates, score.batch_tokens, list(score.scorers)) == ("generate", 99, ["rm", "gold", "j"])
    assert isinstance(score.scorers["gold"], RulesScorer)
    assert isinstance(score.scorers["j"], JudgeScorer)
    assert (pairs.scored, pairs.scorer, pairs.policy, pairs.min_margin) == ("score", "gold", "best_vs_second", 0.5)
    assert recipe.inputs["prompts"].on_invalid == "drop"


def test_the_only_scorer_ranks_and_several_may_be_weighed(align: Any, pipeline: Any, files: Path) -> None:
    assert align(*SAMPLE, "--reward-model", "reward", "--out", "p.parquet").code == 0
    assert pipeline.recipe.stages["pairs"].config.scorer == "rm"
    weighed = ("--scorer", "a=reward", "--scorer", "b=other", "--scorers", "a=1", "--scorers", "b=0.5", "--combine", "vote")
    answer = align(*SAMPLE, *weighed, "--out", "p.jsonl")
    assert answer.code == 0, answer.err
    config = pipeline.recipe.stages["pairs"].config
    assert (config.scorer, config.scorers, config.combine) == (None, {"a": 1.0, "b": 0.5}, "vote")


def test_scores_that_are_there_are_taken(align: Any, pipeline: Any, files: Path) -> None:
    (files / "scored").mkdir()
    (files / "scored" / "manifest.json").write_text(json.dumps({"kind": "scored_candidates"}))
    answer = align("pairs", "--scored", "scored", "--scorer", "rm", "--out", "p.jsonl", "--json")
    assert answer.code == 0, answer.err
    assert list(pipeline.recipe.stages) == ["pairs"]
    assert pipeline.recipe.stages["pairs"].config.scorer == "rm"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--model", "base"], "--prompts is missing, and so is --scored"),
        ([], "--model is missing"),
        (["--model", "base", "--prompts", "prompts.jsonl"], "no scorer is given for the completions"),
        (["--scored", "x", "--model", "base"], "--model cannot be used with --scored"),
        (["--scored", "x", "--temperature", "1"], "--temperature cannot be used with --scored"),
        (["--scored", "x", "--scorer", "a=b"], "--scorer a=b: nothing is scored with --scored"),
        (["--scorer", "a", "--scorer", "b", "--scored", "x"], "--scorer b: the pairs are ranked by 'a' already"),
        ([*SAMPLE[1:], "--scorer", "a=reward", "--scorer", "b=other"], "there are the scorers a, b, and none is named to rank"),
        ([*SAMPLE[1:], "--scorer", "a=reward", "--scorer", "a=other"], "two scorers are called 'a'"),
        ([*SAMPLE[1:], "--reward-model", "rewrad"], "there is no such folder: rewrad; did you mean 'reward'?"),
        ([*SAMPLE[1:], "--reward-model", "reward", "--scorer", "rn"], "'rn': unknown scorer; valid: rm"),
        ([*SAMPLE[1:], "--reward-model", "reward", "--policy", "worst"], "--policy worst: expected one of"),
        (["--scored", "x", "--out", "p.csv"], "--out p.csv: expected a file that ends in .jsonl or .parquet"),
        (
            ["--scored", "x", "--out", "lessons.jsonl"],
            "--out lessons.jsonl: the file exists, and align pairs did not make it",
        ),
    ],
)
def test_mistakes_are_reported(align: Any, pipeline: Any, files: Path, options: list[str], problem: str) -> None:
    answer = align("pairs", *(["--out", "p.jsonl"] if "--out" not in options else []), *options)
    assert answer.code == 2
    assert problem in answer.err
    assert pipeline.recipe is None
    assert (files / "lessons.jsonl").read_text() == ""


def test_no_option_stands_for_two_fields(align: Any) -> None:
    from align.cli.pairs import FILLED
    from align.stages.registry import STAGES

    fields = [set(STAGES[stage].config_type.model_fields) - {"seed"} - filled for stage, filled in FILLED.items()]
    assert sum(map(len, fields)) == len(set.union(*fields))
    assert "--length-penalty" in align("pairs", "--help").out
