"""What a training says once when a metric is beyond its usual range."""

from __future__ import annotations

from collections.abc import Mapping

from align.config.healthy import MOST_EQUAL_GROUPS, MOST_KL, MOST_SAMPLER_GAP, MOST_TRUNCATED, MOST_UPDATE_KL

NOTED = {
    "rollout/sampler_gap": (
        MOST_SAMPLER_GAP,
        "nats per token",
        "engine and trainer compute different models, and updates are weighted down for it. In bfloat16 it is a few hundredths; "
        "set dtype and precision to float32 to see whether rounding is the cause",
    ),
    "policy/approxkl_avg": (
        MOST_UPDATE_KL,
        "nats per token",
        "the policy moves far in one rollout batch, beyond what clipping is made for; lower learning_rate or ppo_epochs, or set "
        "update_kl_limit",
    ),
    "objective/kl": (
        MOST_KL,
        "nats per completion",
        "the policy has left what it knew, and its scores need not mean better completions; raise kl_coef, or set kl_limit",
    ),
    "zero_variance_groups": (
        MOST_EQUAL_GROUPS,
        "of the groups",
        "all their completions scored the same, so there is nothing to learn from them; take prompts that the model solves "
        "sometimes, raise group_size, or set refill_limit",
    ),
    "rollout/truncated_masked": (
        MOST_TRUNCATED,
        "of the completions",
        "they were cut at max_completion_tokens, and nothing is learned from them; raise max_completion_tokens, or set "
        "truncated: score",
    ),
}
"""Metrics that are noted when they are above a value: the value, the unit, and what that means."""

AHEAD = (
    "the policy has moved far since it sampled this batch ahead, and updates are weighted down for it; lower learning_rate, or "
    "set rollouts_ahead: 0"
)
"""What a large gap means where other weights sampled than those that learn."""


def unusual(numbers: Mapping[str, float], rollout: int) -> dict[str, str]:
    """Notes on the metrics of a rollout batch that are beyond their usual range, by metric.

    Args:
        rollout: number of the batch, from 1.
    """
    was_ahead = numbers.get("rollout/weights_version", rollout - 1) < rollout - 1
    noted = {**NOTED, "rollout/sampler_gap": (MOST_SAMPLER_GAP, "nats per token", AHEAD)} if was_ahead else NOTED
    return {
        name: f"{name} is {numbers[name]:.2g} {unit} in rollout batch {rollout}, above {most:g}: {meaning}"
        for name, (most, unit, meaning) in noted.items()
        if numbers.get(name, 0.0) > most
    }
