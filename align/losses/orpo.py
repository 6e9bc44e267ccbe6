"""Odds Ratio Preference Optimization, on pairs of a chosen and a rejected completion."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.losses.logps import check_pairs


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
        which counts as the largest probability below 1 that the arithmetic can represent.
    Raises:
        ValueError: if the batches differ in shape or the weight is negative.
    """
    check_pairs(chosen_average_logps, rejected_average_logps, chosen_nll)
    if not odds_ratio_weight >= 0:
        raise ValueError(f"odds_ratio_weight must be 0 or more, not {odds_ratio_weight}")
    log_odds = _log_odds(chosen_average_logps) - _log_odds(rejected_average_logps)
    odds_ratio_losses = -logsigmoid(log_odds)
    wide_nll = chosen_nll.to(log_odds.dtype)
    return OrpoLoss(wide_nll + odds_ratio_weight * odds_ratio_losses, odds_ratio_losses.detach(), log_odds.detach())


def _log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logps), without cancellation at either end."""
    wide = logps.to(torch.promote_types(logps.dtype, torch.float32))
    # A probability of exactly 1 has infinite odds.
    wide = wide.clamp(max=-torch.finfo(wide.dtype).eps)
    # log(1 - exp(x)): log1p loses all digits near x = 0, log(-expm1) loses them for very negative x (Mächler 2012). After the
    # clamp neither is infinite anywhere, so the branch that `where` discards cannot make the gradient NaN.
    near_zero = wide > -0.6931471805599453
    log_of_rest = torch.where(near_zero, torch.log(-torch.expm1(wide)), torch.log1p(-torch.exp(wide)))
    return wide - log_of_rest
