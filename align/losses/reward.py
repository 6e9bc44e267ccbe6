"""Loss of a reward model on pairs of scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.losses.logps import check_pairs


def reward_model_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, *, margin: Tensor | None = None, center_coef: float = 0.0
) -> Tensor:
    """Bradley–Terry loss, one value per pair.

    -log sigmoid(chosen - rejected - margin) + center_coef * (chosen + rejected)². Ouyang et al. 2022, eq. 1, for one pair;
    margin: Touvron et al. 2023 (Llama 2), eq. 2; centring: Eisenstein et al. 2023, §4 (without it, any constant can be added).
    In float32 or wider. ln 2 for equal scores without margin.

    Args:
        chosen_scores: [batch], raw scores. Carries the gradient.
        rejected_scores: [batch], likewise.
        margin: [batch], by how much each chosen score should be higher; none: 0.
        center_coef: weight of the pull towards scores whose sum is zero, 0 or more.
    Returns:
        [batch], not reduced.
    Raises:
        ValueError: if the batches differ in shape or `center_coef` is negative.
    """
    check_pairs(*(tensor for tensor in (chosen_scores, rejected_scores, margin) if tensor is not None))
    if not center_coef >= 0:
        raise ValueError(f"center_coef must be 0 or more, not {center_coef}")
    # bfloat16 scores near 10 are 0.06 apart, as coarse as the differences that the loss compares.
    wide = torch.promote_types(chosen_scores.dtype, torch.float32)
    chosen, rejected = chosen_scores.to(wide), rejected_scores.to(wide)
    difference = chosen - rejected
    losses = -logsigmoid(difference if margin is None else difference - margin)
    return losses + center_coef * (chosen + rejected) ** 2 if center_coef else losses
