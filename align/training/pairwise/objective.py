"""A pairwise method: its settings, its loss on a batch of pairs, and the metrics that it logs.

A stage's Config is its method, so that a default stands once. Recipes are read with these classes: importing them loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import Field

from align.config.peft import AnyPeft
from align.config.reference import ModelReference, RowsReference
from align.config.sections import PairwiseOptimization
from align.records import Preference
from align.stage import StageConfig
from align.training.needs import TrainingNeeds, pair_needs

if TYPE_CHECKING:
    from torch import Tensor

    from align.training.pairwise.rows import PairRows


class BatchCounts(NamedTuple):
    """What the optimizer batch holds, over all its micro-batches and processes; losses are means over it."""

    pairs: Tensor
    """Scalar."""
    likelihood_tokens: Tensor
    """Scalar: tokens of the fine-tuning loss of ORPO."""
    shared_sum: Tensor | None = None
    """Scalar: `PairwiseConfig.shared_value` summed over the batch; None where the method has none, or the micro-batch is all."""


class PairLosses(NamedTuple):
    """One value per pair of a micro-batch."""

    losses: Tensor
    """[pairs]; their sum over the optimizer batch, divided by its number of pairs, is the loss. Carries the gradient."""
    metrics: dict[str, Tensor]
    """[pairs] each, or of the pairs that have the metric; detached. Logged as means under TRL's names."""


class PairwiseConfig(PairwiseOptimization, AnyPeft, StageConfig):
    """What the Config of every pairwise stage has. The formulas of the losses are in `align.losses`."""

    method: ClassVar[str]
    """Stage type, as messages call it."""
    final_metrics: ClassVar[tuple[str, ...]] = ("loss",)
    """Logged metrics whose means over the last epoch go into the manifest, and those over held-out pairs where there are some."""

    has_shared_value: ClassVar[bool] = False
    """Whether the loss of a pair depends on all pairs of its optimizer batch, by the mean of `shared_value`."""

    model: ModelReference
    """Model to start from."""
    held_out_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts whose pairs are not trained on but measured at the end; a hash of the prompt decides. 0: none."""

    @property
    def knows_loss_of_equal_models(self) -> bool:
        """Whether the loss is the same for all pairs while policy and reference are the same model."""
        return True

    @property
    def counts_prompts(self) -> bool:
        """Whether the loss reads the log-probabilities of the prompts' tokens too."""
        return False

    @property
    def tail_weight(self) -> float:
        """Weight of the tokens beyond the length of the pair's shorter completion, in all log-probabilities."""
        return 1.0

    def derived_metrics(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Metrics that no single pair has, from the means of those of `pair_losses`; a mean may be missing."""
        return {}

    def shared_value(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[pairs], without gradient: what of a pair the others' losses depend on."""
        raise NotImplementedError

    @property
    def reads(self) -> Callable[..., PairRows]:
        """Reads the rows in tokens; see `align.training.pairwise.rows.read_preferences`."""
        from align.training.pairwise.rows import read_preferences

        return read_preferences

    def training_needs(self) -> TrainingNeeds:
        """It names the pairs, the reference if the method has one, and says whether a score head is trained."""
        raise NotImplementedError

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        """Compute the losses of the pairs of a micro-batch, and the metrics to log.

        Args:
            outputs: see `pair_outputs`.
            batch: see `PairCollator`; has the numbers that the method needs.
            counts: of the optimizer batch that this micro-batch is a part of.
        """
        raise NotImplementedError


class PreferenceConfig(PairwiseConfig):
    """Of a method that trains a language model."""

    final_metrics: ClassVar[tuple[str, ...]] = (
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        "rewards/chosen",
        "rewards/rejected",
    )

    pairs: RowsReference[Preference]
    """Pairs of a chosen and a rejected completion."""

    def training_needs(self) -> TrainingNeeds:
        return pair_needs(self, self.model, self.pairs, self.peft)


class ReferenceConfig(PreferenceConfig):
    """Of a method that stays near a reference.

    Its batches have `reference_chosen_logps` and `reference_rejected_logps`, [pairs], nats, summed. Its loss must not change if
    policy and reference change alike, so that the loss of equal models is known.
    """

    reference: ModelReference | None = None
    """Model to stay near. Default: model."""

    def training_needs(self) -> TrainingNeeds:
        return replace(super().training_needs(), reference=self.reference or self.model)


def likelihood_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """[pairs]: targets of the chosen completions, and of the prompts where the batch has them."""
    parts = batch["token_counts"].view(-1, len(batch["last_index"]) // 2)
    return parts[0] if len(parts) == 2 else parts[0] + parts[2]


def preference_metrics(
    chosen: Tensor, rejected: Tensor, *, scale: float, reference: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)
) -> dict[str, Tensor]:
    """[pairs] each: metrics of a method whose implicit reward is scale · (log-probability - that of the reference).

    Args:
        chosen, rejected: [pairs] log-probabilities, nats.
        reference: the same of the reference, where the method has one.
    """
    chosen, rejected = chosen.detach(), rejected.detach()
    chosen_rewards, rejected_rewards = scale * (chosen - reference[0]), scale * (rejected - reference[1])
    return {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
        "rewards/margins": chosen_rewards - rejected_rewards,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
