"""Simple Preference Optimization, a method that exists only in the tests: what a new pairwise method has to bring.

-log sigmoid(beta * (average chosen - average rejected) - gamma), Meng et al. 2024, eq. 6. No reference.
In: a model, preferences. Out: a model. Metrics: those of every method that trains a language model on pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from align.stage import StageContext, StageOutcome
from align.training.pairwise.objective import BatchCounts, PairLosses, PreferenceConfig, preference_metrics

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1


def simpo_loss(chosen_average_logps: Tensor, rejected_average_logps: Tensor, *, beta: float, gamma: float) -> Tensor:
    """[batch], not reduced; both inputs are [batch], nats per token."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (chosen_average_logps - rejected_average_logps) - gamma)


class Config(PreferenceConfig):
    """SimPO on preferences."""

    method = "simpo"

    beta: float = Field(default=2.0, gt=0)
    """Scale of the reward."""
    gamma: float = Field(default=0.5, ge=0)
    """Margin by which the chosen reward should be higher."""

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        chosen, rejected = (outputs / batch["token_counts"]).chunk(2)
        losses = simpo_loss(chosen, rejected, beta=self.beta, gamma=self.gamma)
        return PairLosses(losses, preference_metrics(chosen, rejected, scale=self.beta))


def run(context: StageContext[Config]) -> StageOutcome:
    """Train without a reference."""
    from align.training.pairwise.run import run_pairwise

    return run_pairwise(context)
