"""After an out-of-memory error a training goes on in smaller passes, as if it had taken them from the start."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

from align import load_recipe, run_recipe
from align.config.sections import Optimization
from align.errors import StageError
from align.models.chat_format import load_format
from align.models.dropout import set_dropout
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.pipeline.estimate.machine import Machine
from align.pipeline.plan import make_plan
from align.scoring.batching import map_batches
from align.stages import dpo
from align.store.seal import read_sealed
from align.testing import Recorder, pairwise_config, random_pairs, run_context
from align.training.loop import train, training_arguments
from align.training.packing import TrainingSample, build_row
from align.training.pairwise.collator import PairCollator, TrainingPair
from align.training.pairwise.reference import compute_reference_logps
from align.training.pairwise.trainer import PairwiseTrainer, prepare_model
from align.training.trl_trainers import sft_trainer

pytestmark = pytest.mark.slow

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of 8.00 GiB of which 1.00 GiB is free. Of the"
REFERENCE = {"reference_chosen_logps": -30.0, "reference_rejected_logps": -28.0}
PAIRS = [TrainingPair(pair, REFERENCE) for pair in random_pairs(20, seed=2, prompt_tokens=14, completion_tokens=9)]
ROWS = [build_row([TrainingSample(pair.tokens.prompt_token_ids, pair.tokens.chosen_token_ids)]) for pair in PAIRS]
Fail = Callable[[int, int], bool]


def trainer_of(kind: str, base: Path, work: Path, micro: int, recorder: Recorder) -> tuple[Any, Any]:
    torch.manual_seed(1)
    config = Optimization(precision="float32", batch_size=8, micro_batch_size=micro, num_epochs=2, learning_rate=0.02)
    context = run_context(work, emit=recorder.handle)
    work.mkdir(exist_ok=True)
    arguments = {**training_arguments(config, context, num_rows=len(PAIRS)), "optim": "sgd"}
    if kind == "sft":
        model = load_causal_lm(base)
        set_dropout(model, 0.2)
        return sft_trainer(model, load_format(ModelFolder(base)), ROWS, arguments), context
    collator = PairCollator(form="padded", pad_token_id=0, row_tokens=40)
    return PairwiseTrainer(prepare_model(load_causal_lm(base)), PAIRS, pairwise_config(dpo), collator, arguments), context


def failing(monkeypatch: pytest.MonkeyPatch, fail: Fail, *, error: type[Exception] = torch.OutOfMemoryError) -> list[bool]:
    """Let passes through a Llama fail that `fail` says, by their number from 1 and their rows.

    Returns:
        An entry for every time that memory is freed: whether the failed pass was gone by then.
    """
    forward, count = LlamaModel.forward, 0
    states: list[weakref.ref[torch.Tensor]] = []
    freed: list[bool] = []

    def forward_or_fail(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        output = forward(self, *arguments, **options)
        if fail(count, len(options["input_ids"])):
            states.append(weakref.ref(output.last_hidden_state))
            raise error(MESSAGE)
        return output

    monkeypatch.setattr(LlamaModel, "forward", forward_or_fail)
    # The real one takes a second: it collects the garbage of all tests.
    for module in ("align.training.pass_size", "align.scoring.batching"):
        monkeypatch.setattr(f"{module}.free_memory", lambda: freed.append(all(state() is None for state in states)))
    return freed


def weights_of(trainer: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def trained(kind: str, base: Path, work: Path, micro: int) -> tuple[torch.Tensor, list[dict[str, float]], list[str]]:
    recorder = Recorder()
    trainer, context = trainer_of(kind, base, work, micro, recorder)
    history = train(trainer, context)
    return weights_of(trainer), history.rows, recorder.notes


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_failure_in_the_first_step_leaves_nothing_behind(
    project_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Gradients, metrics and the random numbers of dropout: to the byte what passes of half the size give from the start."""
    base = project_template / "base"
    expected, curve, _ = trained(kind, base, tmp_path / "small", 2)
    # In the second pass: the gradients of the first one are there.
    freed = failing(monkeypatch, lambda number, rows: number == 2)
    found, other, notes = trained(kind, base, tmp_path / "halved", 4)
    assert freed == [True]
    assert torch.equal(found, expected)
    assert other == curve
    assert notes == [
        "out of memory with 4 rows in a forward pass; computed again with 2 (CUDA out of memory. Tried to allocate 2.00 GiB. GPU "
        "0 has a capacity of 8.00 GiB of which 1.00 GiB is free)"
    ]
    kept = read_sealed(tmp_path / "halved" / "memory.json")
    assert (kept["pass_size"], kept["gradient_checkpointing"]) == (2, False)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_later_failure_changes_nothing_but_rounding(
    project_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    base = project_template / "base"
    monkeypatch.setattr("align.models.dropout.set_dropout", lambda *_: None)
    monkeypatch.setitem(globals(), "set_dropout", lambda *_: None)  # it draws other numbers for other passes
    expected, curve, _ = trained(kind, base, tmp_path / "whole", 8)
    # The fourth step, twice: from 8 rows to 2. In the padded form a pair has two.
    failing(monkeypatch, lambda number, rows: number >= 4 and rows > (2 if kind == "sft" else 4))
    found, other, notes = trained(kind, base, tmp_path / "halved", 8)
    assert len(notes) == 2
    assert (found - expected).abs().max() < 1e-6
    assert len(other) == len(curve)
    for row, other_row in zip(curve, other, strict=True):
        assert other_row == pytest.approx(row, rel=2e-5)


def test_an_interrupted_training_goes_on_with_what_it_came_to(
    project_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = project_template / "base"
    failing(monkeypatch, lambda number, rows: rows > 3)
    assert len(trained("sft", base, tmp_path / "work", 8)[2]) == 2
    recorder = Recorder()
    trainer, context = trainer_of("sft", base, tmp_path / "work", 8, recorder)
    train(trainer, context)
    assert recorder.notes == []
    assert trainer.pass_size.size == 2


def test_one_row_that_does_not_fit_is_an_error(project_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_of(trainer_of("sft", project_template / "base", tmp_path, 8, Recorder())[0])
    failing(monkeypatch, lambda number, rows: True)
    trainer, context = trainer_of("sft", project_template / "base", tmp_path, 8, Recorder())
    with pytest.raises(
        StageError, match=r"test: out of memory with 1 rows in a forward pass, the fewest: CUDA .* 2\.00 GiB"
    ) as found:
        train(trainer, context)
    assert "gradient_checkpointing" in str(found.value.hint)
    assert torch.equal(weights_of(trainer), before)


def test_one_row_that_does_not_fit_is_computed_with_less_memory_where_that_is_left_to_the_machine(
    project_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again after an interruption. In float32 on a CPU gradient checkpointing changes no byte."""
    base = project_template / "base"
    expected, *_ = trained("sft", base, tmp_path / "one", 1)
    failing(monkeypatch, lambda number, rows: number <= 4)  # 8, 4, 2, 1
    for notes in (4, 0):
        recorder = Recorder()
        trainer, context = trainer_of("sft", base, tmp_path / "auto", 8, recorder)
        train(trainer, context, gradient_checkpointing="auto")
        assert torch.equal(weights_of(trainer), expected)
        assert trainer.model.is_gradient_checkpointing
        assert trainer.pass_size.recomputes
        assert ["computed again with gradient_checkpointing" in note for note in recorder.notes] == [False, False, False, True][
            :notes
        ]


def test_other_errors_are_not_taken_for_it(project_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MESSAGE", "mat1 and mat2 shapes cannot be multiplied")
    failing(monkeypatch, lambda number, rows: True, error=RuntimeError)
    trainer, context = trainer_of("sft", project_template / "base", tmp_path, 8, Recorder())
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(trainer, context)


def test_passes_without_gradients_become_smaller(
    project_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = prepare_model(load_causal_lm(project_template / "base"))
    tokens = [pair.tokens for pair in PAIRS]
    collator, recorder = PairCollator(form="padded", pad_token_id=0, row_tokens=40), Recorder()
    context = run_context(tmp_path, emit=recorder.handle)
    expected = compute_reference_logps(model, tokens, collator, context, precision="float32")
    freed = failing(monkeypatch, lambda number, rows: rows > 25)
    found = compute_reference_logps(model, tokens, collator, context, precision="float32")
    assert [row.id for row in found] == [row.id for row in expected]
    assert [row.chosen_logps for row in found] == pytest.approx([row.chosen_logps for row in expected], rel=1e-5)
    assert freed == [True]
    (note,) = recorder.notes
    assert note.startswith("out of memory with 20 sequences in a forward pass; going on with 10 (CUDA out of memory. Tried")

    def squares(batch: list[int]) -> torch.Tensor:
        if len(batch) > 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return torch.tensor(batch).square().float()

    reports: list[int] = []
    assert map_batches([1, 5, 5, 2, 5, 4], 100, squares, reports.append) == [0, 1, 4, 9, 16, 25]
    assert reports[-1] == 6
    assert "going on with 3" in capsys.readouterr().out


def test_a_run_does_what_was_chosen_and_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("cpu", "memory", 128 << 20, 128 << 20, 50 << 30, has_bfloat16=False)
    monkeypatch.setattr("align.pipeline.jobs.read_machine", lambda folder: machine)
    recorder = Recorder()
    recipe = load_recipe(project, ["stages.sft.num_epochs=1"])
    result = run_recipe(recipe, project / "runs", only="sft", sinks=[recorder], in_process=True)
    (note,) = [
        note for note in recorder.notes if note.startswith("micro_batch_size 1 and gradient_checkpointing, to fit: about ")
    ]
    assert note.endswith(" MiB of 128 MiB")
    plan = make_plan(recipe, project / "runs")
    (stage,) = [stage for stage in plan.stages if stage.name == "sft"]
    assert stage.status == "cached"
    manifest = stage.entry.read_manifest()
    assert manifest is not None
    assert (manifest.metrics["micro_batch_size"], manifest.metrics["gradient_checkpointing"]) == (1, True)
    assert (manifest.config["micro_batch_size"], manifest.config["gradient_checkpointing"]) == ("auto", "auto")
    assert result.stages["sft"].state == "done"
