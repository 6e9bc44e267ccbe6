"""Simple Preference Optimization, on pairs of a chosen and a rejected completion; no reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.losses.dpo import PreferenceLoss
from align.losses.logps import check_pairs


def simpo_loss(chosen_average_logps: Tensor, rejected_average_logps: Tensor, *, beta: float, gamma: float) -> PreferenceLoss:
    """Simple Preference Optimization, one value per pair.

    -log sigmoid(beta * (chosen - rejected) - gamma). Meng et al. 2024, eq. 6; gamma is the margin of the rewards, in the unit of
    beta * log-probability, so the paper's ratio is gamma / beta.

    Args:
        chosen_average_logps: [batch], nats per token. Carries the gradient.
        rejected_average_logps: [batch], likewise.
        beta: scale of the reward, > 0.
        gamma: margin by which the chosen reward should be higher, 0 or more.
    Returns:
        `losses`, and the detached rewards beta * log-probability per token, in float32 or wider, not reduced.
    Raises:
        ValueError: if the batches differ in shape, beta is not positive or gamma is negative.
    """
    check_pairs(chosen_average_logps, rejected_average_logps)
    if not beta > 0:
        raise ValueError(f"beta must be greater than 0, not {beta}")
    if not gamma >= 0:
        raise ValueError(f"gamma must be 0 or more, not {gamma}")
    wide = torch.promote_types(chosen_average_logps.dtype, torch.float32)
    chosen, rejected = chosen_average_logps.to(wide), rejected_average_logps.to(wide)
    losses = -logsigmoid(beta * (chosen - rejected) - gamma)
    return PreferenceLoss(losses, beta * chosen.detach(), beta * rejected.detach())
