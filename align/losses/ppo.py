"""Proximal Policy Optimization on completions: rewards, advantages, and the two clipped losses.

Every mask is a completion_mask: [batch, seq], 1 (or True) on the completion's tokens, 0 on prompt and padding. Values at
masked-out positions, NaN included, never reach a result; results are 0 there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from align.losses.policy import PolicyLoss, check_masked, check_positive, clipped_policy_loss


class Advantages(NamedTuple):
    """[batch, seq] each, 0 outside the mask, detached."""

    advantages: Tensor
    """Generalized advantage estimate of every token; not whitened."""
    returns: Tensor
    """advantages + values: the targets of the value model."""


def kl_penalized_rewards(scores: Tensor, logps: Tensor, reference_logps: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Reward of every token: the pull towards the reference, and the score on the last token.

    -kl_coef * (logps - reference_logps), the estimator k1 (Schulman 2020), plus the score on the last position where the mask
    is 1. Stiennon et al. 2020, §3.4; Ziegler et al. 2019, eq. 2.

    Args:
        scores: [batch], of whole completions.
        logps: [batch, seq], nats per token, of the policy that sampled.
        reference_logps: [batch, seq], nats per token, of the reference.
        mask: [batch, seq], completion_mask; it need not be contiguous nor end at the last position.
        kl_coef: weight of the penalty, 0 or more.
    Returns:
        [batch, seq], 0 outside the mask, detached. A row without any masked token gets no reward at all.
    Raises:
        ValueError: if the shapes do not fit.
    """
    check_masked(mask, logps, reference_logps)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores must be [batch] of the mask {list(mask.shape)}, not {list(scores.shape)}")
    inside = mask.bool()
    # `where`, here and below, not a product with the mask: 0 * NaN is NaN.
    rewards = torch.where(inside, -kl_coef * (logps.detach() - reference_logps.detach()), 0.0)
    # Counting masked positions from the right, the last one has the count 1. Position -1 would be wrong: it may be padding.
    is_last = inside & (inside.flip(-1).cumsum(-1).flip(-1) == 1)
    return rewards + torch.where(is_last, scores.detach().unsqueeze(-1), 0.0)


def generalized_advantages(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float) -> Advantages:
    """Generalized advantage estimation over the completion's tokens.

    A_t = delta_t + gamma * gae_lambda * A_next, delta_t = r_t + gamma * V_next - V_t, where next is the next position inside the
    mask and nothing follows the last one. Schulman et al. 2015, eqs. 11, 12, 16.

    Args:
        rewards: [batch, seq].
        values: [batch, seq], of the value model at the time of sampling.
        mask: [batch, seq], completion_mask; gaps are passed over.
        gamma: discount per token, in [0, 1].
        gae_lambda: 0 is one-step, 1 the whole return; in [0, 1].
    Returns:
        advantages and returns; rows do not influence each other.
    Raises:
        ValueError: if the shapes do not fit, or gamma or gae_lambda is outside [0, 1].
    """
    check_masked(mask, rewards, values)
    for name, number in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {number}")
    inside = mask.bool()
    wide = torch.promote_types(values.dtype, torch.float32)  # sums over a thousand tokens need the digits
    rewards = torch.where(inside, rewards.detach().to(wide), 0.0)
    values = torch.where(inside, values.detach().to(wide), 0.0)
    advantages = torch.zeros_like(rewards)
    # A batch of empty completions has no position 0; the sum over none is [batch] zeros.
    next_value = torch.zeros_like(values[:, 0]) if values.shape[1] else values.sum(-1)
    next_advantage = torch.zeros_like(next_value)
    for position in range(rewards.shape[1] - 1, -1, -1):
        here = inside[:, position]
        value = values[:, position]
        delta = rewards[:, position] + gamma * next_value - value
        advantage = delta + gamma * gae_lambda * next_advantage
        advantages[:, position] = torch.where(here, advantage, 0.0)
        next_value = torch.where(here, value, next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    return Advantages(advantages, advantages + values)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale the masked values to variance 1, over the whole tensor.

    (values - mean) / sqrt(variance + 1e-8), with the sample variance (divided by the count less one, as TRL's PPO did) of the
    masked values. Give it the whole batch, never a micro-batch, or the loss depends on how the batch is cut.

    Args:
        values: any shape.
        mask: the same shape.
        shift_mean: False scales, but keeps the mean.
    Returns:
        The shape of `values`, 0 outside the mask. A single value (or equal ones) becomes 0, or its own with `shift_mean` False;
        an empty mask gives zeros.
    Raises:
        ValueError: if the shapes differ.
    """
    check_masked(mask, values)
    inside = mask.bool()
    kept = torch.where(inside, values, 0.0)
    count = inside.sum().clamp(min=1)
    mean = kept.sum() / count
    centred = torch.where(inside, values - mean, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    scaled = centred * torch.rsqrt(variance + 1e-8)
    return scaled if shift_mean else torch.where(inside, scaled + mean, 0.0)


def ppo_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, cliprange: float, dual_clip: float | None = None
) -> PolicyLoss:
    """Clipped surrogate loss, one value per token.

    max(-A * ratio, -A * clip(ratio, 1 - cliprange, 1 + cliprange)), ratio = exp(logps - old_logps). Schulman et al. 2017, eq. 7,
    negated. The log ratio is clamped to ±20. With `dual_clip` c, a negative advantage costs at most -A * c (Ye et al. 2020,
    eq. 5). Without it, the loss of a token that wrongly became many times likelier has no bound.

    Args:
        logps: [batch, seq], nats, of the policy. Carries the gradient.
        old_logps: [batch, seq], nats, of the policy that sampled.
        advantages: [batch, seq].
        mask: [batch, seq], completion_mask.
        cliprange: > 0.
        dual_clip: > 1; None is no bound.
    Returns:
        losses and diagnostics, not reduced: divide the sum by the number of completion tokens of the whole batch.
    Raises:
        ValueError: if the shapes do not fit, cliprange is not positive or dual_clip is not above 1.
    """
    check_positive("cliprange", cliprange)
    return clipped_policy_loss(logps, old_logps, advantages, mask, clip_low=cliprange, clip_high=cliprange, dual_clip=dual_clip)


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, cliprange_value: float) -> Tensor:
    """Clipped squared error of the value model, one value per token.

    0.5 * max((V - R)², (V_clipped - R)²), V_clipped = V held within old_values ± cliprange_value. As in OpenAI's baselines
    (ppo2); Schulman et al. 2017 has the square alone, eq. 9.

    Args:
        values: [batch, seq], of the value model. Carries the gradient.
        old_values: [batch, seq], of the value model at the time of sampling.
        returns: [batch, seq], see `generalized_advantages`.
        mask: [batch, seq], completion_mask.
        cliprange_value: > 0.
    Returns:
        [batch, seq], 0 outside the mask, not reduced.
    Raises:
        ValueError: if the shapes do not fit or cliprange_value is not positive.
    """
    check_masked(mask, values, old_values, returns)
    check_positive("cliprange_value", cliprange_value)
    inside = mask.bool()
    values = torch.where(inside, values, 0.0)
    old_values = torch.where(inside, old_values.detach(), 0.0)
    returns = torch.where(inside, returns.detach(), 0.0)
    held = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    return 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)
