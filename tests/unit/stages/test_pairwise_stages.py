"""The stages that train on pairs: what they refuse, what they count, what they share."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cpo_method
import pytest
import torch

from align import load_recipe
from align.data.encoding import encode_preferences
from align.data.forms import sides_of
from align.errors import DataError, RecipeError
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.records import Labelled, Message, Preference
from align.stage import StageOutcome
from align.stages import dpo, kto, orpo, reward_model, simpo
from align.store.artifact import ROWS_NAME, Artifact, write_rows
from align.testing import Recorder, input_artifact, pairwise_config, stage_context, tiny_causal_lm
from align.training.pairwise.collator import shared_length
from align.training.pairwise.run import loss_of_equal_models
from align.training.pairwise.split import held_out_records

pytestmark = pytest.mark.slow


def row(number: int) -> Preference:
    prompt = [Message(role="user", content=f"I lost key {number}.")]
    return Preference(id=f"r{number}", line=number + 1, prompt=prompt, chosen=f"Oh no {number}!", rejected="So?")


ROWS = [row(number) for number in range(8)]
FAST = {"precision": "float32", "batch_size": 4, "learning_rate": 1e-3, "max_tokens": 128}


class Bench(Recorder):
    """Runs single stages in this process, on a tiny model."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        super().__init__()
        self.artifacts: dict[str, Artifact] = {}
        self.add("base", base, "model", fingerprint="base")

    def add(self, name: str, path: Path, kind: str, *, fingerprint: str) -> None:
        self.artifacts[name] = input_artifact(name, path, kind, fingerprint=fingerprint)

    def run(self, stage: Any, rows: Sequence[Preference] | Sequence[Labelled] = ROWS, **fields: Any) -> StageOutcome:
        data = self.folder / f"data-{len(self.artifacts)}-{len(list(self.folder.iterdir()))}"
        write_rows(data / ROWS_NAME, list(rows))
        kind = "labelled" if isinstance(rows[0], Labelled) else "preferences"
        self.add("rows", data, kind, fingerprint=data.name)
        reads = {"data" if "data" in stage.Config.model_fields else "pairs": "rows"}
        self.output = self.folder / "store" / data.name
        config = stage.Config.model_validate({"model": "base", **reads, **FAST, **fields})
        return stage.run(stage_context(config, self.output, self.artifacts, emit=self.handle))  # type: ignore[no-any-return]

    def reused(self) -> int:
        return sum("are in the store" in note for note in self.notes)


@pytest.fixture
def bench(tmp_path: Path, project_template: Path) -> Bench:
    folder = tmp_path / "bench"
    folder.mkdir()
    return Bench(folder, project_template / "base")


def test_the_reference_is_computed_once_for_every_beta_and_variant(bench: Bench) -> None:
    losses = [bench.run(dpo, **fields).metrics["loss_at_step_0"] for fields in (
        {"beta": 0.1}, {"beta": 0.5}, {"variant": "hinge"}, {"variant": "ipo", "beta": 0.2},
    )]  # fmt: skip
    # ln 2 twice, then 1 and (1 / (2 · 0.2))² = 6.25: what equal models give.
    assert losses == pytest.approx([0.6931472, 0.6931472, 1.0, 6.25], abs=1e-4)
    assert bench.reused() == 3
    bench.run(dpo, ROWS[:5])
    assert bench.reused() == 3


def test_another_reference_is_what_the_policy_stays_near(bench: Bench, project_template: Path) -> None:
    with_itself = bench.run(dpo)
    other = load_causal_lm(project_template / "base")
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    from align.models.save import save_model

    save_model(other, ModelFolder(project_template / "base").tokenizer, bench.folder / "other")
    bench.add("other", bench.folder / "other", "model", fingerprint="other")
    outcome = bench.run(dpo, reference="other")
    assert bench.reused() == 0
    assert abs(outcome.metrics["loss_at_step_0"] - 0.6931472) > 1e-3
    assert outcome.metrics["loss"] != with_itself.metrics["loss"]


