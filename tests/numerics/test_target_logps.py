"""Log-probabilities of targets, and their gradients, are those of torch's cross-entropy to the bit, in a third of its memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from align.models import head
from align.models.head import target_logps
from align.models.sizes import LOGITS_AT_ONCE


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(50, 400, generator=torch.Generator().manual_seed(2)) * 4


@pytest.mark.parametrize("rows", [1, 7, 50])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_is_cross_entropy_to_the_bit(rows: int, temperature: float, logits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 400 * rows)
    targets = torch.arange(50) * 7
    weights = torch.linspace(-1, 1, 50)

    def gradient(compute: Any) -> tuple[Tensor, Tensor]:
        states = logits.clone().requires_grad_()
        logps = compute(states)
        (logps * weights).sum().backward()
        assert states.grad is not None
        return logps.detach(), states.grad

    model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=logits.T))
    monkeypatch.setattr(head, "logits_of", lambda model, states: states * 1.0)
    found = gradient(lambda states: target_logps(model, states, targets, temperature=temperature))
    expected = gradient(lambda states: -cross_entropy(states * 1.0 / temperature, targets, reduction="none"))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_nothing_of_the_size_of_the_logits_is_kept_besides_them(logits: Tensor) -> None:
    given = logits.requires_grad_() * 1.0
    kept: set[int] = set()

    def remember(tensor: Tensor) -> Tensor:
        if tensor.shape == given.shape:
            kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        head._TargetLogps.apply(given, torch.zeros(50, dtype=torch.long))
    assert kept == {given.data_ptr()}


def test_a_second_backward_pass_is_refused(logits: Tensor) -> None:
    """Its numbers are gone."""
    logps = head._TargetLogps.apply(logits.requires_grad_() * 1.0, torch.zeros(50, dtype=torch.long))
    logps.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logps.sum().backward()
