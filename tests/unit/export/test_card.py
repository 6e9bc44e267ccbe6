"""The card: read as the hub reads it, and as a person does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.export.card import render_card
from align.export.check import CheckReport
from align.export.lineage import comparisons_with, trace
from align.export.source import open_source
from align.testing import tiny_causal_lm


def card_of(made: Any, stage: str, checks: list[CheckReport] | None = None) -> str:
    source = open_source(made.stage(stage))
    assert source.artifact is not None
    return render_card(source, trace(source.artifact), comparisons_with(source), dtype="float32", checks=checks or [])


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    return dict(YAML(typ="safe").load(matter))


def section(card: str, heading: str) -> str:
    return card.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]


def test_front_matter_is_what_the_hub_takes(made: Any) -> None:
    assert front_matter(card_of(made, "dpo")) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "who/base",
        "base_model_relation": "finetune",
        "tags": ["align", "sft", "dpo"],
    }
    reward = front_matter(card_of(made, "reward"))
    assert (reward["pipeline_tag"], reward["tags"]) == ("text-classification", ["align", "sft", "reward-model"])


def test_results_have_the_intervals_of_the_comparison(made: Any) -> None:
    results = section(card_of(made, "dpo"), "Results")
    (comparison,) = comparisons_with(open_source(made.stage("dpo")))
    delta = comparison.row.scores["rm"].delta
    assert delta is not None
    assert "12 prompts of `held_out`" in results
    assert "temperature 0.7, top_p 0.9, at most 8 tokens, sampled by vllm 0.32.0" in results
    assert f"+{delta.mean:.2f} [+{delta.ci95[0]:.2f}, +{delta.ci95[1]:.2f}] ▲" in results
    assert "| `gold` (rules) |" in results
    assert "This model is the baseline" in section(card_of(made, "sft"), "Results")


def test_limits_say_that_the_scorer_was_trained_on(made: Any) -> None:
    limits = section(card_of(made, "dpo"), "Limits")
    assert "Measured only on 12 prompts of `held_out`" in limits
    assert "12 prompts are few" in limits
    assert "`rm` is a reward model, a proxy, and this model was trained or selected with it" in limits
    assert "with seed 5" in limits
    # The SFT knows nothing of the reward model, which was made from it.
    assert "trained or selected with it" not in section(card_of(made, "sft"), "Limits")
    assert "A reward model is a proxy" in section(card_of(made, "reward"), "Limits")


def test_the_lineage_has_fingerprints_hashes_settings_and_seeds(made: Any) -> None:
    made_how = section(card_of(made, "dpo"), "How it was made")
    rows = [line.split("|")[1].strip() for line in made_how.splitlines() if line.startswith("| `")]
    assert rows == ["`base`", "`sft`", "`reward`", "`pairs`", "`dpo`"]
    assert "| `dpo` | model by `dpo` from `sft`, `pairs` | – | `dddddddddddddddd` |" in made_how
    assert "note: 한국어" in made_how
    assert "beta: 0.1" in made_how
    assert "tie: 2" in made_how
    assert "torch 2.13.0" in made_how
    assert "num_workers" not in made_how


def test_no_folder_of_this_machine_is_told(made: Any) -> None:
    for stage in ("sft", "reward", "dpo"):
        assert str(made.run.parent) not in card_of(made, stage)


def test_the_check_is_told_or_its_absence(made: Any) -> None:
    assert "**Not checked**" in section(card_of(made, "dpo"), "Check at export")
    checks = [CheckReport("transformers 5", 50, own_prompts=6), CheckReport("vLLM 0.32.0", 50, ties=1, own_prompts=6)]
    told = section(card_of(made, "dpo", checks), "Check at export")
    assert "transformers 5 loaded this folder and gave 50 of 50 prompts the same 32 greedy tokens" in told
    assert "49 of 50 prompts the same 32 greedy tokens as the source; the other 1 differ after a tie" in told
    assert "6 prompts were the run's own, 44 were short neutral ones." in told
    assert "Not checked" not in told


def test_a_model_that_caps_its_scores_is_loaded_with_eager_attention(tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path / "mine")
    assert "eager" not in render_card(open_source(folder), [], [], dtype="bfloat16", checks=[])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_logit_softcapping": 50.0}))
    card = render_card(open_source(folder), [], [], dtype="bfloat16", checks=[])
    assert 'from_pretrained("THIS_FOLDER", attn_implementation="eager")' in card
    assert "leaves the cap out" in card


def test_a_model_of_unknown_origin(tmp_path_factory: pytest.TempPathFactory) -> None:
    source = open_source(tiny_causal_lm(tmp_path_factory.mktemp("m") / "mine"))
    card = render_card(source, [], [], dtype="bfloat16", checks=[])
    assert front_matter(card)["tags"] == ["align"]
    assert "How this model was trained is not known to align" in card
    assert "align did not make this model" in section(card, "Results")
