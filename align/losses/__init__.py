"""Loss functions: pure, on tensors, not reduced. Importing this loads torch."""

from align.config.sections import DpoVariant
from align.losses.dpo import PreferenceLoss, dpo_loss
from align.losses.logps import sequence_logps
from align.losses.orpo import OrpoLoss, orpo_loss
from align.losses.ppo import (
    Advantages,
    PolicyLoss,
    generalized_advantages,
    kl_penalized_rewards,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
)
from align.losses.reward import reward_model_loss

__all__ = [
    "Advantages",
    "DpoVariant",
    "OrpoLoss",
    "PolicyLoss",
    "PreferenceLoss",
    "dpo_loss",
    "generalized_advantages",
    "kl_penalized_rewards",
    "masked_whiten",
    "orpo_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "reward_model_loss",
    "sequence_logps",
]
