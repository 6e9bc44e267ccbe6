"""`align plan` refuses rows without what a stage reads beyond their kind: references, scores, several candidates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.cli.usage import wrapped
from align.config.row_need import RowNeed
from align.pipeline.checks.limits import Rows
from align.pipeline.checks.needs import check_need
from align.records import Candidate, Message
from align.stage import StageConfig
from align.stages.registry import STAGES
from align.store.artifact import ROWS_NAME, Entry, Manifest, write_rows
from align.testing.project import write_jsonl

TOPIC = "{rules: [{type: contains_reference, name: topic}]}"
NUMBER = "{rules: [{type: numeric_answer, name: number}]}"
SELECT = "{stage: select_checkpoint, model: sft, prompts: prompts, scorer: %s}"


def change(file: Path, number: int | None = None, **changes: Any) -> None:
    """Set fields of one row, or of all; None removes a field."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows if number is None else [rows[number]]:
        row |= changes
        for field in [field for field, value in row.items() if value is None]:
            del row[field]
    write_jsonl(file, rows)


@pytest.mark.parametrize(
    ("override", "reader"),
    [
        (f"stages.scored.scorers={{rm: reward, gold: {TOPIC}}}", "scored.scorers.gold"),
        (f"stages.ppo.scorers={{gold: {TOPIC}}}", "ppo.scorers.gold"),
        (f"stages.ppo.watch={{gold: {TOPIC}}}", "ppo.watch.gold"),
        (f"stages.compare.scorers={{gold: {TOPIC}}}", "compare.scorers.gold"),
        (f"stages.best_sft={SELECT % TOPIC}", "best_sft.scorer"),
    ],
)
def test_every_stage_with_rules_needs_references(project: Path, plan: Any, override: str, reader: str) -> None:
    assert plan(override).code == 0
    for name in ("prompts", "held_out"):
        change(project / f"{name}.jsonl", reference=None, topic="a")
    answer = plan(override)
    count, file = (6, "held_out") if reader.startswith("compare") else (12, "prompts")
    assert answer.code == 3
    assert answer.err == (
        f"error: --set {override}: stages.{reader}: {count} of {count} rows of {file}.jsonl have no `reference`; the rule "
        "'topic' (type contains_reference) needs one\n"
        "→ If a column holds it, name it at the input, columns: {reference: topic}; or take the rule out.\n"
    )
    assert len(wrapped(answer.err, 80).splitlines()) <= 7
    # With the advice, the topics are there.
    assert plan(override, *(f"inputs.{name}.columns={{reference: topic}}" for name in ("prompts", "held_out"))).code == 0


def test_a_share_without_it_is_said(project: Path, plan: Any) -> None:
    change(project / "prompts.jsonl", 4, reference=None)
    change(project / "prompts.jsonl", 7, reference="")
    answer = plan(f"stages.scored.scorers.gold={TOPIC}", command="run")
    assert answer.code == 3
    assert (
        "stages.scored.scorers.gold: 2 of 12 rows of prompts.jsonl have no `reference` (the first: prompts.jsonl:5); the rule "
        "'topic' (type contains_reference) needs one\n→ Fill it in these rows, or take the rule out.\n"
    ) in answer.err
    assert not (project / "runs" / "tiny").exists()


def test_a_number_is_needed(project: Path, plan: Any) -> None:
    answer = plan(f"stages.scored.scorers.gold={NUMBER}")
    assert answer.code == 3
    assert "12 of 12 rows of prompts.jsonl have no number in `reference`; the rule 'number' (type numeric_answer)" in answer.err
    assert "→ Fill it in these rows, or take the rule out.\n" in answer.err


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("type: names_no_other, words: [a]", "12 of 12 rows of prompts.jsonl have no `reference`; the rule 'r' "),
        ("type: matches_field, field: topc, patterns: {a: [b]}", "12 of 12 rows of prompts.jsonl have no such column: 'topc'"),
        (
            "type: matches_field, field: topic, patterns: {b: [b]}",
            "12 of 12 rows of prompts.jsonl have 'a' as 'topic', for which there is no pattern; the rule 'r' ",
        ),
    ],
)
def test_every_rule_that_reads_a_column(project: Path, plan: Any, rule: str, told: str) -> None:
    change(project / "prompts.jsonl", reference=None, topic="a")
    answer = plan(f"stages.scored.scorers={{rm: reward, gold: {{rules: [{{{rule}, name: r}}]}}}}")
    assert answer.code == 3
    assert told in answer.err
    assert ("correct the rule" if "field" in rule else "columns: {reference: topic}; or take the rule out") in answer.err


