"""Scores and log-probabilities do not depend on batch size or order, and equal the plain computation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from align.losses import sequence_logps
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.scoring.batching import length_sorted_batches
from align.scoring.likelihood import LikelihoodModel, completion_logps
from align.scoring.reward_model import RewardModelScorer
from align.testing import tiny_reward_model

CHANCE = random.Random(3)
SEQUENCES = [[CHANCE.randrange(3, 250) for _ in range(CHANCE.randrange(1, 60))] for _ in range(40)]
ROWS = [(sequence[: len(sequence) // 3], sequence[len(sequence) // 3 :]) for sequence in SEQUENCES]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward_model(tmp_path_factory.mktemp("rm"))


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_reward_scores_do_not_depend_on_batch_size_or_order(reward_model: Path, batch_tokens: int) -> None:
    folder = ModelFolder(reward_model)
    alone = [RewardModelScorer(folder, batch_tokens=1).score_rows([([], sequence)])[0] for sequence in SEQUENCES[:5]]
    scorer = RewardModelScorer(folder, batch_tokens=batch_tokens)
    scores = scorer.score_rows([([], sequence) for sequence in SEQUENCES])
    assert scores[:5] == pytest.approx(alone, abs=1e-5)
    order = CHANCE.sample(range(len(SEQUENCES)), len(SEQUENCES))
    shuffled = scorer.score_rows([([], SEQUENCES[index]) for index in order])
    assert shuffled == pytest.approx([scores[index] for index in order], abs=1e-5)
    assert max(scores) - min(scores) > 0.01


def test_log_probabilities_equal_the_plain_padded_computation(project_template: Path) -> None:
    model = load_causal_lm(project_template / "base").eval()
    found = completion_logps(model, ROWS, pad_token_id=0, batch_tokens=256)
    for (prompt, completion), value in zip(ROWS, found, strict=True):
        ids = torch.tensor([prompt + completion])
        labels = torch.tensor([[-100] * len(prompt) + completion])
        with torch.no_grad():
            expected = sequence_logps(model(input_ids=ids).logits, labels)
        assert value == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)


def test_log_probabilities_do_not_depend_on_batch_size_or_order(project_template: Path) -> None:
    model = load_causal_lm(project_template / "base").eval()
    one_by_one = completion_logps(model, ROWS, pad_token_id=0, batch_tokens=1)
    together = completion_logps(model, ROWS[::-1], pad_token_id=0, batch_tokens=100_000)[::-1]
    assert together == pytest.approx(one_by_one, rel=1e-5, abs=1e-5)


PROMPTS = SEQUENCES[:6]
SHARED = [(PROMPTS[CHANCE.randrange(6)], sequence) for sequence in [*SEQUENCES[6:], [], []]]
"""Completions of a few prompts in a mixed order; two are empty."""


@pytest.mark.parametrize("batch_tokens", [1, 100, 300, 100_000])
def test_completions_behind_one_prompt_have_the_numbers_of_rows_of_their_own(
    reward_model: Path, project_template: Path, batch_tokens: int
) -> None:
    scorer = RewardModelScorer(ModelFolder(reward_model), batch_tokens=batch_tokens)
    model = load_causal_lm(project_template / "base").eval()
    seen: list[int] = []
    scores = scorer.score_rows(SHARED, report=seen.append)
    assert scores == pytest.approx([scorer.score_rows([row])[0] for row in SHARED], abs=1e-5)
    assert seen[-1] == len(SHARED)
    logps = completion_logps(model, SHARED, pad_token_id=0, batch_tokens=batch_tokens)
    alone = [completion_logps(model, [row], pad_token_id=0, batch_tokens=batch_tokens)[0] for row in SHARED]
    assert logps == pytest.approx(alone, rel=1e-5, abs=1e-5)
    assert logps[-2:] == [0.0, 0.0]


def test_a_prompt_is_computed_once_for_all_its_completions(reward_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, tokens = RewardModelScorer(ModelFolder(reward_model), batch_tokens=10_000), 0
    forward = type(scorer._model.base_model).forward

    def counted(self: torch.nn.Module, **inputs: torch.Tensor) -> object:
        nonlocal tokens
        tokens += inputs["input_ids"].numel()
        return forward(self, **inputs)

    monkeypatch.setattr(type(scorer._model.base_model), "forward", counted)
    scorer.score_rows(SHARED)
    prompts = {tuple(prompt): len(prompt) for prompt, _ in SHARED}
    assert tokens == sum(prompts.values()) + sum(len(completion) for _, completion in SHARED)


def test_perplexity_is_that_of_all_tokens_but_the_first(project_template: Path) -> None:
    likelihood = LikelihoodModel(ModelFolder(project_template / "base"), batch_tokens=512)
    model, texts = load_causal_lm(project_template / "base").eval(), ["열쇠를 잃어버렸어.", "I lost my keys", "a"]
    losses, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor(likelihood._format.tokenizer([text], add_special_tokens=False)["input_ids"])
        if ids.shape[1] > 1:
            with torch.no_grad():
                losses += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    assert likelihood.perplexity(texts) == pytest.approx(torch.tensor(losses / tokens).exp().item(), rel=1e-5)
    assert likelihood.perplexity(["a"]) is None


def test_batches_hold_every_index_once_and_respect_the_limit() -> None:
    lengths = [len(sequence) for sequence in SEQUENCES]
    batches = list(length_sorted_batches(lengths, 128))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 128 for batch in batches)
