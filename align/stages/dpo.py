"""Direct Preference Optimization: make the chosen completions likelier than the rejected ones, near a reference.

-log sigmoid(beta * (policy margin - reference margin)), Rafailov et al. 2023, eq. 7; hinge (Zhao et al. 2023) and IPO (Azar et
al. 2023) on the same margins. The reference is the model that training starts from, unless another is named; its
log-probabilities are computed once and kept in the store, and where it is the model itself the loss at step 0 is ln 2.
In: a model, preferences. Out: a model. Metrics: loss, rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins,
logps/chosen, logps/rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from align.config.base import Problem
from align.config.sections import DpoVariant
from align.stage import StageContext, StageOutcome
from align.training.pairwise.objective import BatchCounts, PairLosses, ReferenceConfig, preference_metrics

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 5


class Config(ReferenceConfig):
    """DPO and its relatives on preferences."""

    method = "dpo"

    variant: DpoVariant = "sigmoid"
    """Shape of the loss: sigmoid is DPO itself, hinge as in SLiC-HF, ipo a squared distance on averages per token."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of flipped labels (conservative DPO); for the variant sigmoid only."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        variant, smoothing = fields.get("variant", cls.model_fields["variant"].default), fields.get("label_smoothing")
        if variant != "sigmoid" and isinstance(smoothing, float) and smoothing > 0:
            yield Problem(("label_smoothing",), f"is defined for the variant sigmoid only, not for {variant}; leave it out")

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        from align.losses import dpo_loss  # torch takes a second to load, and recipes are read with this class

        chosen, rejected = outputs.chunk(2)
        reference = batch["reference_chosen_logps"], batch["reference_rejected_logps"]
        logps = [chosen, rejected, *reference]
        if self.variant == "ipo":
            # It compares averages per token, of the reference as of the policy, or long completions would decide.
            logps = [sums / length for sums, length in zip(logps, batch["token_counts"].chunk(2) * 2, strict=True)]
        loss = dpo_loss(*logps, beta=self.beta, label_smoothing=self.label_smoothing, variant=self.variant)
        return PairLosses(loss.losses, preference_metrics(chosen, rejected, scale=self.beta, reference=reference))


def run(context: StageContext[Config]) -> StageOutcome:
    """Train against the reference."""
    from align.training.pairwise.run import run_pairwise

    return run_pairwise(context)
