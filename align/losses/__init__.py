"""Loss functions: pure, on tensors, not reduced. Importing this loads torch."""

from align.config.sections import DpoVariant
from align.losses.distill import generalized_jsd_loss
from align.losses.dpo import PreferenceLoss, dpo_loss
from align.losses.kto import KtoLoss, kto_loss
from align.losses.logps import sequence_logps
from align.losses.orpo import OrpoLoss, orpo_loss
from align.losses.policy import PolicyLoss, clipped_policy_loss, group_advantages, k3_kl
from align.losses.ppo import (
    Advantages,
    generalized_advantages,
    kl_penalized_rewards,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
)
from align.losses.reward import reward_model_loss
from align.losses.simpo import simpo_loss

__all__ = [
    "Advantages",
    "DpoVariant",
    "KtoLoss",
    "OrpoLoss",
    "PolicyLoss",
    "PreferenceLoss",
    "clipped_policy_loss",
    "dpo_loss",
    "generalized_advantages",
    "generalized_jsd_loss",
    "group_advantages",
    "k3_kl",
    "kl_penalized_rewards",
    "kto_loss",
    "masked_whiten",
    "orpo_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "reward_model_loss",
    "sequence_logps",
    "simpo_loss",
]
