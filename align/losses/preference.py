"""Losses on pairs of a chosen and a rejected completion: DPO and its relatives, ORPO."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.config.sections import DpoVariant


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
    - ipo: (h - 1 / (2 * beta))². Azar et al. 2023, eq. 17. The paper's policies are of whole completions of like length; give
      averages over tokens (`sequence_logps(..., average=True)`) or long completions dominate.

    Args:
        policy_chosen_logps: [batch], nats, summed over completion tokens (averaged for ipo). Carries the gradient.
        policy_rejected_logps: [batch], likewise.
        reference_chosen_logps: [batch], nats, summed alike, of the reference.
        reference_rejected_logps: [batch], likewise.
        beta: strength of the pull towards the reference, > 0.
        label_smoothing: in [0, 0.5); only for sigmoid.
        variant: sigmoid, hinge or ipo.
    Returns:
        `losses` and the detached implicit rewards, in float32 or wider, not reduced. A non-finite input spoils its own row only.
    Raises:
        ValueError: if the batches differ in shape, or beta, label_smoothing or variant is not as described.
    """
    _check_same_shape(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    if not beta > 0:
        raise ValueError(f"beta must be greater than 0, not {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), not {label_smoothing}")
    if label_smoothing and variant != "sigmoid":
        raise ValueError(f"label_smoothing is defined for the variant sigmoid only, not for {variant}")
    wide = torch.promote_types(policy_chosen_logps.dtype, torch.float32)
    chosen_log_ratios = policy_chosen_logps.to(wide) - reference_chosen_logps.to(wide)
    rejected_log_ratios = policy_rejected_logps.to(wide) - reference_rejected_logps.to(wide)
    margins = chosen_log_ratios - rejected_log_ratios
    if variant == "sigmoid":
        losses = -logsigmoid(beta * margins) * (1 - label_smoothing) - logsigmoid(-beta * margins) * label_smoothing
    elif variant == "hinge":
        losses = torch.relu(1 - beta * margins)
    elif variant == "ipo":
        losses = (margins - 1 / (2 * beta)) ** 2
    else:
        raise ValueError(f"variant must be one of {', '.join(get_args(DpoVariant))}, not {variant!r}")
    return PreferenceLoss(losses, beta * chosen_log_ratios.detach(), beta * rejected_log_ratios.detach())


class OrpoLoss(NamedTuple):
    """One value per pair."""

    losses: Tensor
    """[batch], not reduced: likelihood and odds ratio together."""
    odds_ratio_losses: Tensor
    """[batch], detached: -log sigmoid(log_odds), without its weight."""
    log_odds: Tensor
    """[batch], detached: log of odds(chosen) / odds(rejected)."""


def orpo_loss(
    chosen_average_logps: Tensor, rejected_average_logps: Tensor, chosen_nll: Tensor, *, odds_ratio_weight: float
) -> OrpoLoss:
    """Odds Ratio Preference Optimization, one value per pair; needs no reference.

    chosen_nll - odds_ratio_weight * log sigmoid(log_odds), log_odds = log(odds(chosen) / odds(rejected)),
    odds = p / (1 - p), p = exp(average log-probability per token). Hong et al. 2024, eqs. 4-7; odds_ratio_weight is their lambda.
    Computed in float32 or wider: in half precision 1 - p is 0 for a likely completion, and the odds are infinite.

    Args:
        chosen_average_logps: [batch], nats per token, at most 0. Carries the gradient.
        rejected_average_logps: [batch], likewise.
        chosen_nll: [batch], nats; the fine-tuning loss of the chosen completion.
        odds_ratio_weight: weight of the odds-ratio term, 0 or more.
    Returns:
        `losses` with gradient, and the detached parts. Finite for every finite input up to and including an average of exactly 0,
        which is taken for the largest probability below 1 that the arithmetic can tell from it.
    Raises:
        ValueError: if the batches differ in shape or the weight is negative.
    """
    _check_same_shape(chosen_average_logps, rejected_average_logps, chosen_nll)
    if not odds_ratio_weight >= 0:
        raise ValueError(f"odds_ratio_weight must be 0 or more, not {odds_ratio_weight}")
    log_odds = _log_odds(chosen_average_logps) - _log_odds(rejected_average_logps)
    odds_ratio_losses = -logsigmoid(log_odds)
    wide_nll = chosen_nll.to(log_odds.dtype)
    return OrpoLoss(wide_nll + odds_ratio_weight * odds_ratio_losses, odds_ratio_losses.detach(), log_odds.detach())


def _log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logps), without cancellation at either end."""
    wide = logps.to(torch.promote_types(logps.dtype, torch.float32))
    wide = wide.clamp(max=-torch.finfo(wide.dtype).eps)
    # log(1 - exp(x)): log1p loses all digits near x = 0, log(-expm1) loses them for very negative x (Mächler 2012). After the
    # clamp neither is infinite anywhere, so that the branch not taken does no harm to the gradient.
    near_zero = wide > -0.6931471805599453
    log_of_rest = torch.where(near_zero, torch.log(-torch.expm1(wide)), torch.log1p(-torch.exp(wide)))
    return wide - log_of_rest


def _check_same_shape(*tensors: Tensor) -> None:
    shapes = [list(tensor.shape) for tensor in tensors]
    if any(shape != shapes[0] or len(shape) != 1 for shape in shapes):
        raise ValueError(f"all inputs must be [batch] of one size, not {shapes}")
