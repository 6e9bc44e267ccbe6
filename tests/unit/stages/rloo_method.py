"""REINFORCE Leave-One-Out, a method that exists only in the tests: what a new online method has to bring.

A completion's baseline is the mean reward of the other completions of its prompt; Ahmadian et al. 2024. No value model.
In: a model, prompts, scorers. Out: a model. Metrics: PPO's, without those of the value model.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.stage import StageContext, StageOutcome
from align.training.online.advantage import Estimate, RewardedBatch
from align.training.online.config import OnlineConfig

VERSION = 1


class Config(OnlineConfig):
    """RLOO on prompts."""

    method: ClassVar[str] = "rloo"

    group_size: int = Field(default=4, ge=2)
    """Completions per prompt."""

    def estimate(self, batch: RewardedBatch) -> Estimate:
        same_prompt = (batch.groups[:, None] == batch.groups[None]).float()
        rewards, others = batch.rewards.sum(-1), same_prompt.sum(-1) - 1
        baselines = (same_prompt @ rewards - rewards) / others.clamp(min=1)
        # A completion that is alone in its group has nothing to be compared with.
        advantages = (rewards - baselines) * (others > 0)
        return Estimate(advantages[:, None] * batch.mask, returns=None)


def run(context: StageContext[Config]) -> StageOutcome:
    """Train by the shared loop."""
    from align.training.online.run import run_online

    return run_online(context, context.config)
