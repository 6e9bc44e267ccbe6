"""A model of NaN, or one that computes NaN from finite weights, in a run: the command ends with its name and its exit code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.cli.main import main
from align.data.encoding import EncodedPreference
from align.errors import StageError
from align.pipeline.worker import _refuse_broken
from align.report.training import read_log
from align.runtime.context import RunContext
from align.runtime.events import Metrics, Note, to_json
from align.scoring.likelihood import perplexity_of
from align.stage import StageOutcome
from align.testing import fill_weights, tiny_causal_lm, tiny_reward_model
from align.testing.project import write_jsonl
from align.training.loop import TrainingHistory
from align.training.pairwise.held_out import evaluate_reward_model
from align.training.pairwise.split import Split

pytestmark = pytest.mark.slow

NAN, HUGE = math.nan, 3e38
RULES = "{rules: [{type: length, name: short, max_characters: 12}]}"
SAMPLING = "engine: transformers, num_candidates: 1, max_completion_tokens: 4, max_prompt_tokens: 64"
RECIPE = f"""\
name: broken
inputs:
  base:        {{kind: model, path: base}}
  nan:         {{kind: model, path: nan}}
  huge:        {{kind: model, path: huge}}
  nan_reward:  {{kind: reward_model, path: nan_reward}}
  huge_reward: {{kind: reward_model, path: huge_reward}}
  prompts:     {{kind: prompts, path: prompts.jsonl}}
  held_out:    {{kind: prompts, path: held_out.jsonl}}
stages:
  sampled:       {{stage: generate, model: base, prompts: prompts, {SAMPLING}}}
  generate_nan:  {{stage: generate, model: nan, prompts: prompts, {SAMPLING}}}
  generate_huge: {{stage: generate, model: huge, prompts: prompts, {SAMPLING}}}
  compare_nan:   {{stage: compare, models: [base, nan], baseline: base, prompts: held_out, {SAMPLING},
                  scorers: {{short: {RULES}}}}}
  compare_huge:  {{stage: compare, models: [base, huge], baseline: base, prompts: held_out, {SAMPLING},
                  scorers: {{short: {RULES}}}}}
  select_nan:    {{stage: select_model, models: {{base: base, nan: nan}}, prompts: prompts, {SAMPLING}, scorer: {RULES}}}
  select_huge:   {{stage: select_model, models: {{base: base, huge: huge}}, prompts: prompts, {SAMPLING}, scorer: {RULES}}}
  score_nan:     {{stage: score, candidates: sampled, scorers: {{rm: nan_reward}}}}
  score_huge:    {{stage: score, candidates: sampled, scorers: {{rm: huge_reward}}}}
"""
WEIGHTS = "the model has weights that are NaN or infinite: model.norm.weight"
LOGITS = "the model's logits are NaN or infinite after 0 tokens of a completion of prompt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("broken")
    tiny_causal_lm(place / "base")
    for name, value in (("nan", NAN), ("huge", HUGE)):
        fill_weights(tiny_causal_lm(place / name), value)
        fill_weights(tiny_reward_model(place / f"{name}_reward"), value)
    for name, end in (("prompts", "?"), ("held_out", "!")):
        write_jsonl(place / f"{name}.jsonl", ({"prompt": f"{number}{end}"} for number in range(4)))
    (place / "recipe.yaml").write_text(RECIPE)
    return place


@pytest.mark.parametrize(
    ("stage", "code", "model", "told"),
    [
        ("generate_nan", 2, "nan", WEIGHTS),
        ("generate_huge", 5, "huge", LOGITS),
        ("compare_nan", 2, "nan", WEIGHTS),
        ("compare_huge", 5, "huge", LOGITS),
        ("select_nan", 2, "nan", WEIGHTS),
        ("select_huge", 5, "huge", LOGITS),
        ("score_nan", 2, "nan_reward", WEIGHTS),
        ("score_huge", 5, "score_huge", "none of 4 candidates got a finite score from rm"),
    ],
)
def test_a_run_ends_with_its_name(
    place: Path, capsys: pytest.CaptureFixture[str], stage: str, code: int, model: str, told: str
) -> None:
    assert main(["run", str(place), "--out", str(place / "runs"), "--until", stage, "--in-process"]) == code
    error = capsys.readouterr().err.split("error:")[-1]
    assert told in error
    assert f"{model}: " in error
    assert len(error.splitlines()) <= 15


def test_a_reward_model_of_such_scores_has_no_accuracy(place: Path) -> None:
    """Its margins are NaN, and would count as pairs that are ranked wrong."""
    pairs = [EncodedPreference(f"p{number}", [5, 6], [7], [8]) for number in range(3)]
    told = "huge_reward: the trained reward model gives 6 of 6 held-out completions a score that is NaN or infinite"
    with pytest.raises(StageError, match=told):
        evaluate_reward_model(place / "huge_reward", Split(pairs, pairs))


def test_a_result_whose_numbers_are_not_finite_is_refused() -> None:
    job: Any = SimpleNamespace(name="dpo")
    _refuse_broken(job, StageOutcome(metrics={"loss": 0.5, "steps": 3, "of_nothing": None, "ends": {"stop": 2}}))
    broken = {"loss": NAN, "held_out": {"loss": -math.inf}, "accuracy_ci95": [0.1, math.inf], "more": NAN}
    told = r"dpo: of its result, loss is nan, held_out\.loss is -inf, accuracy_ci95 is inf and 1 more\n"
    with pytest.raises(StageError, match=told):
        _refuse_broken(job, StageOutcome(metrics=broken))


def test_a_curve_has_holes_that_are_said_once(tmp_path: Path) -> None:
    events: list[Any] = []
    context = RunContext(name="dpo", work=tmp_path, seed=0, emit=events.append)
    rows = [{"step": 1, "loss": 0.5, "grad_norm": math.inf}, {"step": 2, "loss": 0.25, "grad_norm": math.inf}]
    for row in rows:
        context.metrics(row)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == ["grad_norm is inf at step 1: its curve has a hole there"]
    assert [json.loads(to_json(event))["values"]["grad_norm"] for event in events if isinstance(event, Metrics)] == [None, None]
    TrainingHistory(rows, 2).write(tmp_path / "metrics.jsonl")
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == {**rows[0], "grad_norm": None}
    read = read_log(tmp_path / "metrics.jsonl")
    assert [(row["loss"], math.isnan(row["grad_norm"])) for row in read] == [(0.5, True), (0.25, True)]


def test_a_perplexity_beyond_every_number_is_refused() -> None:
    assert perplexity_of(0, [], where="m") is None
    assert perplexity_of(2, [-2.0], where="m") == pytest.approx(math.e)
    with pytest.raises(StageError, match=r"m: the model needs 1,000 nats per token of the plain texts"):
        perplexity_of(2, [-2000.0], where="m")
