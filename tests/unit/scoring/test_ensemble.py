"""Ensembles of reward models: the number they give, how much they disagree, and where a recipe may name one."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align import load_recipe
from align.config.sections import EnsembleScorer, RulesScorer
from align.errors import RecipeError
from align.records import Candidate, ScoredCandidate
from align.scoring.ensemble import combine_members
from align.scoring.scorers import ScorerSet
from align.stages.score import describe_scores
from align.testing import scored_candidate

MEMBERS: list[list[float | None]] = [[1.0, 4.0, None, 0.0], [3.0, 4.0, 2.0, math.nan], [5.0, 4.0, 1.0, 0.0]]


def ensemble(**fields: Any) -> EnsembleScorer:
    return EnsembleScorer.model_validate({"ensemble": ["a", "b", "c"], **fields})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [  # 1, 3 and 5: mean 3, variance (4 + 0 + 4) / 3
        ({}, 3.0),
        ({"combine": "min"}, 1.0),
        ({"combine": "mean_minus_std"}, 3 - math.sqrt(8 / 3)),
        ({"combine": "mean_minus_std", "std_weight": 0.5}, 3 - math.sqrt(8 / 3) / 2),
    ],
)
def test_by_hand(fields: dict[str, Any], expected: float) -> None:
    scores, disagreement = combine_members(ensemble(**fields), MEMBERS)
    assert scores == [pytest.approx(expected), 4.0, None, None]
    assert disagreement == [pytest.approx(math.sqrt(8 / 3)), 0.0, None, None]


def test_rows_have_both_numbers_and_members_score_one_after_the_other() -> None:
    rules = RulesScorer.model_validate({"rules": [{"name": "short", "type": "length", "max_words": 9}]})
    folders: Any = {"a": None, "b": None, "c": None}
    scorers = ScorerSet({"rm": ensemble(), "one": "b", "short": rules}, folders, batch_tokens=1)  # type: ignore[dict-item]
    assert [part.names for part in scorers.one_model_each()] == [["rm", "short"], ["one"]]

    def member(values: list[float | None]) -> Any:
        return SimpleNamespace(score_candidates=lambda rows, report: report(len(rows)) or values, close=lambda: None)

    scorers._loaded = {name: member(values[:2]) for name, values in zip("abc", MEMBERS, strict=True)}
    reports: list[int] = []
    plain = [scored_candidate({}, text, index).model_dump(exclude={"scores"}) for index, text in enumerate("xy")]
    rows = scorers.score([Candidate.model_validate(row) for row in plain], reports.append)
    assert [row.scores for row in rows] == [{"rm": 3.0, "one": 3.0, "short": 1.0}, {"rm": 4.0, "one": 4.0, "short": 1.0}]
    assert [row.disagreement for row in rows] == [{"rm": pytest.approx(math.sqrt(8 / 3))}, {"rm": 0.0}]
    assert reports == [0, 1, 2, 4, 6]
    assert ScoredCandidate.model_validate_json(rows[0].model_dump_json()) == rows[0]
    assert describe_scores(rows, "rm")["disagreement"] == pytest.approx(math.sqrt(8 / 3) / 2)
    assert "disagreement" not in describe_scores(rows, "one")
    assert "disagreement" not in scored_candidate({"rm": 1.0}, "x", 0).model_dump_json()


def test_every_stage_that_takes_a_reward_model_takes_an_ensemble(project: Path) -> None:
    path = project / "recipe.yaml"
    members = "{ensemble: [reward-s1, reward-s2], combine: min}"
    text = path.read_text().replace("{stage: reward_model,", "{stage: reward_model, seeds: [1, 2],")
    text = text.replace("{rm: reward}", f"{{rm: {members}}}").replace("{rm: reward,", f"{{rm: {members},")
    text += f"  chosen: {{stage: select_checkpoint, model: sft, prompts: held_out, scorer: {members}}}\n"
    path.write_text(text)
    recipe = load_recipe(path)
    nodes = {name: recipe.stages[name] for name in ("scored", "ppo", "compare", "chosen")}
    for name, node in nodes.items():
        assert {"reward-s1", "reward-s2"} <= {reference for _, reference in node.references}, name
    assert nodes["ppo"].config.value_source() == "reward-s1"  # type: ignore[attr-defined]
    assert nodes["ppo"].config.training_needs().scorers == ("reward-s1", "reward-s2")  # type: ignore[attr-defined]
    for wrong, problem in (
        ("{ensemble: [reward-s1, reward-s1]}", "ensemble must name different reward models"),
        ("{ensemble: [reward-s1]}", "must have at least 2 entries"),
        ("{ensemble: [reward-s1, reward-s2], std_weight: 2}", "std_weight goes with combine mean_minus_std only"),
        ("{ensemble: [reward-s1, sft]}", "'sft'"),
        ("{ensemble: [reward-s1, reward-s2], combine: median}", "combine"),
    ):
        path.write_text(text.replace(members, wrong))
        with pytest.raises(RecipeError) as error:
            load_recipe(path)
        assert problem in error.value.render(), wrong
