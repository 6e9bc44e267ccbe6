"""How strongly the policy is held to the reference: a fixed coefficient, or one that follows the measured KL."""

from __future__ import annotations

MAX_ERROR = 0.2


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float | None, horizon: int, episodes: int) -> float:
    """The coefficient for the next rollout batch.

    kl_coef * (1 + error * episodes / horizon), error = kl / target - 1, held within ±0.2. Ziegler et al. 2019, §2.2.

    Args:
        kl: mean KL per completion of this rollout batch, nats.
        target: None leaves the coefficient as it is.
        horizon: episodes over which the coefficient follows.
        episodes: completions in this rollout batch.
    """
    if target is None:
        return kl_coef
    error = min(max(kl / target - 1, -MAX_ERROR), MAX_ERROR)
    return kl_coef * (1 + error * episodes / horizon)
