"""How scores become advantages: the part that each online method decides for itself.

A stage mixes its estimator into its Config, so that a default stands once. Recipes are read with these classes: importing them
loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from pydantic import Field

from align.config.base import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-4
"""Keeps a batch of equal rewards at 0, as `group_advantages` does for a group."""


@dataclass(frozen=True)
class RewardedBatch:
    """The completions of a rollout batch, all detached."""

    scores: Tensor
    """[episodes], centred, with the penalty for completions that were cut."""
    rewards: Tensor
    """[episodes, seq]: the KL penalty of every token, and the score on the last one; 0 outside the mask."""
    mask: Tensor
    """[episodes, seq], completion_mask (bool)."""
    groups: Tensor
    """[episodes]: completions of one prompt have the same number."""
    values: Tensor | None
    """[episodes, seq], of the value model before the updates; None where there is no value model."""


class Estimate(NamedTuple):
    """[episodes, seq] each, 0 outside the mask."""

    advantages: Tensor
    returns: Tensor | None
    """Targets of the value model; None where there is no value model."""


class Advantage(Protocol):
    """An advantage estimator."""

    @property
    def group_size(self) -> int:
        """Completions of one prompt that it compares."""
        ...

    def estimate(self, batch: RewardedBatch) -> Estimate:
        """The advantage of every token of a rollout batch, scaled as the policy loss takes it."""
        ...


class Gae(StrictModel):
    """Generalized advantage estimation against a value model, whitened over the whole rollout batch."""

    whiten_rewards: bool = False
    """Scale the rewards of a rollout batch to variance 1, keeping their mean."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Generalized advantage estimation: 0 is one-step, 1 the whole return."""

    @property
    def group_size(self) -> int:
        return 1

    def estimate(self, batch: RewardedBatch) -> Estimate:
        from align.losses.ppo import generalized_advantages, masked_whiten

        assert batch.values is not None
        rewards, mask = batch.rewards, batch.mask
        if self.whiten_rewards:
            # The mean stays: shifting it would pay for every token, and so for length.
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        estimate = generalized_advantages(rewards, batch.values, mask, gamma=self.gamma, gae_lambda=self.gae_lambda)
        return Estimate(masked_whiten(estimate.advantages, mask), estimate.returns)


class GroupAdvantage(StrictModel):
    """How much better a completion's reward is than those of the other completions of its prompt; the same for all its tokens."""

    advantage_baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is subtracted: the mean of the group, or of the other completions of the group (RLOO)."""
    advantage_scale: Literal["std", "batch", "none"] = "std"
    """What it is divided by: std is the standard deviation of the group (GRPO), batch that of the rewards of the whole rollout
    batch, none nothing (Dr. GRPO)."""

    def estimate(self, batch: RewardedBatch) -> Estimate:
        import torch

        from align.losses.policy import group_advantages

        rewards = batch.rewards.sum(-1)
        # A group lacks the completions without a finite score; one that is left alone has nothing to be compared with.
        sizes = batch.groups.unique_consecutive(return_counts=True)[1].tolist()
        scale: Literal["std", "none"] = "std" if self.advantage_scale == "std" else "none"
        parts = [
            group_advantages(group, group_size=len(group), scale=scale, baseline=self.advantage_baseline)
            if len(group) > 1
            else torch.zeros_like(group)
            for group in rewards.split(sizes)
        ]
        advantages = torch.cat(parts)
        if self.advantage_scale == "batch" and len(rewards) > 1:
            advantages = advantages / (rewards.std() + EPSILON)
        return Estimate(advantages[:, None] * batch.mask, returns=None)
