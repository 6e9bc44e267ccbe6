"""Ranges of metrics beyond which a training or a comparison says so; the docs page of each method explains them."""

from __future__ import annotations

MOST_SAMPLER_GAP = 0.1
"""Nats per token between engine and trainer, in the mean over a rollout batch."""
MOST_UPDATE_KL = 0.1
"""Nats per token between the policies before and after the updates of a rollout batch (`policy/approxkl_avg`)."""
MOST_EQUAL_GROUPS = 0.9
"""Share of groups whose completions all scored the same (`zero_variance_groups`)."""
MOST_TRUNCATED = 0.5
"""Share of completions that were left out because they were cut (`rollout/truncated_masked`)."""
MOST_KL = 50.0
"""Nats per completion between a model and the one it started from: beyond the few dozen up to which this is usual."""
