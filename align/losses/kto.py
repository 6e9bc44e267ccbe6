"""Kahneman-Tversky Optimization, on single completions that are desirable or not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from align.losses.logps import check_pairs


class KtoLoss(NamedTuple):
    """One value per completion."""

    losses: Tensor
    """[batch], not reduced."""
    rewards: Tensor
    """[batch], nats, detached: beta * (policy - reference)."""


def kto_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    desirable: Tensor,
    kl: float | Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> KtoLoss:
    """Kahneman-Tversky Optimization, one value per completion.

    With r = policy - reference in nats: weight * (1 - sigmoid(beta * (r - kl))) for a desirable completion,
    weight * (1 - sigmoid(beta * (kl - r))) for an undesirable one. Ethayarajh et al. 2024, eq. 7. With r = kl the loss is half
    the weight.

    Args:
        policy_logps: [batch], nats, summed over completion tokens. Carries the gradient.
        reference_logps: [batch], likewise, of the reference.
        desirable: [batch], bool.
        kl: the reference point, ≥ 0: an estimate of the KL divergence of policy and reference, from completions that belong to
            other prompts, for the whole optimizer batch. No gradient flows through it.
        beta: strength of the pull towards the reference, > 0.
        desirable_weight: weight of desirable completions, > 0; with unequal counts the paper keeps
            desirable_weight * desirable / (undesirable_weight * undesirable) within 1 and 4/3 (eq. 8).
        undesirable_weight: weight of the others, > 0.
    Returns:
        losses and detached rewards, in float32 or wider.
    Raises:
        ValueError: if the batches differ in shape, kl is negative or more than a number, or beta or a weight is not positive.
    """
    check_pairs(policy_logps, reference_logps, desirable)
    for name, value in (("beta", beta), ("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight)):
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0, not {value}")
    wide = torch.promote_types(policy_logps.dtype, torch.float32)
    point = torch.as_tensor(kl, dtype=wide, device=policy_logps.device).detach()
    if point.ndim or not point >= 0:
        raise ValueError(f"kl must be one number, 0 or more, not {kl}")
    log_ratios = policy_logps.to(wide) - reference_logps.to(wide)
    wanted = desirable.bool()
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where sigmoid(x) is nearly 1.
    losses = torch.sigmoid(torch.where(wanted, point - log_ratios, log_ratios - point) * beta)
    weights = torch.where(wanted, desirable_weight, undesirable_weight).to(wide)
    return KtoLoss(weights * losses, beta * log_ratios.detach())
