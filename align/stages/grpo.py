"""Group Relative Policy Optimization: sample several completions of a prompt; those that scored above the others become likelier.

Advantage of a completion: (score - mean of its group) / standard deviation of the group; clipped updates, no value model, and no
reference where kl_coef is 0. Shao et al. 2024; the defaults are those of DAPO (Yu et al. 2025).
In: a model, prompts, scorers. Out: a model. Metrics per rollout batch: objective/scores, zero_variance_groups, objective/entropy,
rollout/truncated_masked, policy/clipfrac_avg, policy/approxkl_avg, objective/kl where there is a reference, ….
"""

from __future__ import annotations

from typing import ClassVar

from align.stage import StageContext, StageOutcome
from align.training.online.config import GroupConfig

VERSION = 2


class Config(GroupConfig):
    """GRPO on prompts, with scorers that score completions."""

    method: ClassVar[str] = "grpo"


def run(context: StageContext[Config]) -> StageOutcome:
    """Train on groups."""
    from align.training.online.run import run_online

    return run_online(context, context.config)
