"""What a rollout batch teaches: from scores and log-probabilities to advantages and returns, and the numbers to watch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.config.ppo import Rewards
from align.losses.ppo import generalized_advantages, kl_penalized_rewards, masked_whiten
from align.training.online.layout import completion_offsets, to_rows
from align.training.online.models import (
    ForwardSettings,
    Models,
    policy_logps,
    policy_logps_and_entropy,
    token_values,
)
from align.training.online.rollout import Rollout


@dataclass(frozen=True)
class Experience:
    """[completion tokens] each, flat in the order of the episodes, detached; what the updates of one rollout batch need."""

    logps: Tensor
    """Nats, of the policy that sampled, computed by the trainer."""
    values: Tensor
    """Of the value model before the updates."""
    advantages: Tensor
    """Whitened over the whole rollout batch."""
    returns: Tensor
    importance: Tensor
    """Truncated weight for the gap between the trainer's and the sampler's log-probabilities."""

    def at(self, tokens: Tensor) -> Experience:
        """The same for some tokens."""
        return Experience(*(values[tokens] for values in vars(self).values()))


@torch.no_grad()
def make_experience(
    rollout: Rollout,
    models: Models,
    settings: ForwardSettings,
    config: Rewards,
    *,
    kl_coef: float,
    score_bias: float,
    importance_limit: float,
) -> tuple[Experience, dict[str, float]]:
    """The experience of a rollout batch, and its numbers under TRL's names.

    Args:
        kl_coef: weight of the KL penalty for this batch.
        score_bias: taken off every score, and off every value, which starts as a score.
        importance_limit: truncation of the importance weights, 1 or more.
    """
    episodes = rollout.episodes
    offsets = completion_offsets(episodes)
    logps, entropy, reference_logps, values = (torch.zeros(offsets[-1], device=settings.device) for _ in range(4))
    for batch in settings.passes(episodes, range(len(episodes))):
        logps[batch.tokens], entropy[batch.tokens] = policy_logps_and_entropy(models.policy, batch, settings)
        with models.as_reference() as reference:
            reference_logps[batch.tokens] = policy_logps(reference, batch, settings)
        values[batch.tokens] = token_values(models.value, batch, settings) - score_bias
    scores = shaped_scores(rollout.scores, rollout.ended, config, score_bias).to(settings.device)
    logps_rows, mask = to_rows(logps, offsets)
    reference_rows, _ = to_rows(reference_logps, offsets)
    values_rows, _ = to_rows(values, offsets)
    rewards = kl_penalized_rewards(scores, logps_rows, reference_rows, mask, kl_coef=kl_coef)
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False)
    estimate = generalized_advantages(rewards, values_rows, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
    advantages = masked_whiten(estimate.advantages, mask)
    returns = estimate.returns[mask]
    sampler_gap = logps - rollout.sampler_logps.to(settings.device)
    experience = Experience(
        logps=logps,
        values=values,
        advantages=advantages[mask],
        returns=returns,
        importance=torch.exp(sampler_gap.clamp(-20, 20)).clamp(max=importance_limit),
    )
    kl = ((logps_rows - reference_rows) * mask).sum(-1)
    penalty = kl_coef * kl
    numbers: dict[str, Tensor | float] = {
        "objective/kl": kl.mean(),
        "objective/kl_coef": kl_coef,
        "objective/entropy": entropy.mean(),
        "objective/non_score_reward": -penalty.mean(),
        "objective/rlhf_reward": (scores - penalty).mean(),
        "objective/scores": rollout.scores.mean(),
        "objective/scores_std": rollout.scores.std(correction=0),
        "rollout/completion_tokens": float(len(logps)) / len(episodes),
        "rollout/eos_share": rollout.ended.float().mean(),
        "rollout/sampler_gap": sampler_gap.abs().mean(),
        "rollout/sampler_gap_max": sampler_gap.abs().max(),
        "val/explained_var": explained_variance(values, returns),
    }
    numbers |= {f"objective/scores/{name}": value for name, value in rollout.watched.items() if math.isfinite(value)}
    numbers |= {f"objective/parts/{name}": value for name, value in rollout.parts.items() if math.isfinite(value)}
    return experience, {name: float(value) for name, value in numbers.items()}


def shaped_scores(scores: Tensor, ended: Tensor, config: Rewards, bias: float) -> Tensor:
    """[episodes] what PPO is rewarded with at the last token: scores, centred, with the penalty for completions that were cut.

    Args:
        scores: [episodes], raw.
        ended: [episodes], True where a completion ended by itself.
        bias: taken off every score where `config.center_scores`.
    """
    shaped = scores - bias
    if config.missing_eos_score is not None:
        return torch.where(ended, shaped, config.missing_eos_score)
    return torch.where(ended, shaped, shaped - config.missing_eos_penalty)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect value model, 0 one that knows nothing, below 0 a harmful one.

    0.0 where the returns do not vary.
    """
    spread = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / spread) if spread > 0 else 0.0


def mean_numbers(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every number over the updates of a rollout batch."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
