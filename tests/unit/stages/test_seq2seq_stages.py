"""Encoder–decoder models through sft, generate and compare, beside a causal model."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align import load_recipe, run_recipe
from align.errors import AlignError, Interrupted, RecipeError
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm, load_reward_model, load_seq2seq_lm
from align.models.save import save_model
from align.records import Candidate, ScoredCandidate
from align.report.results import Results
from align.report.table import render_table
from align.runtime.events import Progress
from align.stage import StageOutcome
from align.stages import dpo, generate, orpo, ppo, reward_model, select_checkpoint, sft
from align.store.artifact import Artifact, read_rows
from align.testing import Recorder, input_artifact, stage_context, tiny_causal_lm, tiny_reward_model, tiny_seq2seq_lm
from align.testing.project import write_jsonl

pytestmark = pytest.mark.slow

LESSONS = [(f"I lost key {number}.", ("Oh no!", "That must hurt.", "속상했겠다.")[number % 3]) for number in range(12)]
RECIPE = """\
name: two-sided
seed: 5
inputs:
  t5:        {kind: model, path: t5}
  causal:    {kind: model, path: causal}
  reward:    {kind: reward_model, path: reward}
  lessons:   {kind: instructions, path: lessons.jsonl}
  held_out:  {kind: prompts, path: held_out.jsonl}
  retention: {kind: text, path: retention.txt}
stages:
  sft:     {stage: sft, model: t5, data: lessons, num_epochs: 2, learning_rate: 1e-2, batch_size: 4}
  more:    {stage: sft, model: sft, data: lessons, learning_rate: 1e-2, batch_size: 4}
  sampled: {stage: generate, model: sft, prompts: held_out, num_candidates: 3, max_completion_tokens: 8}
  compare: {stage: compare, models: [sft, more, t5, causal], baseline: sft, prompts: held_out, retention: retention,
            max_completion_tokens: 8, bootstrap_resamples: 200, scorers: {rm: reward}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, data and a recipe; must not be written to."""
    folder = tmp_path_factory.mktemp("two-sided")
    texts = [text for lesson in LESSONS for text in lesson] * 3
    tiny_seq2seq_lm(folder / "t5", texts=texts, seed=1)
    tiny_causal_lm(folder / "causal", texts=texts, seed=2)
    tiny_reward_model(folder / "reward", texts=texts, seed=3)
    write_jsonl(folder / "lessons.jsonl", ({"prompt": prompt, "completion": text} for prompt, text in LESSONS))
    write_jsonl(folder / "held_out.jsonl", ({"id": f"h{n}", "prompt": f"I broke cup {n}."} for n in range(5)))
    (folder / "retention.txt").write_text("Birds sing at dawn.\nA train was late.\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    """The events of the run."""
    return Recorder()


@pytest.fixture(scope="module")
def finished(place: Path, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run; must not be written to. vLLM, which would serve the causal model, takes long to start."""
    recipe = load_recipe(place, ["stages.compare.engine=transformers"])
    return run_recipe(recipe, tmp_path_factory.mktemp("runs"), sinks=[recorder]).folder


def steps_of(recorder: Recorder) -> float:
    return max((event.done for event in recorder.of(Progress)), default=0)


def curve_of(stage: Path) -> list[dict[str, float]]:
    """The log of a training, without its last line: that is transformers' mean since the last start."""
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()][:-1]


def manifest_of(folder: Path, stage: str) -> Any:
    return json.loads((folder / "stages" / stage / "manifest.json").read_text())


def test_sft_learns_and_keeps_every_epoch(finished: Path) -> None:
    stage = finished / "stages" / "sft"
    curve = curve_of(stage)
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    metrics = manifest_of(finished, "sft")["metrics"]
    assert metrics["architecture"] == "encoder_decoder"
    assert 0.5 < metrics["row_fill"] <= 1
    assert "packed_rows" not in metrics
    assert metrics["trained_tokens"] == 2 * metrics["tokens"] > 0
    assert sorted(path.name for path in (stage / "epochs").iterdir()) == ["epoch-1", "epoch-2"]
    last = (stage / "epochs" / "epoch-2" / "model.safetensors").read_bytes()
    assert last == (stage / "model" / "model.safetensors").read_bytes()
    assert (stage / "epochs" / "epoch-1" / "model.safetensors").read_bytes() != last


