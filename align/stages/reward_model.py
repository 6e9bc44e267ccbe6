"""Reward model: a scalar score that ranks completions as a judge did.

Bradley–Terry: -log sigmoid(score(chosen) - score(rejected)), Ouyang et al. 2022, eq. 1, on a model with a new score head.
In: a model, preferences. Out: a reward model. Metrics: accuracy on held-out pairs, by length too, and that of length alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from align.config.peft import LoraOnly
from align.config.reference import RowsReference
from align.config.row_need import RowNeed
from align.records import Preference
from align.stage import StageContext, StageOutcome
from align.training.needs import TrainingNeeds, pair_needs
from align.training.pairwise.margin import margin_need
from align.training.pairwise.objective import BatchCounts, PairLosses, PairwiseConfig

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 6


class Config(LoraOnly, PairwiseConfig):
    """Bradley–Terry reward model on preferences."""

    method = "reward_model"
    data: RowsReference[Preference]
    """Pairs of a chosen and a rejected completion."""
    held_out_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pairs kept out of training to measure accuracy, chosen by a hash of the prompt: a prompt is on one side."""
    margin: Literal["none", "scores"] = "none"
    """scores: the chosen score should be higher by chosen_score - rejected_score of the row (Llama 2, Touvron et al. 2023)."""
    center_coef: float = Field(default=0.01, ge=0)
    """Weight of (score(chosen) + score(rejected))², which keeps scores near zero (Eisenstein et al. 2023)."""

    def row_needs(self) -> Iterator[RowNeed]:
        yield from [margin_need()] if self.margin == "scores" else []

    def training_needs(self) -> TrainingNeeds:
        return pair_needs(self, self.model, self.data, self.peft, has_score_head=True)

    @classmethod
    def _why_no_virtual_tokens(cls) -> str:
        return "a score is read from a trained head, which virtual tokens alone would leave as it was drawn"

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        from align.losses import reward_model_loss

        losses = reward_model_loss(*outputs.chunk(2), margin=batch.get("margin"), center_coef=self.center_coef)
        chosen, rejected = outputs.detach().chunk(2)
        metrics = {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "mean_reward": (chosen + rejected) / 2,
            "center": (chosen + rejected) ** 2,
        }
        return PairLosses(losses, metrics)


def run(context: StageContext[Config]) -> StageOutcome:
    """Split the pairs by prompt, train on one part, measure on the other."""
    from align.training.pairwise.held_out import run_with_held_out

    return run_with_held_out(context, share=context.config.held_out_share, margins=context.config.margin == "scores")
