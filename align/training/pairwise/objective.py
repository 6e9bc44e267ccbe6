"""DPO, ORPO and the reward model: what each makes of a batch's log-probabilities or scores. The formulas are in align.losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from align.losses import DpoVariant, dpo_loss, orpo_loss, reward_model_loss

NllTokens = Literal["completion", "prompt_and_completion"]


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


class Objective(Protocol):
    """A pairwise loss."""

    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        """
        Args:
            outputs: see `pair_outputs`.
            batch: see `PairCollator`; has the numbers that the objective needs.
            counts: of the optimizer batch that this micro-batch is a part of.
        """
        ...


def likelihood_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """[pairs]: targets of the chosen completions, and of the prompts where the batch has them."""
    parts = batch["token_counts"].view(-1, len(batch["ends"]) // 2)
    return parts[0] if len(parts) == 2 else parts[0] + parts[2]


@dataclass(frozen=True)
class DpoObjective:
    """Direct Preference Optimization; needs `reference_chosen_logps` and `reference_rejected_logps` (nats, summed)."""

    beta: float
    label_smoothing: float = 0.0
    variant: DpoVariant = "sigmoid"

    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        chosen, rejected = outputs.chunk(2)
        reference_chosen, reference_rejected = batch["reference_chosen_logps"], batch["reference_rejected_logps"]
        # IPO compares averages per token, of the reference as of the policy, or long completions would decide.
        lengths = batch["token_counts"] if self.variant == "ipo" else torch.ones_like(batch["token_counts"])
        chosen_length, rejected_length = lengths.chunk(2)
        losses = dpo_loss(
            chosen / chosen_length,
            rejected / rejected_length,
            reference_chosen / chosen_length,
            reference_rejected / rejected_length,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            variant=self.variant,
        ).losses
        chosen_rewards = self.beta * (chosen.detach() - reference_chosen)
        rejected_rewards = self.beta * (rejected.detach() - reference_rejected)
        return PairLosses(losses, _preference_metrics(chosen, rejected, chosen_rewards, rejected_rewards))

    def loss_without_margin(self) -> float:
        """The loss of any pair while policy and reference are the same."""
        zero = torch.zeros(1, dtype=torch.float64)
        loss = dpo_loss(zero, zero, zero, zero, beta=self.beta, label_smoothing=self.label_smoothing, variant=self.variant)
        return float(loss.losses)


@dataclass(frozen=True)
class OrpoObjective:
    """Odds Ratio Preference Optimization; needs no reference.

    The likelihood term is a mean over the tokens of the optimizer batch, as in fine-tuning, the odds-ratio term over its pairs.
    """

    odds_ratio_weight: float

    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        pairs = len(batch["ends"]) // 2
        sums, lengths = outputs.view(-1, pairs), batch["token_counts"].view(-1, pairs)
        chosen, rejected = sums[0] / lengths[0], sums[1] / lengths[1]
        likelihoods = -(sums[0] if len(sums) == 2 else sums[0] + sums[2])
        # Scaled so that the mean over pairs is the mean over tokens.
        nll = likelihoods * (counts.pairs / counts.likelihood_tokens)
        loss = orpo_loss(chosen, rejected, nll, odds_ratio_weight=self.odds_ratio_weight)
        weight = self.odds_ratio_weight
        metrics = {
            **_preference_metrics(chosen, rejected, weight * chosen.detach(), weight * rejected.detach()),
            "nll_loss": nll.detach(),
            "log_odds_ratio": -loss.odds_ratio_losses,
            "log_odds_chosen": loss.log_odds,
        }
        return PairLosses(loss.losses, metrics)


@dataclass(frozen=True)
class RewardObjective:
    """Bradley–Terry; takes `margin` from the batch where it is there."""

    center_coef: float = 0.0

    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        chosen, rejected = outputs.chunk(2)
        losses = reward_model_loss(chosen, rejected, margin=batch.get("margin"), center_coef=self.center_coef)
        chosen, rejected = chosen.detach(), rejected.detach()
        metrics = {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "mean_reward": (chosen + rejected) / 2,
            "center": (chosen + rejected) ** 2,
        }
        return PairLosses(losses, metrics)


def _preference_metrics(chosen: Tensor, rejected: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor) -> dict[str, Tensor]:
    return {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
        "rewards/margins": chosen_rewards - rejected_rewards,
        "logps/chosen": chosen.detach(),
        "logps/rejected": rejected.detach(),
    }
