"""Reward model: a scalar score that ranks completions as a judge did.

Bradley–Terry: -log sigmoid(score(chosen) - score(rejected)) (Ouyang et al. 2022, eq. 1), initialised from a fine-tuned model
with a new score head. In: a model, preferences. Out: a reward model. Metrics: held-out accuracy with its interval, accuracy of
the rule "the longer completion wins" on the same pairs, accuracy by length difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from align.config.peft import LoraOnly
from align.config.reference import ModelReference, RowsReference
from align.data.encoding import Where
from align.errors import DataError, several
from align.records import Preference
from align.stage import StageContext, StageOutcome
from align.store.artifact import MODEL_FOLDER
from align.training.needs import TrainingNeeds, pair_batch
from align.training.pairwise.objective import BatchCounts, PairLosses, PairwiseConfig, PairwiseObjective

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 5


class RewardObjective(PairwiseObjective):
    """Bradley–Terry, with the `margin` of the batch if it has one."""

    method: ClassVar[str] = "reward_model"

    center_coef: float = Field(default=0.01, ge=0)
    """Weight of (score(chosen) + score(rejected))², which keeps scores near zero (Eisenstein et al. 2023)."""

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


class Config(RewardObjective, LoraOnly, PairwiseConfig):
    """Bradley–Terry reward model on preferences."""

    model: ModelReference
    """Model to start from; usually the SFT model."""
    data: RowsReference[Preference]
    """Pairs of a chosen and a rejected completion."""
    held_out_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pairs kept out of training to measure accuracy, chosen by a hash of the prompt: a prompt is on one side."""
    margin: Literal["none", "scores"] = "none"
    """scores: the chosen score should be higher by chosen_score - rejected_score of the row (Llama 2, Touvron et al. 2023)."""

    def training_needs(self) -> TrainingNeeds:
        return TrainingNeeds(self.model, self.data, self.precision, self.peft, partial(pair_batch, self), has_score_head=True)

    @classmethod
    def _why_no_virtual_tokens(cls) -> str:
        return "a score is read from a trained head, which virtual tokens alone would leave as it was drawn"


def run(context: StageContext[Config]) -> StageOutcome:
    """Split the pairs by prompt, train on one part, measure on the other."""
    from align.training.pairwise.collator import TrainingPair
    from align.training.pairwise.held_out import evaluate_reward_model, split_by_prompt
    from align.training.pairwise.run import outcome_of, read_pairs, train_pairs

    config = context.config
    artifact = context.artifact(config.data)
    data = read_pairs(context, artifact)
    split = split_by_prompt(data.records, data.encoded.rows, share=config.held_out_share, seed=context.seed)
    if not split.train or not split.held_out:
        raise DataError(
            f"{artifact.where(None)}: {len(data.encoded.rows)} pairs leave {len(split.train)} to train on and "
            f"{len(split.held_out)} to measure accuracy on; both are needed",
            hint="Give more pairs with different prompts, or change held_out_share.",
        )
    rows = [TrainingPair(row) for row in split.train]
    if config.margin == "scores":
        trained = {row.id for row in split.train}
        # Only of pairs that are trained on: dropped and held-out pairs need no scores.
        margins = _margins([record for record in data.records if record.id in trained], artifact.where)
        rows = [TrainingPair(row, {"margin": margins[row.id]}) for row in split.train]
    metrics = train_pairs(context, data, rows, new_score_head=True)
    accuracy = evaluate_reward_model(context.output / MODEL_FOLDER, split)
    return outcome_of(context, data, {"train_loss": metrics.pop("loss"), **metrics, **accuracy})


def _margins(records: Sequence[Preference], where: Where) -> dict[str, float]:
    """By how much the chosen completion scored higher, by pair id."""
    margins: dict[str, float] = {}
    problems: list[str] = []
    for record in records:
        if record.chosen_score is None or record.rejected_score is None:
            problems.append(f"{where(record.line)}: {record.id}: has no chosen_score or no rejected_score")
        elif record.chosen_score < record.rejected_score:
            scores = f"chosen_score {record.chosen_score:g}, rejected_score {record.rejected_score:g}"
            problems.append(f"{where(record.line)}: {record.id}: the rejected completion scored higher ({scores})")
        else:
            margins[record.id] = record.chosen_score - record.rejected_score
    if problems:
        raise DataError(
            several(problems, f"rows cannot give a margin (of {len(records):,})"),
            hint="Set margin: none, or give every pair both scores.",
        )
    return margins