def test_generate_takes_transformers_and_says_so(finished: Path) -> None:
    manifest = manifest_of(finished, "sampled")
    assert manifest["rows_out"] == 15
    assert "transformers" in manifest["versions"]
    assert "vllm" not in manifest["versions"]
    assert manifest["config"]["engine"] == "auto"
    assert manifest["metrics"]["prompt_tokens"] > 0


def test_a_comparison_of_both_kinds(finished: Path, recorder: Recorder) -> None:
    results = Results.from_json(json.loads((finished / "results.json").read_text()))
    kl = {name: row.kl_to_baseline for name, row in results.models.items()}
    assert kl["more"] is not None
    assert kl["t5"] is not None
    assert kl["more"].mean != 0
    assert kl["sft"] is None
    assert kl["causal"] is None
    perplexity = {name: row.retention_perplexity for name, row in results.models.items()}
    assert [name for name, value in perplexity.items() if value is not None] == ["causal"]
    assert all(row.scores["rm"].nonfinite == 0 for row in results.models.values())
    told = "no perplexity, which is not defined for an encoder–decoder model on plain text"
    assert sorted(note for note in recorder.notes if told in note) == [f"{name}: {told}" for name in ("more", "sft", "t5")]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_table(results))
    cells = next(line.split() for line in captured.get().splitlines() if line.startswith("more"))
    assert "–" in cells


def test_kl_is_the_difference_of_log_probabilities_on_own_answers(finished: Path) -> None:
    """Recomputed from the answers, with the models' own cross-entropy."""
    import torch

    from align.data.plain import format_of

    folders = {name: finished / "stages" / name / "model" for name in ("sft", "more")}
    chat_format = format_of(ModelFolder(folders["sft"]).tokenizer, ModelFolder(folders["sft"]).encoder_decoder, "sft")
    models = {name: load_seq2seq_lm(folder) for name, folder in folders.items()}
    differences = []
    for row in read_rows(finished / "stages" / "compare" / "answers" / "more.jsonl", ScoredCandidate):
        prompt, labels = torch.tensor([chat_format.encode_prompt(row.prompt)]), torch.tensor([row.completion_token_ids])
        logps = {}
        for name, model in models.items():
            with torch.no_grad():
                logps[name] = -model(input_ids=prompt, labels=labels).loss.item() * labels.shape[1]
        differences.append(logps["more"] - logps["sft"])
    results = json.loads((finished / "results.json").read_text())
    assert results["models"]["more"]["kl_to_baseline"]["mean"] == pytest.approx(sum(differences) / 5, abs=1e-4)


def test_vllm_is_refused_when_the_recipe_is_read(place: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(place, ["stages.sampled.engine=vllm", "stages.compare.engine=vllm"])
    told = str(caught.value)
    assert told.count("which vllm does not serve; write transformers, or leave engine out") == 2
    assert "stages.sampled.engine: 'sft' is an encoder–decoder model (T5ForConditionalGeneration)" in told


def row(number: int, prompt: str) -> dict[str, Any]:
    return {"id": f"r{number}", "prompt": [{"role": "user", "content": prompt}]}


class Bench:
    """Runs single stages in this process."""

    def __init__(self, place: Path, folder: Path) -> None:
        self.folder = folder
        self.artifacts: dict[str, Artifact] = {}
        self.add("t5", place / "t5", "model")

    def add(self, name: str, path: Path, kind: str) -> None:
        self.artifacts[name] = input_artifact(name, path, kind)

    def run(self, stage: Any, output: str = "out", stop_after: int | None = None, **fields: Any) -> StageOutcome:
        recorder = Recorder()
        context = stage_context(
            stage.Config.model_validate({"model": "t5", **fields}),
            self.folder / output,
            self.artifacts,
            emit=recorder.handle,
            stop_requested=lambda: signal.SIGTERM if stop_after is not None and steps_of(recorder) >= stop_after else None,
            store_root=self.folder / "store",
        )
        return stage.run(context)  # type: ignore[no-any-return]


def with_a_head_of_its_own(source: Path, folder: Path) -> Path:
    """As T5 1.1: the head is not the embedding, and is trained apart from it."""
    import torch

    model = load_seq2seq_lm(source)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)))
    save_model(model, ModelFolder(source).tokenizer, folder)
    return folder


