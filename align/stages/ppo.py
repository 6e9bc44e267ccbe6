"""Proximal Policy Optimization: sample from the policy, score, and make what scored above expectation likelier.

Reward per token: -kl_coef * (log-probability - the reference's), and the score on the last one; advantages by GAE against a
value model that starts as the reward model; clipped updates. Ouyang et al. 2022, appendix C.4; Schulman et al. 2017.
In: a model (policy and frozen reference), prompts, scorers. Out: a model. Metrics per rollout batch: objective/scores,
objective/kl, objective/entropy, policy/clipfrac_avg, policy/approxkl_avg, val/explained_var, rollout/eos_share, ….
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from align.config.online import ValueOptimization
from align.config.reference import RewardModelReference
from align.config.sections import reward_models_of
from align.stage import StageContext, StageOutcome
from align.training.needs import TrainingNeeds
from align.training.online.advantage import Gae
from align.training.online.config import ScoredConfig

VERSION = 5


class Config(Gae, ValueOptimization, ScoredConfig):
    """PPO on prompts, with scorers that score completions."""

    method: ClassVar[str] = "ppo"

    value_model: RewardModelReference | None = None
    """Reward model that the value model starts from. Default: the first reward model in scorers, or the policy."""

    def value_source(self) -> RewardModelReference | None:
        """The reward model that the value model starts from; None for the policy."""
        reward_models = [name for scorer in self.scorers.values() for name in reward_models_of(scorer)]
        return self.value_model or next(iter(reward_models), None)

    def training_needs(self) -> TrainingNeeds:
        return replace(super().training_needs(), value_model=self.value_source() or self.model)


def run(context: StageContext[Config]) -> StageOutcome:
    """Train with a value model."""
    from align.training.online.run import run_online
    from align.training.online.value import ValueModel

    config = context.config
    source = config.value_source()
    value_model = ValueModel(config, None if source is None else context.artifact(source))
    return run_online(context, config, value_model=value_model)
