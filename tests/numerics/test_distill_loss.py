"""The divergence from a teacher, against values worked by hand, finite differences and TRL."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from align.losses import generalized_jsd_loss

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
STUDENT, TEACHER = torch.tensor([0.5, 0.5], dtype=torch.float64).log(), torch.tensor([0.9, 0.1], dtype=torch.float64).log()
# Logs of probabilities are logits; a constant more changes nothing.
FORWARD = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
REVERSE = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)


def _random(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher


def _mixed(beta: float) -> float:
    """By hand: the mix of 0.9 and 0.5, and of 0.1 and 0.5."""
    mix = (beta * 0.9 + (1 - beta) * 0.5, beta * 0.1 + (1 - beta) * 0.5)
    of_teacher = 0.9 * math.log(0.9 / mix[0]) + 0.1 * math.log(0.1 / mix[1])
    of_student = 0.5 * math.log(0.5 / mix[0]) + 0.5 * math.log(0.5 / mix[1])
    return beta * of_teacher + (1 - beta) * of_student


@pytest.mark.parametrize(("beta", "expected"), [(0.0, FORWARD), (1.0, REVERSE), (0.5, _mixed(0.5)), (0.2, _mixed(0.2))])
def test_by_hand(beta: float, expected: float) -> None:
    found = generalized_jsd_loss(STUDENT + 4.0, TEACHER - 1.0, beta=beta)
    assert found.ndim == 0
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_two_models_that_share_no_token_are_ln_2_apart() -> None:
    one, other = torch.tensor([[300.0, 0.0]]), torch.tensor([[0.0, 300.0]])
    torch.testing.assert_close(generalized_jsd_loss(one, other, beta=0.5), torch.tensor([math.log(2)]))


@pytest.mark.parametrize("beta", BETAS)
def test_equal_models_have_no_divergence_and_no_gradient(beta: float) -> None:
    student = _random(4, 7)[0].requires_grad_()
    losses = generalized_jsd_loss(student, student.detach(), beta=beta)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    torch.testing.assert_close((losses.detach(), gradient), (torch.zeros(4).double(), torch.zeros(4, 7).double()))


@pytest.mark.parametrize("beta", BETAS)
def test_gradient(beta: float) -> None:
    student, teacher = _random(3, 5)
    loss = lambda logits: generalized_jsd_loss(logits, teacher, beta=beta, temperature=0.7)  # noqa: E731
    assert torch.autograd.gradcheck(loss, [student.requires_grad_()])
    assert not generalized_jsd_loss(student.detach(), teacher.requires_grad_(), beta=beta).requires_grad


@pytest.mark.filterwarnings("ignore::UserWarning")  # TRL says that the import is experimental
@pytest.mark.parametrize("beta", BETAS)
def test_parity_with_trl(beta: float) -> None:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    student, teacher = _random(2, 6, 11)
    labels = torch.tensor([[-100, 1, 1, 1, -100, -100], [-100, -100, 1, 1, 1, 1]])
    expected = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=0.9)
    found = generalized_jsd_loss(student, teacher, beta=beta, temperature=0.9)
    torch.testing.assert_close(found[labels != -100].mean(), expected)


@pytest.mark.parametrize("beta", BETAS)
def test_a_token_that_both_rule_out_adds_nothing(beta: float) -> None:
    student, teacher = _random(2, 4)
    wide = [torch.cat([logits, torch.full((2, 1), -math.inf)], dim=-1).requires_grad_() for logits in (student, teacher)]
    losses = generalized_jsd_loss(wide[0], wide[1], beta=beta)
    torch.testing.assert_close(losses.detach(), generalized_jsd_loss(student, teacher, beta=beta))
    (gradient,) = torch.autograd.grad(losses.sum(), wide[0])
    assert bool(gradient.isfinite().all()) and gradient[:, -1].abs().sum() == 0


def test_half_precision_is_widened() -> None:
    logits = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert generalized_jsd_loss(logits, logits, beta=1.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher_logits": torch.zeros(2, 4)}, r"one shape, not \[\[2, 3\], \[2, 4\]\]"),
        ({"beta": 1.1}, "beta must be from 0 to 1, not 1.1"),
        ({"beta": math.nan}, "beta must be from 0 to 1"),
        ({"temperature": 0.0}, "temperature must be greater than 0, not 0.0"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], said: str) -> None:
    inputs = {"student_logits": torch.zeros(2, 3), "teacher_logits": torch.zeros(2, 3), "beta": 1.0, **changes}
    with pytest.raises(ValueError, match=said):
        generalized_jsd_loss(**inputs)
