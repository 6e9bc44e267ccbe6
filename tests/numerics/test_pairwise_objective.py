"""Objectives on batches small enough to work out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from align.stages import dpo, orpo, reward_model
from align.testing import pairwise_config
from align.training.pairwise.objective import BatchCounts, likelihood_tokens
from align.training.pairwise.run import loss_of_equal_models

# Two pairs; targets: chosen 2 and 4 tokens, rejected 1 and 2, and with prompts 3 and 0.
COUNTS = [2, 4, 1, 2]
SUMS = [-4.0, -6.0, -3.0, -5.0]


def batch_of(*, prompts: bool = False, **numbers: list[float]) -> dict[str, Any]:
    counts = COUNTS + ([3, 0] if prompts else [])
    values = {name: torch.tensor(column) for name, column in numbers.items()}
    return {"token_counts": torch.tensor(counts), "last_index": torch.zeros(4, dtype=torch.long), **values}


def counts_of(pairs: int, tokens: int) -> BatchCounts:
    return BatchCounts(torch.tensor(pairs), torch.tensor(tokens))


REFERENCE: dict[str, Any] = {"reference_chosen_logps": [-5.0, -6.0], "reference_rejected_logps": [-3.0, -4.0]}


def test_dpo() -> None:
    # Log ratios: chosen 1, 0; rejected 0, -1. Margins 1 and 1.
    result = pairwise_config(dpo, beta=0.5).pair_losses(torch.tensor(SUMS), batch_of(**REFERENCE), counts_of(2, 6))
    assert result.losses.tolist() == pytest.approx([-math.log(1 / (1 + math.exp(-0.5)))] * 2)
    assert result.metrics["rewards/chosen"].tolist() == [0.5, 0.0]
    assert result.metrics["rewards/rejected"].tolist() == [0.0, -0.5]
    assert result.metrics["rewards/margins"].tolist() == [0.5, 0.5]
    assert result.metrics["rewards/accuracies"].tolist() == [1.0, 1.0]
    assert result.metrics["logps/rejected"].tolist() == [-3.0, -5.0]


def test_dpo_with_label_smoothing() -> None:
    result = pairwise_config(dpo, beta=0.5, label_smoothing=0.25).pair_losses(
        torch.tensor(SUMS), batch_of(**REFERENCE), counts_of(2, 6)
    )
    right, flipped = math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(0.5))
    assert result.losses.tolist() == pytest.approx([0.75 * right + 0.25 * flipped] * 2)


def test_ipo_averages_policy_and_reference_alike() -> None:
    # Averages: chosen -2, -1.5 against -2.5, -1.5; rejected -3, -2.5 against -3, -2. Margins 0.5, 0.5; target 1 / (2 · 0.5) = 1.
    result = pairwise_config(dpo, beta=0.5, variant="ipo").pair_losses(torch.tensor(SUMS), batch_of(**REFERENCE), counts_of(2, 6))
    assert result.losses.tolist() == pytest.approx([0.25, 0.25])
    assert result.metrics["rewards/chosen"].tolist() == [0.5, 0.0]  # of sums, as TRL shows them


def test_the_loss_of_equal_models() -> None:
    assert loss_of_equal_models(pairwise_config(dpo, beta=0.1, label_smoothing=0.2)) == pytest.approx(math.log(2))
    assert loss_of_equal_models(pairwise_config(dpo, beta=0.1, variant="hinge")) == 1
    assert loss_of_equal_models(pairwise_config(dpo, beta=0.1, variant="ipo")) == pytest.approx(25)


def log_odds(average: float) -> float:
    return average - math.log(1 - math.exp(average))


@pytest.mark.parametrize(("prompts", "tokens"), [(False, 6), (True, 9)])
def test_orpo_is_a_mean_over_tokens_and_a_mean_over_pairs(prompts: bool, tokens: int) -> None:
    batch = batch_of(prompts=prompts)
    assert int(likelihood_tokens(batch).sum()) == tokens
    sums = SUMS + ([-7.0, 0.0] if prompts else [])
    result = pairwise_config(orpo, odds_ratio_weight=2.0).pair_losses(torch.tensor(sums), batch, counts_of(2, tokens))
    odds = [log_odds(-2.0) - log_odds(-3.0), log_odds(-1.5) - log_odds(-2.5)]
    ratios = [-math.log(1 + math.exp(-value)) for value in odds]
    nll = (4 + 6 + (7 if prompts else 0)) / tokens
    assert result.losses.mean().item() == pytest.approx(nll - 2.0 * sum(ratios) / 2)
    assert result.metrics["nll_loss"].mean().item() == pytest.approx(nll)
    assert result.metrics["log_odds_ratio"].tolist() == pytest.approx(ratios)
    assert result.metrics["log_odds_chosen"].tolist() == pytest.approx(odds)


def test_orpo_is_finite_for_a_completion_that_is_certain() -> None:
    sums = torch.zeros(4, requires_grad=True)
    result = pairwise_config(orpo, odds_ratio_weight=1.0).pair_losses(sums, batch_of(), counts_of(2, 6))
    result.losses.sum().backward()
    assert torch.isfinite(result.losses).all()
    assert torch.isfinite(sums.grad).all()  # type: ignore[arg-type]


def test_reward_model() -> None:
    scores = torch.tensor([1.0, 0.0, 0.5, 2.0])
    plain = pairwise_config(reward_model, center_coef=0.0).pair_losses(scores, batch_of(), counts_of(2, 6))
    assert plain.losses.tolist() == pytest.approx([math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(2.0))])
    assert plain.metrics["accuracy"].tolist() == [1.0, 0.0]
    assert plain.metrics["margin"].tolist() == [0.5, -2.0]
    assert plain.metrics["mean_reward"].tolist() == [0.75, 1.0]
    full = pairwise_config(reward_model, center_coef=0.1).pair_losses(scores, batch_of(margin=[0.5, 1.0]), counts_of(2, 6))
    expected = [math.log(2) + 0.1 * 1.5**2, math.log(1 + math.exp(3.0)) + 0.1 * 2.0**2]
    assert full.losses.tolist() == pytest.approx(expected)
    assert full.metrics["center"].tolist() == [2.25, 4.0]
