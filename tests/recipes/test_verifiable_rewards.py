"""recipes/verifiable-rewards: its files are those of its script, its problems are apart, and it runs to its tables."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from align.cli.main import main
from align.config.rules import RuleSet
from align.pipeline.recipe import load_recipe
from align.report.results import Results
from align.scoring.rules import RuledPrompt, score_with_rules
from align.testing.reduced import overrides, reduced

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "verifiable-rewards"
sys.path.insert(0, str(ROOT / "scripts"))

from build_verifiable_rewards import FILES, pupils_answer, write_problems  # noqa: E402


def rows_of(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (RECIPE / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_files_are_those_of_the_script(tmp_path: Path) -> None:
    write_problems(tmp_path)
    names = [f"{name}.jsonl" for name in FILES if name != "taught"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in (RECIPE / "data").iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (RECIPE / "data" / name).read_bytes(), name


def test_every_sum_is_in_one_file_or_was_taught(tmp_path: Path) -> None:
    prompts = [row["prompt"] for row in write_problems(tmp_path)]
    prompts += [row["prompt"] for name in FILES if name != "taught" for row in rows_of(name)]
    assert len(set(prompts)) == len(prompts) == sum(FILES.values())


def test_pupils_forget_carries_and_nothing_else() -> None:
    right = [int(row["completion"]) == sum(map(int, row["prompt"].split("+"))) for row in rows_of("answered_1")]
    assert 0.42 < sum(right) / len(right) < 0.46
    careful, careless = (RandomStub(value) for value in (1.0, 0.0))
    assert pupils_answer(47, 85, careful) == 132
    # Both carries forgotten, 7 + 5 = 2 and 4 + 8 = 2, and then one off.
    assert pupils_answer(47, 85, careless) == 21
    assert pupils_answer(0, 0, careless) == 0


class RandomStub(random.Random):
    """Draws one number for ever, and the first of what it may choose."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value

    def choice(self, seq: Any) -> Any:
        return seq[0]


def test_the_rule_reads_the_answers() -> None:
    rules = load_recipe(RECIPE).stages["grpo-s17"].config.scorers["right"].rules  # type: ignore[attr-defined]
    assert isinstance(rules, RuleSet)
    for row in rows_of("practice_1")[:50]:
        prompt = RuledPrompt(row["id"], row["reference"])
        left, right = map(int, row["prompt"].split("+"))
        assert score_with_rules(rules, prompt, f"{left + right:03}").score == 1
        assert score_with_rules(rules, prompt, f"{left + right + 10:03}").score == 0


@pytest.mark.slow
def test_it_runs_to_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.report.html.write_report", lambda path, **_: path.write_text(""))
    sizes = {"answered_1": 64, "answered_2": 64, "practice_1": 12, "practice_2": 12, "practice_3": 12, "held_out": 4}
    recipe = reduced("verifiable-rewards", tmp_path / "verifiable-rewards", **sizes)
    settings = ["stages.sft.num_epochs=1", "stages.sft_more.num_epochs=1"]
    settings += [f"stages.{name}.seeds=[17]" for name in ("grpo", "rloo", "dpo", "rs_1_candidates")]
    dpo = "[dpo-s17-3]"
    for compare in ("sampled", "greedy"):
        settings += [f"stages.{compare}.bootstrap_resamples=1000", f"stages.{compare}.methods={{dpo-3: {dpo}}}"]
        settings += [f"stages.{compare}.models=[sft, sft_more, rs_3, {dpo[1:-1]}, grpo, rloo, distill]"]
    for size in ("num_episodes", "rollout_batch_size", "mini_batch_size"):
        settings += [f"stages.{name}.{size}=16" for name in ("grpo", "rloo", "distill")]
    assert main(["run", str(recipe), "--out", str(tmp_path / "runs"), "--in-process", *overrides(*settings)]) == 0
    sampled, greedy = (
        Results.from_json(json.loads((tmp_path / "runs" / "verifiable-rewards" / "stages" / name / "results.json").read_text()))
        for name in ("sampled", "greedy")
    )
    assert set(sampled.models) == set(greedy.models) == {"sft", "sft_more", "rs_3", "dpo-3", "grpo", "rloo", "distill"}
    for model in sampled.models.values():
        assert model.scores["pass@1"].mean <= model.scores["pass@8"].mean
