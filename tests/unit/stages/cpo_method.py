"""Contrastive Preference Optimization, a method that exists only in the tests: what a new pairwise method has to bring.

-log sigmoid(beta * (chosen - rejected)) - log-likelihood of the chosen completion per token, Xu et al. 2024, eq. 5 and 6. No
reference.
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


def cpo_loss(chosen_logps: Tensor, rejected_logps: Tensor, chosen_nll: Tensor, *, beta: float) -> Tensor:
    """[batch], not reduced; log-probabilities are [batch], nats, summed over the completion."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (chosen_logps - rejected_logps)) + chosen_nll


class Config(PreferenceConfig):
    """CPO on preferences."""

    method = "cpo"

    beta: float = Field(default=0.1, gt=0)
    """Scale of the reward."""

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        chosen, rejected = outputs.chunk(2)
        losses = cpo_loss(chosen, rejected, -chosen / batch["token_counts"].chunk(2)[0], beta=self.beta)
        return PairLosses(losses, preference_metrics(chosen, rejected, scale=self.beta))


def run(context: StageContext[Config]) -> StageOutcome:
    """Train without a reference."""
    from align.training.pairwise.run import run_pairwise

    return run_pairwise(context)
