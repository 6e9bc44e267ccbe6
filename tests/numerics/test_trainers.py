"""Fine-tuning: the loss is a mean over completion tokens of the whole optimizer batch, and TRL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align.config.sections import Optimization
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.runtime.context import RunContext
from align.scoring.likelihood import completion_logps
from align.testing import run_context
from align.training.loop import train, training_arguments
from align.training.packing import TrainingSample, build_row
from align.training.trl_trainers import add_label_logps, sft_trainer

pytestmark = pytest.mark.slow

PAIRS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 2], "rejected_ids": [10, 2]},
    {"prompt_ids": [11, 12], "chosen_ids": [13, 2], "rejected_ids": [14, 15, 16, 2]},
    {"prompt_ids": [20], "chosen_ids": [21, 22, 2], "rejected_ids": [23, 2]},
]


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return run_context(tmp_path)


def first_loss(trainer: Any, indices: range) -> float:
    trainer.model.eval()
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[index] for index in indices]))
    with torch.no_grad(), trainer.compute_loss_context_manager():
        return float(trainer.compute_loss(trainer.model, inputs))


def test_sft_is_the_mean_over_completion_tokens_of_the_whole_batch(project_template: Path, context: RunContext) -> None:
    base = project_template / "base"
    samples = [TrainingSample(pair["prompt_ids"], pair["chosen_ids"]) for pair in PAIRS]
    rows = [build_row(samples[:2]), build_row(samples[2:])]
    arguments = training_arguments(Optimization(precision="float32"), context, num_rows=2)
    trainer = sft_trainer(load_causal_lm(base), load_format(ModelFolder(base)), rows, arguments)
    model = load_causal_lm(base).eval()
    logps = completion_logps(
        model, [(sample.prompt_token_ids, sample.completion_token_ids) for sample in samples], pad_token_id=0, batch_tokens=64
    )
    tokens = sum(len(sample.completion_token_ids) for sample in samples)
    assert first_loss(trainer, range(2)) == pytest.approx(-sum(logps) / tokens, rel=1e-5)


# Adam divides tiny gradients by tiny roots, so that rounding turns a step of learning_rate around; the mean shows that it is
# rounding. bfloat16 rounds to 2^-8, so that more gradients near zero change their sign: after 4 steps of at most 1e-2 the largest
# difference was 2e-2, the mean 4.5e-5.
@pytest.mark.parametrize(("precision", "largest", "mean"), [("float32", 2e-4, 1e-6), ("bfloat16", 6e-2, 2e-4)])
def test_accumulation_equals_one_large_batch(
    project_template: Path, tmp_path: Path, precision: Any, largest: float, mean: float
) -> None:
    base = project_template / "base"
    rows = [
        build_row([TrainingSample(pair["prompt_ids"], pair[side])]) for pair in PAIRS for side in ("chosen_ids", "rejected_ids")
    ]
    weights = []
    for micro in ("auto", 1, 3):
        context = run_context(tmp_path / str(micro))
        config = Optimization(precision=precision, batch_size=6, micro_batch_size=micro, num_epochs=4, learning_rate=1e-2)
        trainer = sft_trainer(
            load_causal_lm(base), load_format(ModelFolder(base)), rows, training_arguments(config, context, num_rows=6)
        )
        history = train(trainer, context)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
        assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    for other in weights[1:]:
        difference = (weights[0] - other).abs()
        assert difference.max() < largest
        assert difference.mean() < mean


def test_our_loss_is_that_of_trl(project_template: Path, context: RunContext) -> None:
    """TRL's own compute_loss, on the same trainer and batch."""
    from trl import SFTTrainer

    base = project_template / "base"
    arguments = training_arguments(Optimization(precision="float32"), context, num_rows=3)
    rows = [build_row([TrainingSample(pair["prompt_ids"], pair["chosen_ids"])]) for pair in PAIRS]
    sft = sft_trainer(load_causal_lm(base), load_format(ModelFolder(base)), rows, arguments)
    inputs = sft.data_collator([sft.train_dataset[index] for index in range(3)])
    ours = sft.compute_loss(sft.model, dict(inputs))
    theirs = SFTTrainer.compute_loss(sft, sft.model, dict(inputs))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_a_head_in_chunks_has_the_gradients_of_one_piece(project_template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.models import head

    model = load_causal_lm(project_template / "base")
    add_label_logps(model)
    ids = torch.tensor([[5, 6, 7, 8, 9, 2], [11, 12, 13, 2, 0, 0]])
    labels = ids.masked_fill(torch.tensor([[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 1]]).bool(), -100)
    gradients = []
    for size in (4096, 2):
        monkeypatch.setattr(head, "logits_chunk_tokens", lambda vocabulary, device, size=size: size)
        model.zero_grad()
        logps = model(input_ids=ids, logps_of=labels)
        logps.sum().backward()
        gradients.append((logps.detach(), [p.grad.clone() for p in model.parameters()]))
    # A matrix product over other rows may round the last bit otherwise.
    torch.testing.assert_close(gradients[1][0], gradients[0][0], rtol=1e-6, atol=1e-6)
    for whole, chunked in zip(gradients[0][1], gradients[1][1], strict=True):
        # Of the tensor's largest gradient: small ones are differences of large ones. Measured with AVX2 alone: 2e-7 to 7e-7.
        torch.testing.assert_close(chunked, whole, rtol=0, atol=2e-6 * float(whole.abs().max()))
