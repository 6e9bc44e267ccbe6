"""The divergence of a student from a teacher, over the whole vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_LOGP = -1e4
"""Log-probabilities below this count as this, so that a token that both models rule out adds 0 and not NaN."""


def generalized_jsd_loss(student_logits: Tensor, teacher_logits: Tensor, *, beta: float, temperature: float = 1.0) -> Tensor:
    """Generalised Jensen-Shannon divergence of a student from a teacher, one value per token.

    beta * KL(teacher ‖ mix) + (1 - beta) * KL(student ‖ mix), mix = beta * teacher + (1 - beta) * student. Agarwal et al. 2024
    (GKD), eq. 1. As there and in TRL, the two ends are the plain divergences: 0 is forward KL, KL(teacher ‖ student); 1 is
    reverse KL, KL(student ‖ teacher), as in MiniLLM (Gu et al. 2024). Between them the divergence is at most ln 2.

    Args:
        student_logits: [..., vocabulary]. Carries the gradient.
        teacher_logits: the same shape; detached here.
        beta: from 0 to 1.
        temperature: > 0; the logits of both are divided by it.
    Returns:
        [...], nats, in float32 or wider, not reduced: the caller masks and averages. 0 where the models agree.
    Raises:
        ValueError: if the shapes differ, beta is not from 0 to 1, or temperature is not positive.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.ndim == 0:
        shapes = [list(student_logits.shape), list(teacher_logits.shape)]
        raise ValueError(f"logits must be [..., vocabulary] of one shape, not {shapes}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be from 0 to 1, not {beta}")
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, not {temperature}")
    student, teacher = _logps(student_logits, temperature), _logps(teacher_logits.detach(), temperature)
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mix = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * _kl(teacher, mix) + (1 - beta) * _kl(student, mix)


def _logps(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (wide if temperature == 1 else wide / temperature).log_softmax(-1).clamp(min=LEAST_LOGP)


def _kl(logps: Tensor, others: Tensor) -> Tensor:
    """[...], KL of the distribution with these log-probabilities from another."""
    return (logps.exp() * (logps - others)).sum(-1)
