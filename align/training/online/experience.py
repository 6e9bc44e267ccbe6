"""What the updates need of a rollout batch: log-probabilities, advantages and returns of every token; and its metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.config.online import Rewards, RewardTraining
from align.losses.ppo import kl_penalized_rewards
from align.training.online.advantage import Advantage, RewardedBatch
from align.training.online.layout import Episode, completion_offsets, to_rows
from align.training.online.models import Models, policy_logps, policy_logps_and_entropy, token_values
from align.training.online.rollout import Rollout
from align.training.online.shares import Passes, fill_from_all


@dataclass(frozen=True)
class Experience:
    """Input of the updates of one rollout batch: [completion tokens] each, flat in the order of the episodes, detached."""

    logps: Tensor
    """Nats, of the policy that sampled, computed by the trainer."""
    advantages: Tensor
    importance: Tensor
    """Truncated weight for the gap between the trainer's and the sampler's log-probabilities."""
    values: Tensor | None
    """Of the value model before the updates; None where there is no value model."""
    returns: Tensor | None
    """Targets of the value model; None where there is no value model."""
    reference_logps: Tensor | None = None
    """Nats, of the reference; None where the KL is no term of the loss."""

    def at(self, tokens: Tensor) -> Experience:
        """The same for some tokens."""
        numbers = {name: None if values is None else values[tokens] for name, values in vars(self).items()}
        return Experience(**numbers)  # type: ignore[arg-type]  # only fields that may be None are


@torch.no_grad()
def make_experience(
    rollout: Rollout,
    models: Models,
    config: RewardTraining,
    advantage: Advantage,
    *,
    kl_coef: float,
    score_bias: float,
) -> tuple[Experience, dict[str, float]]:
    """The experience of a rollout batch, and its numbers under TRL's names.

    Args:
        kl_coef: weight of the KL penalty for this batch.
        score_bias: subtracted from every score, and from every value, which starts as a score.
    """
    episodes, settings = rollout.episodes, models.settings
    offsets = completion_offsets(episodes)
    logps, entropy = (torch.zeros(offsets[-1], device=settings.device) for _ in range(2))
    reference_logps = torch.zeros_like(logps) if config.needs_reference else None
    values = None if models.value is None else torch.zeros_like(logps)

    def fill_in(passes: Passes) -> None:
        for batch, weight in passes.weighted():
            found = policy_logps_and_entropy(models.policy, batch, settings)
            with models.as_reference() if reference_logps is not None else contextlib.nullcontext() as reference:
                of_reference = None if reference is None else policy_logps(reference, batch, settings)
            of_value = None if values is None else token_values(models.value, batch, settings) - score_bias
            if not weight:
                continue
            logps[batch.tokens], entropy[batch.tokens] = found
            if reference_logps is not None and of_reference is not None:
                reference_logps[batch.tokens] = of_reference
            if values is not None and of_value is not None:
                values[batch.tokens] = of_value

    settings.run_passes(episodes, range(len(episodes)), fill_in)
    fill_from_all([tensor for tensor in (logps, entropy, reference_logps, values) if tensor is not None])
    scores = shaped_scores(rollout.scores, rollout.ended, config, score_bias).to(settings.device)
    logps_rows, mask = to_rows(logps, offsets)
    # Without a reference there is no difference to one.
    reference_rows = logps_rows if reference_logps is None else to_rows(reference_logps, offsets)[0]
    in_loss = config.surrogate.kl_in_loss
    rewards = kl_penalized_rewards(scores, logps_rows, reference_rows, mask, kl_coef=0.0 if in_loss else kl_coef)
    values_rows = None if values is None else to_rows(values, offsets)[0]
    estimate = advantage.estimate(RewardedBatch(scores, rewards, mask, rollout.groups.to(settings.device), values_rows))
    returns = None if estimate.returns is None else estimate.returns[mask]
    # The engine computes the same weights with other kernels, and often in bfloat16; importance weights correct for that.
    sampler_gap = logps - rollout.sampler_logps.to(settings.device)
    experience = Experience(
        logps=logps,
        advantages=estimate.advantages[mask],
        importance=importance_weights(sampler_gap, offsets, config),
        values=values,
        returns=returns,
        reference_logps=reference_logps if in_loss and kl_coef > 0 else None,
    )
    kl = ((logps_rows - reference_rows) * mask).sum(-1)
    penalty = kl_coef * kl
    numbers: dict[str, Tensor | float] = {}
    if reference_logps is not None:
        numbers |= {"objective/kl": kl.mean(), "objective/kl_coef": kl_coef}
    numbers["objective/entropy"] = entropy.mean()
    if reference_logps is not None and not in_loss:
        numbers |= {"objective/non_score_reward": -penalty.mean(), "objective/rlhf_reward": (scores - penalty).mean()}
    numbers |= {
        "objective/scores": rollout.all_scores.mean(),
        "objective/scores_std": rollout.all_scores.std(correction=0),
        **length_numbers(rollout),
        "rollout/sampler_gap": sampler_gap.abs().mean(),
        "rollout/sampler_gap_max": sampler_gap.abs().max(),
    }
    if config.group_settings is not None:
        numbers["rollout/importance_masked"] = (experience.importance == 0).float().mean()
    if values is not None and returns is not None:
        numbers["val/explained_var"] = explained_variance(values, returns)
    numbers |= watched_numbers(rollout)
    numbers |= {f"objective/parts/{name}": value for name, value in rollout.parts.items() if math.isfinite(value)}
    return experience, {name: float(value) for name, value in numbers.items()}


def length_numbers(rollout: Rollout) -> dict[str, float]:
    """How long the completions are, and how many ended by themselves."""
    tokens = sum(len(episode.completion_token_ids) for episode in rollout.episodes)
    return {
        "rollout/completion_tokens": tokens / len(rollout.episodes),
        "rollout/eos_share": float(rollout.ended.float().mean()),
    }


def watched_numbers(rollout: Rollout) -> dict[str, float]:
    """Mean scores that are logged and not optimised."""
    return {f"objective/scores/{name}": value for name, value in rollout.watched.items() if math.isfinite(value)}


def importance_weights(sampler_gap: Tensor, offsets: Sequence[int], config: RewardTraining) -> Tensor:
    """[completion tokens] weights of tokens that the sampler drew with other probabilities than the trainer computes.

    Args:
        sampler_gap: [completion tokens], nats, the trainer's log-probability less the sampler's.
        offsets: where each completion begins, and their number at the end.
    """
    groups, limit = config.group_settings, config.importance_limit
    if groups is None or groups.importance == "token_truncate":
        # Clamped twice: the exponential must be finite before it is truncated.
        return torch.exp(sampler_gap.clamp(-20, 20)).clamp(max=limit)
    rows, mask = to_rows(sampler_gap, offsets)
    weights = torch.exp(rows.sum(-1).clamp(-20, 20))
    return torch.where(weights > limit, 0.0, weights)[:, None].expand(mask.shape)[mask]


def without_cut_ones(rollout: Rollout, experience: Experience) -> tuple[list[Episode], Experience]:
    """The episodes that ended by themselves, and their experience."""
    offsets = completion_offsets(rollout.episodes)
    kept = [index for index, ended in enumerate(rollout.ended.tolist()) if ended]
    tokens = [token for index in kept for token in range(offsets[index], offsets[index + 1])]
    places = torch.tensor(tokens, dtype=torch.long, device=experience.logps.device)
    return [rollout.episodes[index] for index in kept], experience.at(places)


def shaped_scores(scores: Tensor, ended: Tensor, config: Rewards, bias: float) -> Tensor:
    """[episodes] reward at the last token: scores, centred, with the penalty for completions that were cut.

    Args:
        scores: [episodes], raw.
        ended: [episodes], True where a completion ended by itself.
        bias: subtracted from every score; 0 where scores are not centred.
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
