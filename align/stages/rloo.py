"""REINFORCE Leave-One-Out: sample several completions of a prompt; the mean of the others is the baseline of each.

Reward of a completion: score - kl_coef * (log-probability - the reference's); advantage: reward - mean reward of the others of
its group, not scaled; no value model. Ahmadian et al. 2024, section 2.2; updates are clipped as in TRL.
In: a model (policy and frozen reference), prompts, scorers. Out: a model. Metrics per rollout batch: objective/scores,
objective/kl, zero_variance_groups, objective/entropy, policy/clipfrac_avg, policy/approxkl_avg, ….
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from align.config.online import LossAggregation
from align.stage import StageContext, StageOutcome
from align.training.online.config import GroupConfig

VERSION = 2


class Config(GroupConfig):
    """RLOO on prompts, with scorers that score completions."""

    method: ClassVar[str] = "rloo"

    group_size: int = Field(default=4, ge=2)
    """Completions per prompt; rollout_batch_size must be a multiple."""
    advantage_baseline: Literal["mean", "leave_one_out"] = "leave_one_out"
    """What is subtracted: the mean of the group, or of the other completions of the group."""
    advantage_scale: Literal["std", "batch", "none"] = "none"
    """What it is divided by: std is the standard deviation of the group, batch that of the rewards of the whole rollout batch,
    none nothing."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where the KL penalty is: a term of the loss of every token (estimator k3), or part of a completion's reward (k1)."""
    kl_coef: float = Field(default=0.03, ge=0)
    """Weight of the KL penalty; if it adapts, the first value. 0: no reference is loaded, unless there is a kl_limit."""
    loss_aggregation: LossAggregation = "constant"
    """What counts alike in an optimizer step. tokens: every token. sequences: every completion, whatever its length. constant:
    every token, divided by a number that does not depend on lengths."""
    cliprange_high: float = Field(default=0.2, gt=0)
    """How far the ratio may rise before its gradient stops; cliprange says how far it may fall."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Train on groups."""
    from align.training.online.run import run_online

    return run_online(context, context.config)
