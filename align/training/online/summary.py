"""What the manifest keeps of an online training."""

from __future__ import annotations

from typing import Any

from align.config.online import OnlineTraining
from align.models.trainable import count_trained
from align.training.online.models import Models
from align.training.online.state import TrainerState

FIRST = (("scores_first", "objective/scores"), ("teacher/kl_first", "teacher/kl"))
"""Numbers of the first rollout batch, and their metrics."""
LAST = (
    *("objective/scores", "objective/kl", "val/explained_var", "policy/clipfrac_avg", "rollout/sampler_gap"),
    *("zero_variance_groups", "rollout/truncated_masked", "teacher/kl", "teacher/agreement"),
)
"""Metrics of the last rollout batch."""


def summary(state: TrainerState, config: OnlineTraining, models: Models, *, stopped_by_kl: bool) -> dict[str, Any]:
    """Numbers of the whole training.

    Args:
        stopped_by_kl: whether kl_limit ended it.
    """
    work = sum(state.seconds.get(kind, 0.0) for kind in ("rollout", "score", "experience", "train", "sync"))
    episodes = state.rollouts * config.rollout_batch_size
    first, last = state.rows[0], state.rows[-1]
    return {
        "rollouts": state.rollouts,
        "episodes": episodes,
        "new_tokens": state.new_tokens,
        "tokens": state.tokens,
        "trained_tokens": state.trained_tokens,
        **({} if config.reward_settings is None else {"stopped_by_kl_limit": stopped_by_kl}),
        **{short: first[name] for short, name in FIRST if name in first},
        **{name: last[name] for name in LAST if name in last},
        **_of_rewards(state, config),
        "trained_parameters": count_trained(models.policy),
        "precision": models.settings.precision,
        "micro_batch_tokens": models.settings.pass_size.size,
        "gradient_checkpointing": models.settings.pass_size.recomputes,
        "seconds": {kind: round(seconds, 3) for kind, seconds in state.seconds.items()},
        "sync_share": round(state.seconds.get("sync", 0.0) / work, 5),
        "episodes_per_second": round(episodes / work, 2),
    }


def _of_rewards(state: TrainerState, config: OnlineTraining) -> dict[str, Any]:
    """Of a method that learns from scores; of one on groups also what it sampled beyond what it learned from."""
    if config.reward_settings is None:
        return {}
    metrics = {
        "policy/approxkl_max": max(row.get("policy/approxkl_avg", 0.0) for row in state.rows),
        "kl_coef": state.kl_coef,
        "score_bias": state.score_bias,
        "nonfinite_scores": state.nonfinite,
    }
    if config.group_settings is None:
        return metrics
    return metrics | {
        "scored_completions": state.scored,
        "scored_tokens": state.scored_tokens,
        "replaced_groups": state.refilled,
        "truncated_completions": state.truncated,
    }