@pytest.fixture
def bench(place: Path, tmp_path: Path) -> Bench:
    result = Bench(place, tmp_path)
    for name, kind in (("lessons", "instructions"), ("prompts", "prompts")):
        (tmp_path / name).mkdir()
        result.add(name, tmp_path / name, kind)
    lessons = list(enumerate(LESSONS))
    write_jsonl(tmp_path / "lessons" / "rows.jsonl", ({**row(n, prompt), "completion": text} for n, (prompt, text) in lessons))
    write_jsonl(tmp_path / "prompts" / "rows.jsonl", (row(n, prompt) for n, (prompt, _) in lessons))
    return result


@pytest.mark.parametrize(("stop_after", "own_head"), [(1, False), (4, False), (4, True)])
def test_a_stopped_fine_tuning_resumes_to_the_same_bytes(bench: Bench, stop_after: int, own_head: bool) -> None:
    if own_head:
        bench.add("t5", with_a_head_of_its_own(bench.artifacts["t5"].path, bench.folder / "t5"), "model")
    options: dict[str, Any] = {"data": "lessons", "num_epochs": 2, "batch_size": 4, "micro_batch_size": 2, "dropout": 0.1}
    whole = bench.run(sft, "whole", **options)
    with pytest.raises(Interrupted, match=f"Stopped at step {stop_after} of 6"):
        bench.run(sft, "cut", stop_after=stop_after, **options)
    assert bench.run(sft, "cut", **options).metrics == whole.metrics
    for name in ("model/model.safetensors", "epochs/epoch-1/model.safetensors"):
        assert (bench.folder / "cut" / name).read_bytes() == (bench.folder / "whole" / name).read_bytes(), name
    assert curve_of(bench.folder / "cut") == curve_of(bench.folder / "whole")


def test_what_was_learnt_is_what_is_sampled(bench: Bench) -> None:
    """Trained and sampled on the same tokens: after learning the lessons by heart, greedy completions are the lessons', ended."""
    bench.run(sft, "learnt", data="lessons", num_epochs=60, batch_size=12, learning_rate=1e-2, precision="float32")
    bench.add("t5", bench.folder / "learnt" / "model", "model")
    bench.run(generate, "sampled", prompts="prompts", temperature=0, num_candidates=1, max_completion_tokens=40)
    rows = list(read_rows(bench.folder / "sampled" / "rows.jsonl", Candidate))
    assert [(row.completion, row.finish_reason) for row in rows] == [(text, "stop") for _, text in LESSONS]


def test_packing_changes_nothing(bench: Bench) -> None:
    for name, packing in (("with", True), ("without", False)):
        bench.run(sft, name, data="lessons", batch_size=4, packing=packing)
    first, second = (bench.folder / name / "model" / "model.safetensors" for name in ("with", "without"))
    assert first.read_bytes() == second.read_bytes()


REFUSING: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpo": (dpo, {"pairs": "lessons"}),
    "orpo": (orpo, {"pairs": "lessons"}),
    "reward_model": (reward_model, {"data": "lessons"}),
    "ppo": (ppo, {"prompts": "lessons", "scorers": {"s": {"rules": [{"type": "length", "name": "s", "max_words": 5}]}}}),
    "select_checkpoint": (
        select_checkpoint,
        {"prompts": "lessons", "scorer": {"rules": [{"type": "length", "name": "s", "max_words": 5}]}},
    ),
}


@pytest.mark.parametrize("name", REFUSING)
def test_every_other_stage_refuses_by_name(bench: Bench, name: str) -> None:
    stage, fields = REFUSING[name]
    with pytest.raises(RecipeError) as caught:
        bench.run(stage, **fields)
    assert caught.value.message == (
        f"{name}: t5 (t5.x) is an encoder–decoder model (T5ForConditionalGeneration); sft, generate and compare take such "
        f"models, {name} does not"
    )
    assert caught.value.exit_code == 2


def test_the_loaders_do_not_take_the_other_kind(place: Path, tmp_path: Path) -> None:
    for load in (load_causal_lm, load_reward_model):
        with pytest.raises(RecipeError, match="is an encoder–decoder model"):
            load(place / "t5")
    with pytest.raises(RecipeError, match="transformers cannot load this model"):
        load_seq2seq_lm(place / "causal")
    config = json.loads((place / "t5" / "config.json").read_text())
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (place / "t5").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    for change, told in (
        ({"decoder_start_token_id": None}, "no decoder_start_token_id"),
        ({"num_layers": 3}, "lacks the weights"),
    ):
        (broken / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(AlignError, match=told):
            load_seq2seq_lm(broken)
