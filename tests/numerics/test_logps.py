"""sequence_logps on logits whose softmax can be done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from align.losses import sequence_logps

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def test_by_hand() -> None:
    """Vocabulary of 2. Logits (0, ln 3) give probabilities 1/4 and 3/4, (0, 0) give 1/2 each.

    Position 0 predicts label 1, position 1 label 2; the last position predicts nothing.
    Row 0: labels (x, 1, 0): log 3/4 + log 1/2. Row 1: labels (x, -100, 1): log 1/2 alone.
    """
    logits = torch.tensor([[[0.0, LN3], [0.0, 0.0], [9.0, -9.0]], [[0.0, LN3], [0.0, 0.0], [9.0, -9.0]]])
    labels = torch.tensor([[0, 1, 0], [1, -100, 1]])
    expected = torch.tensor([LN3 - LN4 - LN2, -LN2])
    torch.testing.assert_close(sequence_logps(logits, labels), expected)
    torch.testing.assert_close(sequence_logps(logits, labels, average=True), expected / torch.tensor([2.0, 1.0]))


def test_the_first_label_is_never_counted() -> None:
    """It has no logits: changing it changes nothing, while every other label counts."""
    logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0))
    base = sequence_logps(logits, torch.tensor([[0, 1, 2, 3]]))
    assert torch.equal(sequence_logps(logits, torch.tensor([[4, 1, 2, 3]])), base)
    assert not torch.equal(sequence_logps(logits, torch.tensor([[0, 1, 2, 4]])), base)


@pytest.mark.parametrize("average", [False, True])
def test_a_row_without_counted_tokens_is_zero(average: bool) -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    result = sequence_logps(logits, torch.tensor([[1, -100, -100], [-100, -100, 2]]), average=average)
    result.sum().backward()
    assert result[0] == 0
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_stands_at_uncounted_positions_reaches_neither_value_nor_gradient(bad: float) -> None:
    logits = torch.zeros(1, 3, 2)
    logits[0, 0] = bad
    logits.requires_grad_()
    result = sequence_logps(logits, torch.tensor([[0, -100, 1]]))
    result.sum().backward()
    torch.testing.assert_close(result, torch.tensor([-LN2]))
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_summed_in_float32() -> None:
    """1,000 tokens of probability 1/2: -1000 ln 2 = -693.147; bfloat16 has steps of 4 there."""
    result = sequence_logps(torch.zeros(1, 1001, 2, dtype=torch.bfloat16), torch.zeros(1, 1001, dtype=torch.long))
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(-1000 * LN2, rel=1e-5)


def test_large_logits_do_not_overflow() -> None:
    result = sequence_logps(torch.tensor([[[1e4, 0.0], [0.0, 0.0]]]), torch.tensor([[0, 0]]))
    assert result.item() == 0.0


def test_gradient() -> None:
    logits = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 1, -100, 2], [-100, -100, 0, 1]])
    assert torch.autograd.gradcheck(lambda values: sequence_logps(values, labels), (logits,))
    assert torch.autograd.gradcheck(lambda values: sequence_logps(values, labels, average=True), (logits,))


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (4,)])
def test_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="labels must be"):
        sequence_logps(torch.zeros(1, 3, 5), torch.zeros(shape, dtype=torch.long))
