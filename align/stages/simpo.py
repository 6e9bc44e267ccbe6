"""Simple Preference Optimization: DPO without a reference, on log-probabilities per token, with a margin.

-log sigmoid(beta * (average chosen - average rejected) - gamma), Meng et al. 2024, eq. 6. No reference.
In: a model, preferences. Out: a model. Metrics: loss, rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins,
logps/chosen, logps/rejected (per token).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from align.stage import StageContext, StageOutcome
from align.training.pairwise.objective import BatchCounts, PairLosses, PreferenceConfig, preference_metrics

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 2


class Config(PreferenceConfig):
    """SimPO on preferences."""

    method = "simpo"

    beta: float = Field(default=2.0, gt=0)
    """Scale of the reward. The paper takes 2 to 2.5."""
    gamma: float = Field(default=1.0, ge=0)
    """Margin by which the chosen reward should be higher. The paper takes 0.3 to 0.55 times beta."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate. The paper takes 3e-7 to 1e-6; above, the model may repeat words without end."""

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        from align.losses import simpo_loss

        chosen, rejected = (outputs / batch["token_counts"]).chunk(2)
        loss = simpo_loss(chosen, rejected, beta=self.beta, gamma=self.gamma)
        return PairLosses(loss.losses, preference_metrics(chosen, rejected, scale=self.beta))


def run(context: StageContext[Config]) -> StageOutcome:
    """Train without a reference."""
    from align.training.pairwise.run import run_pairwise

    return run_pairwise(context)