def test_a_reference_with_other_tokens_is_refused(bench: Bench) -> None:
    bench.add("other", tiny_causal_lm(bench.folder / "other", texts=["lost keys"] * 9), "model", fingerprint="other")
    with pytest.raises(RecipeError, match=r"other: the reference of base needs the same tokenizer, but \d+ tokens differ"):
        bench.run(dpo, reference="other")


def test_orpo_trains_with_one_model_and_no_reference(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []

    def counting(path: Path, **options: Any) -> Any:
        loaded.append(path)
        return load_causal_lm(path, **options)

    monkeypatch.setattr("align.models.trainable.load_causal_lm", counting)
    outcome = bench.run(orpo, num_epochs=3)
    assert len(loaded) == 1
    assert list((bench.folder / "store").glob("reference_logps-*")) == []
    assert outcome.metrics["batch_form"] == "shared_prompt"
    assert outcome.metrics["steps"] == 6
    chat_format = load_format(ModelFolder(bench.artifacts["base"].path))
    pairs = encode_preferences(ROWS, chat_format, max_tokens=128, on_invalid="error", where=str).rows
    assert outcome.metrics["trained_tokens"] == 3 * outcome.metrics["tokens"] == 3 * sum(map(shared_length, pairs))
    assert outcome.metrics["loss"] == pytest.approx(
        outcome.metrics["nll_loss"] - 0.1 * outcome.metrics["log_odds_ratio"], rel=1e-4
    )
    assert (bench.output / "model" / "model.safetensors").exists()


def test_the_prompt_counts_for_the_likelihood_only_when_asked(bench: Bench) -> None:
    losses = [bench.run(orpo, nll_tokens=tokens).metrics["nll_loss"] for tokens in ("completion", "prompt_and_completion")]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("stage", [dpo, orpo, reward_model])
def test_pairs_that_cannot_be_used_are_named_or_counted(bench: Bench, stage: Any) -> None:
    long = ROWS[0].model_copy(update={"id": "long", "chosen": "very " * 200})
    rows = [*ROWS, long]
    fields = {"held_out_share": 0.5} if stage is reward_model else {}
    with pytest.raises(DataError, match=r"long: prompt and longer completion: .* max_tokens is 128"):
        bench.run(stage, rows, **fields)
    outcome = bench.run(stage, rows, on_invalid="drop", **fields)
    assert outcome.dropped == {"too_long": 1}
    assert (outcome.rows_in, outcome.rows_out) == (9, 8)


def test_margins_come_from_the_scores(bench: Bench) -> None:
    scored = [row.model_copy(update={"chosen_score": 3.0, "rejected_score": 1.0}) for row in ROWS]
    fields: dict[str, Any] = {"held_out_share": 0.5, "center_coef": 0.0}
    plain = bench.run(reward_model, scored, **fields).metrics["train_loss"]
    with_margin = bench.run(reward_model, scored, margin="scores", **fields).metrics["train_loss"]
    # A fresh head scores all nearly alike: -log sigmoid(0) and -log sigmoid(-2).
    assert plain == pytest.approx(0.693, abs=0.15)
    assert with_margin == pytest.approx(2.127, abs=0.3)


def test_a_pair_that_gives_no_margin_is_named(bench: Bench) -> None:
    scored = [row.model_copy(update={"chosen_score": 3.0, "rejected_score": 1.0}) for row in ROWS]
    swapped = [row.model_copy(update={"chosen_score": 1.0, "rejected_score": 3.0}) for row in ROWS]
    fields: dict[str, Any] = {"held_out_share": 0.5, "margin": "scores"}
    with pytest.raises(DataError, match=r"r\d: has no chosen_score or no rejected_score"):
        bench.run(reward_model, ROWS, **fields)
    with pytest.raises(DataError, match=r"the rejected completion scored higher \(chosen_score 1, rejected_score 3\)"):
        bench.run(reward_model, swapped, **fields)
    bench.run(reward_model, scored, **fields)


def test_label_smoothing_belongs_to_sigmoid(project: Path) -> None:
    recipe = project / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("{stage: dpo, model: sft,", "{stage: dpo, model: sft, variant: ipo, label_smoothing: 0.1,"))
    with pytest.raises(RecipeError, match=r"label_smoothing.*is defined for sigmoid and robust only, not for ipo"):
        load_recipe(recipe)
    recipe.write_text(
        text.replace("{stage: dpo, model: sft,", "{stage: dpo, model: sft, variant: sigmoid, label_smoothing: 0.1,")
    )
    load_recipe(recipe)


