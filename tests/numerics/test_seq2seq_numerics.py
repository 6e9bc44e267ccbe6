"""Encoder–decoder models: our log-probabilities, losses and greedy tokens are those of the plain model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.config.sections import Optimization
from align.engines.protocol import GenerationRequest, SamplingSettings
from align.engines.seq2seq_engine import Seq2SeqEngine
from align.models.dropout import set_dropout
from align.models.folder import ModelFolder
from align.models.load import load_seq2seq_lm
from align.models.save import save_model
from align.models.seq2seq import Seq2SeqCollator, label_logps
from align.scoring.likelihood import Seq2SeqLikelihoodModel
from align.testing import run_context, tiny_seq2seq_lm
from align.training.loop import train, training_arguments
from align.training.seq2seq import Seq2SeqSftTrainer

pytestmark = pytest.mark.slow

ROWS = [([5, 6, 7, 2], [8, 9, 2]), ([11, 2], [13, 2]), ([20, 21, 22, 23, 24, 2], [25, 26, 27, 28, 2]), ([30, 2], [31, 32, 33, 2])]
# A stop token that greedy completions of a random model never draw, and some that they do.
SETTINGS = SamplingSettings(
    temperature=0.0, top_p=1.0, top_k=None, max_completion_tokens=12, num_candidates=1, stop_token_ids=(2,)
)


@pytest.fixture(scope="module", params=["scaled head", "unscaled head"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As T5, which scales the states before its head, and as T5 1.1, which does not."""
    changes: dict[str, Any] = (
        {} if request.param == "scaled head" else {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}
    )
    return tiny_seq2seq_lm(tmp_path_factory.mktemp("t5") / "base", seed=1, **changes)


def plain_logps(model: Any, row: tuple[list[int], list[int]]) -> torch.Tensor:
    """[completion] by the model's own loss, one token at a time: mean cross-entropy of a single label."""
    prompt, completion = (torch.tensor([ids]) for ids in row)
    values = []
    for place in range(completion.shape[1]):
        labels = torch.full_like(completion, -100)
        labels[0, place] = completion[0, place]
        start = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.no_grad():
            values.append(
                -model(input_ids=prompt, decoder_input_ids=torch.cat([start, completion[:, :-1]], 1), labels=labels).loss
            )
    return torch.stack(values)


def collator(model: Any) -> Seq2SeqCollator:
    return Seq2SeqCollator(pad_token_id=0, start_token_id=model.config.decoder_start_token_id)


def test_logps_are_the_models_own_cross_entropy_padded_or_not(base: Path) -> None:
    model = load_seq2seq_lm(base)
    together = label_logps(model, collator(model)(ROWS)).detach()
    for number, row in enumerate(ROWS):
        expected, length = plain_logps(model, row), len(row[1])
        alone = label_logps(model, collator(model)([row])).detach()[0]
        assert torch.allclose(alone, expected, atol=1e-5)
        assert torch.allclose(together[number, :length], expected, atol=1e-5)
        assert together[number, length:].tolist() == [0.0] * (together.shape[1] - length)


def test_likelihoods_do_not_depend_on_the_batch(base: Path) -> None:
    model = load_seq2seq_lm(base)
    expected = [float(plain_logps(model, row).sum()) for row in ROWS]
    for batch_tokens in (1, 12, 1000):
        likelihood = Seq2SeqLikelihoodModel(ModelFolder(base), batch_tokens=batch_tokens)
        assert likelihood.completion_logps(ROWS) == pytest.approx(expected, abs=1e-4)
    assert likelihood.completion_logps([([5, 2], [])]) == [0.0]
    assert likelihood.perplexity(["a text"]) is None  # type: ignore[func-returns-value]


def test_a_saved_model_is_the_model_even_with_a_head_of_its_own(base: Path, tmp_path: Path) -> None:

    model = load_seq2seq_lm(base)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)))
    for folder in (tmp_path / "once", tmp_path / "twice"):
        save_model(model, ModelFolder(base).tokenizer, folder)
        again = load_seq2seq_lm(folder)
        assert torch.equal(label_logps(model, collator(model)(ROWS)), label_logps(again, collator(model)(ROWS)))
        model = again


def trainer_of(base: Path, work: Path, **changes: Any) -> Seq2SeqSftTrainer:
    model = load_seq2seq_lm(base)
    set_dropout(model, 0.0)
    config = Optimization(**{"precision": "float32", "batch_size": 4, **changes})
    return Seq2SeqSftTrainer(model, ROWS, collator(model), training_arguments(config, run_context(work), num_rows=len(ROWS)))


def test_the_training_loss_is_the_mean_over_completion_tokens(base: Path, tmp_path: Path) -> None:
    trainer = trainer_of(base, tmp_path)
    inputs = trainer._prepare_inputs(trainer.data_collator(ROWS))
    trainer.model.eval()
    expected = -torch.cat([plain_logps(trainer.model, row) for row in ROWS]).mean()
    assert trainer.compute_loss(trainer.model, inputs).item() == pytest.approx(float(expected), rel=1e-5)
    assert trainer._get_num_items_in_batch([inputs], torch.device("cpu")) == sum(len(completion) for _, completion in ROWS)
    assert trainer.row_fill() == sum(len(p) + len(c) for p, c in ROWS) / (4 * (6 + 5))


def test_accumulation_equals_one_large_batch(base: Path, tmp_path: Path) -> None:
    weights = []
    for micro in ("auto", 1, 2):
        work = tmp_path / str(micro)
        trainer = trainer_of(base, work, micro_batch_size=micro, num_epochs=4, learning_rate=1e-3)
        history = train(trainer, run_context(work))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
        assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    for other in weights[1:]:
        difference = (weights[0] - other).abs()
        assert difference.max() < 2e-4  # Adam divides tiny gradients by tiny roots; the mean shows that it is rounding
        assert difference.mean() < 1e-6


def test_dropout_of_attention_is_set_too(base: Path) -> None:
    """T5 keeps it as a number, not as a layer: with every dropout at zero two passes in training mode are equal."""
    model = load_seq2seq_lm(base).train()
    inputs = collator(model)(ROWS)
    assert not torch.equal(label_logps(model, inputs), label_logps(model, inputs))
    set_dropout(model, 0.0)
    assert torch.equal(label_logps(model, inputs), label_logps(model, inputs))


@pytest.mark.parametrize("spread", [2.0, 4.0])
def test_greedy_tokens_are_those_of_generate(tmp_path: Path, spread: float) -> None:
    base = tiny_seq2seq_lm(tmp_path / "base", seed=1, initializer_factor=spread)
    prompts = [[10 + number, 20, 30 + number, 40, 2][number % 3 :] for number in range(10)]
    model = load_seq2seq_lm(base)
    # A token that some of the completions contain ends them.
    often = model.generate(torch.tensor([prompts[1]]), do_sample=False, max_new_tokens=6, eos_token_id=[399])[0, 3].item()
    engine = Seq2SeqEngine(ModelFolder(base), dtype="float32", max_model_tokens=64)
    outputs = engine.generate([GenerationRequest(ids, 0) for ids in prompts], replace(SETTINGS, stop_token_ids=(often,)))
    for ids, (completion,) in zip(prompts, outputs, strict=True):
        options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": often}
        assert completion.token_ids == model.generate(torch.tensor([ids]), **options)[0, 1:].tolist()
    assert {completion.finish_reason for (completion,) in outputs} == {"stop", "length"}
    assert len({tuple(completion.token_ids) for (completion,) in outputs}) > 3
