"""Which scorers the compared models were trained or selected with, from the manifests of their paths; and the warning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.records import ScoredCandidate
from align.report.optimised import ScorerUse, scorer_use
from align.report.results import Results
from align.report.verdict import conclusions
from align.store.artifact import Artifact, Manifest

RULES = {"rules": {"rules": [{"type": "length", "name": "short", "max_words": 9}]}}
OTHER_RULES = {"rules": {"rules": [{"type": "length", "name": "short", "max_words": 8}]}}


def made(name: str, stage: str, *, kind: str = "model", config: dict[str, Any] | None = None, inputs: str = "") -> Artifact:
    """A result whose fingerprint is its name in capitals."""
    manifest = Manifest(
        kind=kind, stage=stage, stage_version=1, fingerprint=name.upper(), config=config or {}, seed=1,
        inputs={source: source.upper() for source in inputs.split()},
    )  # fmt: skip
    return Artifact(name, Path(name), manifest)


ARTIFACTS = {
    artifact.name: artifact
    for artifact in (
        made("sft", "sft"),
        made("rm", "reward_model", kind="reward_model", config={"data": "first"}, inputs="sft first"),
        made("judge", "reward_model", kind="reward_model", config={"data": "second"}, inputs="sft second"),
        made("twin", "reward_model", kind="reward_model", config={"data": "first"}, inputs="sft first"),
        made("best", "select_checkpoint", config={"model": "sft", "scorer": "rm"}, inputs="sft rm"),
        made("drawn", "generate", kind="candidates", config={"model": "best"}, inputs="best"),
        made("scored", "score", kind="scored_candidates", inputs="drawn rm judge",
             config={"candidates": "drawn", "scorers": {"rm": "rm", "second": "judge", "short": RULES}}),
        made("pairs", "pairs", kind="preferences", config={"scored": "scored", "scorer": "rm"}, inputs="scored"),
        made("mixed", "pairs", kind="preferences", inputs="scored",
             config={"scored": "scored", "scorers": {"rm": 1.0, "short": 2.0}}),
        made("dpo", "dpo", config={"model": "best", "pairs": "pairs"}, inputs="best pairs"),
        made("orpo", "orpo", config={"model": "best", "pairs": "mixed"}, inputs="best mixed"),
        made("ppo", "ppo", config={"model": "best", "scorers": {"a": "rm"}, "watch": {"b": "judge"}}, inputs="best rm judge"),
        made("more", "sft", config={"model": "best"}, inputs="best"),
    )
}  # fmt: skip


def test_a_scorer_was_optimised_where_it_decided_what_a_stage_made() -> None:
    scorers = {"mean": "rm", "second": "judge", "third": "twin", "gold": RULES, "other": OTHER_RULES}
    use = scorer_use(scorers, ["best", "dpo", "orpo", "ppo", "more"], "best", ARTIFACTS)
    # `more` begins with what rm selected, but so does the baseline; judge was scored with and watched, and decided nothing.
    assert use.optimised == {"mean": ["best", "dpo", "orpo", "ppo"], "gold": ["orpo"]}
    # twin learned from the rows of rm; judge from others.
    assert use.same_rows == {"third": "rm"}


def test_the_members_of_an_ensemble_were_optimised_with_it() -> None:
    both = {"ensemble": ["judge", "twin"], "combine": "min", "std_weight": None}
    cautious = made("cautious", "ppo", config={"model": "best", "scorers": {"a": both}, "watch": {}}, inputs="best judge twin")
    use = scorer_use(
        {"one": "judge", "both": both, "rm": "rm"}, ["best", "cautious"], "best", {**ARTIFACTS, "cautious": cautious}
    )
    assert use.optimised == {"one": ["cautious"], "both": ["cautious"], "rm": ["best"]}


def test_inputs_from_elsewhere_optimised_nothing() -> None:
    assert scorer_use({"rm": "rm"}, ["sft"], "sft", {name: ARTIFACTS[name] for name in ("sft", "rm")}) == ScorerUse({}, {})


@pytest.mark.parametrize(
    ("decider", "use", "told"),
    [
        ("rm", ScorerUse({"rm": ["sft", "dpo", "ppo_long_name"]}, {}), "rm decides here, but dpo and ppo_long_name were trained"),
        (None, ScorerUse({"gold": ["dpo"]}, {}), "gold decides here, but dpo was trained or selected with it:"),
        ("gold", ScorerUse({"rm": ["dpo"]}, {"gold": "rm"}), "gold decides here, but learned from the same rows as rm,"),
        (None, ScorerUse({"rm": ["dpo"]}, {}), None),
        ("gold", ScorerUse({"gold": ["sft"]}, {}), None),
    ],
)
def test_the_verdict_warns_of_a_judge_that_was_optimised(
    answers: dict[str, list[ScoredCandidate]],
    make_results: Callable[..., Results],
    decider: str | None,
    use: ScorerUse,
    told: str | None,
) -> None:
    results = make_results(answers, deciding_scorer=decider, use=use, bootstrap_resamples=100)
    sentences = conclusions(results)
    assert sentences[0].startswith(f"On {decider or 'gold'},"), "the deciding score is first"
    warnings = [sentence for sentence in sentences if "decides here" in sentence]
    assert [warning[: len(told)] for warning in warnings] == [told] if told else warnings == []