def test_rows_that_a_stage_of_an_earlier_run_made(project: Path, plan: Any) -> None:
    entry = Entry(project / "earlier")
    entry.begin()
    prompt = [Message(role="user", content="a")]
    row = {"prompt_id": "p", "candidate_index": 0, "prompt": prompt, "completion": "b", "completion_token_ids": [1]}
    row |= {"reference": None, "completion_tokens": 1, "finish_reason": "stop", "seed": 1}
    write_rows(entry.path / ROWS_NAME, [Candidate.model_validate(row)])
    fields: dict[str, Any] = {"kind": "candidates", "stage": "generate", "stage_version": 4, "fingerprint": "f"}
    entry.commit(Manifest(**fields, config={}, inputs={}, seed=1))
    earlier = "inputs.earlier={kind: candidates, artifact: earlier}"
    assert plan(earlier, "stages.scored.candidates=earlier").code == 0
    answer = plan(earlier, "stages.scored.candidates=earlier", f"stages.scored.scorers={{rm: reward, gold: {TOPIC}}}")
    assert answer.code == 3
    assert "stages.scored.scorers.gold: 1 of 1 rows of earlier has no `reference`; the rule 'topic' " in answer.err


def test_margins_need_scores(project: Path, plan: Any) -> None:
    answer = plan("stages.reward.margin=scores")
    assert answer.code == 3
    assert answer.err == (
        "error: --set stages.reward.margin=scores: stages.reward.margin: 24 of 24 rows of preferences.jsonl have no chosen_score "
        "or no rejected_score; margin: scores is their difference\n→ Fill it in these rows, or write margin: none.\n"
    )
    change(project / "preferences.jsonl", chosen_score=2.0, rejected_score=1.0)
    assert plan("stages.reward.margin=scores").code == 0
    change(project / "preferences.jsonl", 3, chosen_score=0.5)
    answer = plan("stages.reward.margin=scores")
    assert answer.code == 3
    told = "1 of 24 rows of preferences.jsonl has a chosen_score below its rejected_score (the first: preferences.jsonl:4)"
    assert told in answer.err


@pytest.mark.parametrize("stage", ["pairs", "best"])
def test_candidates_in_files_need_the_score(project: Path, plan: Any, stage: str) -> None:
    def given(*scores: float | None) -> tuple[str, ...]:
        rows = ({"prompt_id": "p", "prompt": "a", "completion": f"c{n}", "scores": {"rm": s}} for n, s in enumerate(scores))
        write_jsonl(project / "scored.jsonl", rows)
        return ("inputs.files={kind: scored_candidates, path: scored.jsonl}", f"stages.{stage}.scored=files")

    assert plan(*given(1.0, 0.5)).code == 0
    answer = plan(*given(1.0, 0.5), f"stages.{stage}.scorer=gold")
    assert answer.code == 2
    assert f"stages.{stage}.scorer: scored.jsonl: prompt 'p', candidate 0: no score by 'gold'; it has rm" in answer.err
    answer = plan(*given(None, None))
    assert answer.code == 3
    assert f"stages.{stage}.scorer: 2 of 2 rows of scored.jsonl have no finite score by 'rm'" in answer.err
    answer = plan(*given(None, 1.0))
    assert answer.code == 0
    assert "1 of 2 rows of scored.jsonl has no finite score by 'rm'" in " ".join(answer.out.split())


@pytest.mark.parametrize(("settings", "told"), [("num_candidates: 1", "samples one"), ("temperature: 0", "(temperature: 0)")])
def test_pairs_and_judges_need_several_candidates(project: Path, plan: Any, settings: str, told: str) -> None:
    recipe = project / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8").replace("num_candidates: 3,", f"{settings},")
    judge = "j: {judge: {base_url: http://localhost:1, model: m}}"
    recipe.write_text(text.replace("{rm: reward}}\n  best", f"{{rm: reward, {judge}}}}}\n  best"), encoding="utf-8")
    answer = plan()
    assert answer.code == 2
    for place, what in (("scored.candidates", "the judge 'j' needs"), ("pairs.scored", "a pair needs")):
        line = next(line for line in answer.err.splitlines() if f"stages.{place}: {what} two " in line)
        assert told in line


class Row:
    def __init__(self, line: int) -> None:
        self.line, self.file = line, None


@pytest.mark.parametrize(
    ("lacking", "keeps_all", "is_whole", "leaves_out", "action"),
    [
        (1, True, False, False, "refuse"),
        (1, False, True, False, "warn"),  # the row may be among those that a mixture leaves out
        (2, False, True, False, "refuse"),
        (2, True, False, True, "warn"),  # later rows may have it
        (2, True, True, True, "refuse"),
        (1, True, True, True, "warn"),
    ],
)
def test_what_is_refused(lacking: int, keeps_all: bool, is_whole: bool, leaves_out: bool, action: str) -> None:
    need = RowNeed("rows", ("x",), "y", lambda row: "no y" if row.line <= lacking else "", "it is read", "go", leaves_out)
    (finding,) = check_need("s", "here", need, Rows("prompts", [Row(1), Row(2)], "a.jsonl", is_whole, keeps_all))
    assert finding.action == action


def test_every_stage_with_scorers_says_what_rules_need() -> None:
    with_rules = {
        name
        for name, stage in STAGES.items()
        if any("RulesScorer" in str(info.annotation) for info in stage.config_type.model_fields.values())
    }
    assert with_rules == {"score", "ppo", "grpo", "rloo", "distill", "select_checkpoint", "select_model", "compare"}
    assert all(STAGES[name].config_type.row_needs is not StageConfig.row_needs for name in with_rules)
