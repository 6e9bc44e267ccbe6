"""Direct Preference Optimization: make the chosen completions likelier than the rejected ones, near a reference.

-log sigmoid(beta * (policy margin - reference margin)), Rafailov et al. 2023, eq. 7; hinge (Zhao et al. 2023) and IPO (Azar et
al. 2023) on the same margins. The reference is the model that training starts from, unless another is named; its
log-probabilities are computed once and kept in the store, and where it is the model itself the loss at step 0 is ln 2.
In: a model, preferences. Out: a model. Metrics: loss, rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins,
logps/chosen, logps/rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from align.config.base import Problem
from align.config.reference import ModelReference, RowsReference
from align.config.sections import DpoVariant
from align.records import Preference
from align.stage import StageContext, StageOutcome
from align.training.needs import TrainingNeeds, pair_batch
from align.training.pairwise.objective import BatchCounts, PairLosses, PairwiseConfig, PairwiseObjective, preference_metrics

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 5


class DpoObjective(PairwiseObjective):
    """DPO and its relatives; the batch has `reference_chosen_logps` and `reference_rejected_logps` (nats, summed)."""

    method: ClassVar[str] = "dpo"
    final_metrics: ClassVar[tuple[str, ...]] = (
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        "rewards/chosen",
        "rewards/rejected",
    )

    variant: DpoVariant = "sigmoid"
    """Shape of the loss: sigmoid is DPO itself, hinge as in SLiC-HF, ipo a squared distance on averages per token."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of flipped labels (conservative DPO); for the variant sigmoid only."""

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        variant, smoothing = fields.get("variant", cls.model_fields["variant"].default), fields.get("label_smoothing")
        if variant != "sigmoid" and isinstance(smoothing, float) and smoothing > 0:
            yield Problem(("label_smoothing",), f"is defined for the variant sigmoid only, not for {variant}; leave it out")

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        chosen, rejected = outputs.chunk(2)
        reference_chosen, reference_rejected = batch["reference_chosen_logps"], batch["reference_rejected_logps"]
        logps = [chosen, rejected, reference_chosen, reference_rejected]
        if self.variant == "ipo":
            # It compares averages per token, of the reference as of the policy, or long completions would decide.
            lengths = batch["token_counts"].chunk(2)
            logps = [sums / length for sums, length in zip(logps, lengths * 2, strict=True)]
        chosen_rewards = self.beta * (chosen.detach() - reference_chosen)
        rejected_rewards = self.beta * (rejected.detach() - reference_rejected)
        return PairLosses(self._losses(*logps), preference_metrics(chosen, rejected, chosen_rewards, rejected_rewards))

    def loss_without_margin(self) -> float:
        import torch

        zero = torch.zeros(1, dtype=torch.float64)
        return float(self._losses(zero, zero, zero, zero))

    def _losses(self, *logps: Tensor) -> Tensor:
        # Imported late: recipes are read with this class, and torch takes a second to load.
        from align.losses import dpo_loss

        return dpo_loss(*logps, beta=self.beta, label_smoothing=self.label_smoothing, variant=self.variant).losses


class Config(DpoObjective, PairwiseConfig):
    """DPO on preferences."""

    pairs: RowsReference[Preference]
    """Pairs of a chosen and a rejected completion."""
    reference: ModelReference | None = None
    """Model to stay near. Default: model."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""

    def training_needs(self) -> TrainingNeeds:
        return TrainingNeeds(
            self.model, self.pairs, self.precision, self.peft, partial(pair_batch, self), reference=self.reference or self.model
        )


def run(context: StageContext[Config]) -> StageOutcome:
    """Train against the reference."""
    from align.training.pairwise.run import run_pairwise

    config = context.config
    return run_pairwise(context, context.artifact(config.pairs), reference=context.artifact(config.reference or config.model))
