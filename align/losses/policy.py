"""Policy gradients on sampled completions: advantages of groups, the clipped surrogate, and a KL penalty in the loss.

Every mask is a completion_mask: [batch, seq], 1 (or True) on the completion's tokens, 0 on prompt and padding. Values at
masked-out positions, NaN included, never reach a result; results are 0 there.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from align.config.online import RatioLevel

MAX_LOG_RATIO = 20.0
"""The log of the probability ratio is held within ± this, so that its exponential stays finite."""

AdvantageScale = Literal["std", "none"]
AdvantageBaseline = Literal["mean", "leave_one_out"]


class PolicyLoss(NamedTuple):
    """[batch, seq] each, 0 outside the mask; `losses` carries the gradient, the others are detached."""

    losses: Tensor
    """Clipped surrogate, negated."""
    ratio: Tensor
    """Probability under the policy over that under the policy that sampled."""
    clipped: Tensor
    """1 where a clipped term or the dual clip's bound decided the loss, and so no gradient flows."""
    approx_kl: Tensor
    """ratio - 1 - log ratio ≥ 0 of the token, nats; its mean over tokens estimates KL(sampling policy ‖ policy)."""


def group_advantages(
    scores: Tensor,
    *,
    group_size: int,
    scale: AdvantageScale = "std",
    baseline: AdvantageBaseline = "mean",
    epsilon: float = 1e-4,
) -> Tensor:
    """How much better a completion scored than the others of its prompt.

    score - baseline, divided by (standard deviation + epsilon) with scale `std`. GRPO is mean and std (Shao et al. 2024, §4.1.2),
    Dr. GRPO mean and none (Liu et al. 2025), RLOO leave_one_out and none (Ahmadian et al. 2024, §2.2).

    Args:
        scores: [batch], of whole completions; those of a prompt follow each other.
        group_size: completions of a prompt, 2 or more.
        scale: std divides by the group's sample standard deviation (divided by the count less one), none by nothing.
        baseline: mean of the group, or leave_one_out: of the other completions, which makes the estimate unbiased.
        epsilon: keeps groups of equal scores at 0 instead of dividing by 0.
    Returns:
        [batch], detached, in float32 or wider; the sum over a group is 0.
    Raises:
        ValueError: if the scores are not whole groups, group_size is below 2, or scale or baseline is not as described.
    """
    if scores.ndim != 1 or group_size < 2 or len(scores) % group_size:
        raise ValueError(f"scores must be [batch] of whole groups of {group_size} (2 or more), not {list(scores.shape)}")
    if scale not in get_args(AdvantageScale) or baseline not in get_args(AdvantageBaseline):
        raise ValueError(f"scale must be std or none, baseline mean or leave_one_out, not {scale!r} and {baseline!r}")
    groups = scores.detach().to(torch.promote_types(scores.dtype, torch.float32)).view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    # The mean of the others is the group's mean, moved away from the completion's own score.
    advantages = centred * (group_size / (group_size - 1)) if baseline == "leave_one_out" else centred
    if scale == "std":
        advantages = advantages / (groups.std(dim=1, keepdim=True) + epsilon)
    return advantages.flatten()


def clipped_policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    level: RatioLevel = "token",
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Clipped surrogate loss, one value per token.

    max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high)), ratio = exp(logps - old_logps). Schulman et al. 2017, eq. 7,
    negated; unequal ends as in DAPO (Yu et al. 2025, §3.1). At level `sequence` all tokens of a completion have the ratio
    exp(mean log ratio over its tokens), GSPO (Zheng et al. 2025). The log ratio is clamped to ±20. With `dual_clip` c, a
    negative advantage costs at most -A * c (Ye et al. 2020, eq. 5). Without it, the loss of a token that wrongly became many
    times likelier has no bound.

    Args:
        logps: [batch, seq], nats, of the policy. Carries the gradient.
        old_logps: [batch, seq], nats, of the policy that sampled.
        advantages: [batch], one per completion, or [batch, seq].
        mask: [batch, seq], completion_mask.
        clip_low: > 0; below 1 - clip_low the ratio gains nothing.
        clip_high: > 0, likewise above 1 + clip_high.
        level: ratio of each token, or of the whole completion.
        dual_clip: > 1; None is no bound.
    Returns:
        losses and diagnostics, not reduced: the caller says whether tokens or completions count alike.
    Raises:
        ValueError: if the shapes do not fit, an end is not positive, dual_clip is not above 1 or level is not as described.
    """
    if advantages.ndim == 1 and advantages.shape == mask.shape[:1]:
        advantages = advantages.unsqueeze(-1).expand(mask.shape)
    check_masked(mask, logps, old_logps, advantages)
    check_positive("clip_low", clip_low)
    check_positive("clip_high", clip_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be greater than 1, not {dual_clip}")
    if level not in get_args(RatioLevel):
        raise ValueError(f"level must be token or sequence, not {level!r}")
    inside = mask.bool()
    # Masked before exp: an infinity there would make the gradient NaN, even if the loss were masked afterwards.
    token_log_ratio = torch.where(inside, logps - old_logps.detach(), 0.0)
    log_ratio = token_log_ratio
    if level == "sequence":
        mean = token_log_ratio.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = torch.where(inside, mean, 0.0)
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantages = torch.where(inside, advantages.detach(), 0.0)
    ratio = torch.exp(log_ratio)
    plain = -advantages * ratio
    held = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses, clipped = torch.maximum(plain, held), held > plain
    if dual_clip is not None:
        bound = -advantages * dual_clip
        bounded = (advantages < 0) & (losses > bound)
        losses, clipped = torch.where(bounded, bound, losses), clipped | bounded
    ratios = ratio.detach()
    moved = token_log_ratio.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return PolicyLoss(
        losses=torch.where(inside, losses, 0.0),
        ratio=torch.where(inside, ratios, 0.0),
        clipped=(inside & clipped).to(ratios.dtype),
        # expm1 keeps the digits that ratio - 1 loses when the policy has hardly moved
        approx_kl=torch.expm1(moved) - moved,
    )


def k3_kl(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """KL(policy ‖ reference) of every token, estimated on tokens that the policy sampled; never negative.

    exp(d) - d - 1 with d = reference_logps - logps: the estimator k3 (Schulman 2020), as a term of the loss in GRPO (Shao et al.
    2024, eq. 4). d is clamped to ±20.

    Args:
        logps: any shape, nats, of the policy. Carries the gradient.
        reference_logps: the same shape, nats, of the reference.
    Returns:
        The shape of the inputs, nats; the caller masks and reduces.
    Raises:
        ValueError: if the shapes differ.
    """
    if logps.shape != reference_logps.shape:
        raise ValueError(f"both inputs must have one shape, not {[list(logps.shape), list(reference_logps.shape)]}")
    difference = (reference_logps.detach() - logps).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(difference) - difference


def check_masked(mask: Tensor, *tensors: Tensor) -> None:
    """Refuse what a mask does not fit.

    Raises:
        ValueError: if the shapes differ.
    """
    shapes = [list(tensor.shape) for tensor in (mask, *tensors)]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"the mask and what it masks must have one shape, not {shapes}")


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is 0 or less.

    Raises:
        ValueError: with its name.
    """
    if not value > 0:
        raise ValueError(f"{name} must be greater than 0, not {value}")
