"""Kahneman-Tversky Optimization: learn from single completions that are good or bad, near a reference.

weight * sigmoid(-beta * (log-ratio - kl)) for a good completion, the other sign for a bad one; Ethayarajh et al. 2024, eq. 7. The
log-ratio is policy - reference; kl is its mean over completions that belong to other prompts, at least 0, for the whole
optimizer batch. No gradient flows through it.
In: a model, labelled rows or preferences. Out: a model. Metrics: loss, kl, rewards/desirable, rewards/undesirable,
rewards/margins, logps/desirable, logps/undesirable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from align.stage import StageContext, StageOutcome
from align.training.pairwise.labelled import LabelledConfig
from align.training.pairwise.objective import BatchCounts, PairLosses

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 2


class Config(LabelledConfig):
    """KTO on labelled completions."""

    method = "kto"
    final_metrics = ("loss", "kl", "rewards/desirable", "rewards/undesirable", "rewards/margins")

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of good completions. With few of them, raise it until weight times number is about that of the bad ones."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of bad completions."""
    learning_rate: float = Field(default=5e-6, gt=0)
    """Peak learning rate. The paper takes 5e-7 to 5e-6."""

    @property
    def knows_loss_of_equal_models(self) -> bool:
        return self.desirable_weight == self.undesirable_weight

    def derived_metrics(self, means: Mapping[str, float]) -> Mapping[str, float]:
        sides = [means[name] for name in ("rewards/desirable", "rewards/undesirable") if name in means]
        return {"rewards/margins": sides[0] - sides[1]} if len(sides) == 2 else {}

    def shared_value(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return outputs.detach().chunk(2)[1] - batch["reference_rejected_logps"]

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        from align.losses import kto_loss

        total = self.shared_value(outputs, batch).sum() if counts.shared_sum is None else counts.shared_sum
        kl = (total / counts.pairs).clamp(min=0)
        logps, good = outputs.chunk(2)[0], batch["desirable"] > 0.5
        weights = {"desirable_weight": self.desirable_weight, "undesirable_weight": self.undesirable_weight}
        losses, rewards = kto_loss(logps, batch["reference_chosen_logps"], good, kl, beta=self.beta, **weights)
        metrics = {"kl": kl.expand(len(good)), "rewards/desirable": rewards[good], "rewards/undesirable": rewards[~good]}
        logps = logps.detach()
        return PairLosses(losses, metrics | {"logps/desirable": logps[good], "logps/undesirable": logps[~good]})


def run(context: StageContext[Config]) -> StageOutcome:
    """Train against the reference."""
    from align.training.pairwise.run import run_pairwise

    return run_pairwise(context)