def test_a_new_pairwise_method_is_one_short_file(bench: Bench) -> None:
    assert len(Path(cpo_method.__file__).read_text().splitlines()) <= 70
    outcome = bench.run(cpo_method, beta=0.3)
    assert outcome.metrics["steps"] == 2
    curve = [json.loads(line) for line in (bench.output / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "rewards/chosen", "rewards/margins", "logps/rejected"} <= curve[0].keys()
    assert curve[0]["loss"] != curve[-1]["loss"]
    assert (bench.output / "model" / "model.safetensors").exists()


def test_its_loss_is_that_of_the_paper() -> None:
    # Differences -1 and -1, of which half; 2 and 1.5 nats per token of the chosen completions.
    outputs, counts = torch.tensor([-4.0, -6.0, -3.0, -5.0]), torch.tensor([2, 4, 1, 2])
    config = cpo_method.Config(model="m", pairs="p", beta=0.5)
    result = config.pair_losses(outputs, {"token_counts": counts}, counts=None)  # type: ignore[arg-type]
    pairs = math.log(1 + math.exp(0.5))
    assert result.losses.tolist() == pytest.approx([pairs + 2.0, pairs + 1.5])
    assert result.metrics["rewards/margins"].tolist() == [-0.5, -0.5]


def test_simpo_is_trained_without_a_reference(bench: Bench) -> None:
    outcome = bench.run(simpo, beta=2.0, gamma=0.5)
    assert outcome.metrics["steps"] == 2
    assert outcome.metrics["loss"] > 0


@pytest.mark.parametrize("variant", ["sigmoid_norm", "robust", "apo_zero", "apo_down", "sppo_hard"])
def test_every_variant_is_trained_with_its_published_settings(bench: Bench, variant: str) -> None:
    outcome = bench.run(dpo, variant=variant)
    beta, smoothing = {"sigmoid_norm": (5.0, 0.0), "robust": (0.1, 0.1), "sppo_hard": (0.001, 0.0)}.get(variant, (0.1, 0.0))
    config: Any = pairwise_config(dpo, variant=variant)
    assert (config.beta, config.label_smoothing) == (beta, smoothing)
    assert pairwise_config(dpo, variant=variant, beta=0.3).model_dump()["beta"] == 0.3
    assert outcome.metrics["loss_at_step_0"] == pytest.approx(loss_of_equal_models(config), rel=1e-3)


def test_a_likelihood_beside_the_loss_is_trained_and_shown(bench: Bench) -> None:
    plain, both = bench.run(dpo), bench.run(dpo, nll_weight=0.5)
    assert plain.metrics["loss_at_step_0"] == pytest.approx(math.log(2), abs=1e-5)
    assert both.metrics["loss_at_step_0"] > math.log(2) + 0.5
    curve = [json.loads(line) for line in (bench.output / "metrics.jsonl").read_text().splitlines()]
    assert curve[0]["nll_loss"] > 1


def test_tokens_beyond_the_shorter_completion_can_be_left_out_of_policy_and_reference(bench: Bench) -> None:
    logps = []
    for alpha in (1.0, 0.0):
        assert bench.run(dpo, ld_alpha=alpha).metrics["loss_at_step_0"] == pytest.approx(math.log(2), abs=1e-5)
        logps.append(json.loads((bench.output / "metrics.jsonl").read_text().splitlines()[0]))
    assert logps[1]["logps/chosen"] > logps[0]["logps/chosen"] + 5
    assert logps[1]["logps/rejected"] == pytest.approx(logps[0]["logps/rejected"], rel=1e-5)


def test_a_share_of_the_prompts_is_measured_and_not_trained_on(bench: Bench) -> None:
    rows = [row(number) for number in range(40)]
    outcome = bench.run(dpo, rows, held_out_share=0.25)
    held_out = outcome.metrics["pairs_held_out"]
    assert 4 <= held_out <= 16
    assert outcome.metrics["pairs_train"] == 40 - held_out
    assert outcome.metrics["steps"] == math.ceil((40 - held_out) / 4)
    assert 0 <= outcome.metrics["held_out/rewards/accuracies"] <= 1
    assert outcome.metrics["held_out/loss"] != outcome.metrics["loss"]
    # Which prompts they are follows from the prompt, and a run on the other rows alone trains the same model; the reference is
    # computed in other batches there, which moves the last digits.
    is_held_out = held_out_records(rows, share=0.25, seed=1)
    alone = bench.run(dpo, [each for each, is_out in zip(rows, is_held_out, strict=True) if not is_out], held_out_share=0.0)
    assert alone.metrics["pairs_held_out"] == 0
    assert alone.metrics["loss"] == pytest.approx(outcome.metrics["loss"], rel=1e-5)
    assert "held_out/loss" not in alone.metrics


def test_of_too_few_prompts_all_are_trained_on(bench: Bench) -> None:
    outcome = bench.run(dpo, [row(1)], held_out_share=0.99)
    assert (outcome.metrics["pairs_train"], outcome.metrics["pairs_held_out"]) == (1, 0)


def test_kto_learns_from_completions_that_are_good_or_bad(bench: Bench) -> None:
    rows = [side for number, pair in enumerate(ROWS) for side in sides_of(pair)[number % 3 > 0 :]]
    outcome = bench.run(kto, rows, num_epochs=3, held_out_share=0.5)
    metrics = outcome.metrics
    assert metrics["loss_at_step_0"] == pytest.approx(0.5, abs=1e-4)
    assert metrics["rewards/desirable"] > metrics["rewards/undesirable"]
    assert metrics["rewards/margins"] > 0
    sides = (metrics[f"held_out/rewards/{side}"] for side in ("desirable", "undesirable"))
    assert metrics["held_out/rewards/margins"] == pytest.approx(next(sides) - next(sides))
    assert {"kl", "held_out/kl", "held_out/rewards/desirable"} <= metrics.keys()
    assert (metrics["pairs_train"] + metrics["pairs_held_out"], outcome.rows_in) == (len(rows), len(rows))
    bench.run(kto, rows, num_epochs=3, beta=0.5, undesirable_weight=2.0)
    assert bench.reused() == 0  # another split is trained on in another order
    bench.run(kto, rows, num_epochs=3, held_out_share=0.5, beta=0.5, undesirable_weight=2.0)
    assert bench.reused() == 1


def test_kto_takes_both_sides_of_preferences(bench: Bench) -> None:
    pairs, rows = bench.run(kto), bench.run(kto, [side for pair in ROWS for side in sides_of(pair)])
    assert pairs.metrics == rows.metrics
    assert pairs.rows_in == 2 * len(ROWS)
    assert [note for note in bench.notes if "both sides" in note] == [
        "both sides of 8 pairs are used: 16 completions, half of them good"
    ]


def test_kto_refuses_what_gives_no_kl(bench: Bench) -> None:
    with pytest.raises(DataError, match="all rows have the same prompt"):
        bench.run(kto, sides_of(ROWS[0]))
    (problem,) = kto.Config.check_fields({"batch_size": 1})
    assert "must be 2 or more" in problem.text
