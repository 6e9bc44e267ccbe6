"""A pairwise method: its settings, its loss on a batch of pairs, the metrics that it logs, and the loss expected at step 0.

A stage mixes its objective into its Config, so that a default stands once. Recipes are read with these classes: importing them
loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from align.config.base import StrictModel
from align.config.peft import AnyPeft
from align.config.reference import ModelReference
from align.config.sections import PairwiseOptimization
from align.stage import StageConfig

if TYPE_CHECKING:
    from torch import Tensor


class BatchCounts(NamedTuple):
    """What the optimizer batch holds, over all its micro-batches and processes; losses are means over it."""

    pairs: Tensor
    """Scalar."""
    likelihood_tokens: Tensor
    """Scalar: tokens of the fine-tuning loss of ORPO."""


class PairLosses(NamedTuple):
    """One value per pair of a micro-batch."""

    losses: Tensor
    """[pairs]; their sum over the optimizer batch, divided by its number of pairs, is the loss. Carries the gradient."""
    metrics: dict[str, Tensor]
    """[pairs] each, detached; logged as means over pairs, under TRL's names."""


class PairwiseObjective(StrictModel):
    """Settings of a pairwise loss, and the loss itself. The formulas are in `align.losses`."""

    method: ClassVar[str]
    """Stage type, as messages call it."""
    final_metrics: ClassVar[tuple[str, ...]] = ("loss",)
    """Logged metrics whose last values go into the manifest."""

    @property
    def counts_prompts(self) -> bool:
        """Whether the loss reads the log-probabilities of the prompts' tokens too."""
        return False

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        """
        Args:
            outputs: see `pair_outputs`.
            batch: see `PairCollator`; has the numbers that the objective needs.
            counts: of the optimizer batch that this micro-batch is a part of.
        """
        raise NotImplementedError

    def loss_without_margin(self) -> float:
        """The loss of any pair while policy and reference are the same; only for methods that have a reference."""
        raise NotImplementedError


class PairwiseConfig(PairwiseObjective, PairwiseOptimization, AnyPeft, StageConfig):
    """What the Config of every pairwise stage has."""

    model: ModelReference
    """Model to start from."""


def likelihood_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """[pairs]: targets of the chosen completions, and of the prompts where the batch has them."""
    parts = batch["token_counts"].view(-1, len(batch["last_index"]) // 2)
    return parts[0] if len(parts) == 2 else parts[0] + parts[2]


def preference_metrics(chosen: Tensor, rejected: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor) -> dict[str, Tensor]:
    """Metrics of a method that trains a language model on pairs. All are [pairs]; the rewards are detached.

    Args:
        chosen, rejected: log-probabilities, nats.
        chosen_rewards, rejected_rewards: implicit rewards, as the method defines them.
    """
    return {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
        "rewards/margins": chosen_rewards - rejected_rewards,
        "logps/chosen": chosen.detach(),
        "logps/rejected": rejected.detach(),
    }
