"""Direct Preference Optimization and its relatives, on pairs of a chosen and a rejected completion."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.config.sections import DpoVariant
from align.losses.logps import check_pairs

SMOOTHED_VARIANTS = ("sigmoid", "robust")


class PreferenceLoss(NamedTuple):
    """One value per pair."""

    losses: Tensor
    """[batch], not reduced."""
    chosen_rewards: Tensor
    """[batch], nats, detached: beta * (policy - reference) of the chosen completion."""
    rejected_rewards: Tensor
    """[batch], nats, detached: the same of the rejected completion."""


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    variant: DpoVariant = "sigmoid",
) -> PreferenceLoss:
    """Direct Preference Optimization, one value per pair.

    With h = (policy chosen - policy rejected) - (reference chosen - reference rejected), in nats:

    - sigmoid: -(1 - eps) * log sigmoid(beta * h) - eps * log sigmoid(-beta * h). Rafailov et al. 2023, eq. 7; eps is
      `label_smoothing`, the assumed share of flipped labels (conservative DPO, Mitchell 2023, eq. 3). ln 2 at h = 0.
    - hinge: max(0, 1 - beta * h). SLiC-HF, Zhao et al. 2023, eq. 1, on the implicit reward difference as in Liu et al. 2024
      (RSO), eq. 8.
    - ipo: (h - 1 / (2 * beta))². Azar et al. 2023, eq. 17. The paper assumes whole completions of similar length; give averages
      over tokens (`sequence_logps(..., average=True)`), or long completions dominate.
    - sigmoid_norm: -log sigmoid(beta * h) on averages over tokens (Lambert et al. 2024, Tulu 3), which the caller gives.
    - robust: (-(1 - eps) * log sigmoid(beta * h) + eps * log sigmoid(-beta * h)) / (1 - 2 * eps). Chowdhury et al. 2024:
      its mean over flipped labels is the loss of the right ones; eps is `label_smoothing`. May be negative.

    With c = policy chosen - reference chosen and r = policy rejected - reference rejected, so that h = c - r:

    - apo_zero: 1 - sigmoid(beta * c) + sigmoid(beta * r), which raises the chosen and lowers the rejected completion.
      D'Oosterlinck et al. 2024, eq. 7. 1 at c = r = 0.
    - apo_down: sigmoid(beta * c) + 1 - sigmoid(beta * (c - r)), which lowers both, the rejected more: for a policy that is better
      than the chosen completions. The same paper, eq. 8. 1 at c = r = 0.
    - sppo_hard: (c - 1 / (2 * beta))² + (r + 1 / (2 * beta))². Wu et al. 2024, eq. 4.7 with a win probability of 1.

    Args:
        policy_chosen_logps: [batch], nats, summed over completion tokens (averaged for ipo and sigmoid_norm). Carries the
            gradient.
        policy_rejected_logps: [batch], likewise.
        reference_chosen_logps: [batch], nats, summed alike, of the reference.
        reference_rejected_logps: [batch], likewise.
        beta: strength of the pull towards the reference, > 0.
        label_smoothing: in [0, 0.5); only for sigmoid and robust.
        variant: one of the above.
    Returns:
        `losses` and the detached implicit rewards, in float32 or wider, not reduced. A non-finite input spoils its own row only.
    Raises:
        ValueError: if the batches differ in shape, or beta, label_smoothing or variant is not as described.
    """
    check_pairs(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    if not beta > 0:
        raise ValueError(f"beta must be greater than 0, not {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), not {label_smoothing}")
    if label_smoothing and variant not in SMOOTHED_VARIANTS:
        raise ValueError(f"label_smoothing is defined for the variants sigmoid and robust only, not for {variant}")
    # Margins are small differences of sums of hundreds of nats, which bfloat16 would round away.
    wide = torch.promote_types(policy_chosen_logps.dtype, torch.float32)
    chosen_log_ratios = policy_chosen_logps.to(wide) - reference_chosen_logps.to(wide)
    rejected_log_ratios = policy_rejected_logps.to(wide) - reference_rejected_logps.to(wide)
    losses = _losses(chosen_log_ratios, rejected_log_ratios, beta, label_smoothing, variant)
    return PreferenceLoss(losses, beta * chosen_log_ratios.detach(), beta * rejected_log_ratios.detach())


def tail_weights(token_counts: Tensor, ld_alpha: float) -> Tensor:
    """Weight of every token's log-probability in a length-desensitized loss (LD-DPO; Liu et al. 2024, arXiv 2409.06411).

    Args:
        token_counts: [2 * batch], tokens of the chosen completions, then of the rejected ones.
        ld_alpha: weight of the tokens beyond the length of the shorter completion of the pair, in [0, 1].
    Returns:
        [tokens], float32, in the order of `token_counts`: 1 up to the length of the shorter completion, `ld_alpha` beyond.
    """
    counts = token_counts.view(2, -1)
    starts = (token_counts.cumsum(0) - token_counts).repeat_interleave(token_counts)
    places = torch.arange(len(starts), device=starts.device) - starts
    shorter = counts.amin(0).repeat(2).repeat_interleave(token_counts)
    return torch.where(places < shorter, 1.0, ld_alpha)


def _losses(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float, variant: DpoVariant) -> Tensor:
    """[batch], of the log ratios of both completions."""
    margins = chosen - rejected
    match variant:
        case "sigmoid":
            return -logsigmoid(beta * margins) * (1 - label_smoothing) - logsigmoid(-beta * margins) * label_smoothing
        case "hinge":
            return torch.relu(1 - beta * margins)
        case "ipo":
            return (margins - 1 / (2 * beta)) ** 2
        case "sigmoid_norm":
            return -logsigmoid(beta * margins)
        case "robust":
            flipped = label_smoothing * logsigmoid(-beta * margins)
            return (flipped - (1 - label_smoothing) * logsigmoid(beta * margins)) / (1 - 2 * label_smoothing)
        case "apo_zero":
            # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where sigmoid(x) is nearly 1.
            return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)
        case "apo_down":
            return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * margins)
        case "sppo_hard":
            return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2
        case _:
            raise ValueError(f"variant must be one of {', '.join(get_args(DpoVariant))}, not {variant!r}")
