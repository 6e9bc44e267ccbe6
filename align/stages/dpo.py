"""Direct Preference Optimization: make the chosen completions likelier than the rejected ones, near a reference.

-log sigmoid(beta * (policy margin - reference margin)), Rafailov et al. 2023, eq. 7, and its relatives as variants. The reference
is the model that training starts from, unless another is named; its log-probabilities are computed once and kept in the store,
and where it is the model itself the loss at step 0 is ln 2.
In: a model, preferences. Out: a model. Metrics: loss, rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins,
logps/chosen, logps/rejected; nll_loss with `nll_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from align.config.dpo_loss import DpoLoss
from align.stage import StageContext, StageOutcome
from align.training.pairwise.objective import BatchCounts, PairLosses, ReferenceConfig, preference_metrics

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 6


class Config(DpoLoss, ReferenceConfig):
    """DPO and its relatives on preferences."""

    method = "dpo"

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        from align.losses import dpo_loss  # torch takes a second to load, and recipes are read with this class

        chosen, rejected = outputs.chunk(2)
        reference = batch["reference_chosen_logps"], batch["reference_rejected_logps"]
        logps = [chosen, rejected, *reference]
        if self.averages_per_token:
            logps = [sums / length for sums, length in zip(logps, batch["token_counts"].chunk(2) * 2, strict=True)]
        losses = dpo_loss(*logps, beta=self.beta, label_smoothing=self.label_smoothing, variant=self.variant).losses
        metrics = preference_metrics(chosen, rejected, scale=self.beta, reference=reference)
        if self.nll_weight:
            # Scaled so that the mean over pairs is the mean over tokens.
            nll = -chosen * (counts.pairs / counts.likelihood_tokens)
            losses, metrics = losses + self.nll_weight * nll, metrics | {"nll_loss": nll.detach()}
        return PairLosses(losses, metrics)


def run(context: StageContext[Config]) -> StageOutcome:
    """Train against the reference."""
    from align.training.pairwise.run import run_pairwise

    return run_pairwise(context)
