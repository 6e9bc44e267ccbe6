"""Odds Ratio Preference Optimization: fine-tuning and preference in one loss, with one model in memory.

nll(chosen) - odds_ratio_weight * log sigmoid(log odds(chosen) - log odds(rejected)), Hong et al. 2024, eqs. 4-7. No reference.
In: a model (a base model that can chat, or a fine-tuned one), preferences. Out: a model. Metrics: loss, nll_loss, log_odds_ratio,
log_odds_chosen, rewards/accuracies, logps/chosen, logps/rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from align.stage import StageContext, StageOutcome
from align.training.pairwise.objective import BatchCounts, PairLosses, PreferenceConfig, preference_metrics

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 5


class Config(PreferenceConfig):
    """ORPO on preferences. The likelihood is a mean over the tokens of the optimizer batch, the odds a mean over its pairs."""

    method = "orpo"
    final_metrics = (
        "loss",
        "nll_loss",
        "log_odds_ratio",
        "log_odds_chosen",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    )

    odds_ratio_weight: float = Field(default=0.1, ge=0)
    """Weight of the odds-ratio term beside the likelihood of the chosen completions (lambda of the paper)."""
    nll_tokens: Literal["completion", "prompt_and_completion"] = "completion"
    """Tokens of the likelihood term. TRL and the authors' code take the prompt's too."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""

    @property
    def counts_prompts(self) -> bool:
        return self.nll_tokens == "prompt_and_completion"

    def pair_losses(self, outputs: Tensor, batch: Mapping[str, Tensor], counts: BatchCounts) -> PairLosses:
        from align.losses import orpo_loss

        pairs = len(batch["last_index"]) // 2
        sums, lengths = outputs.view(-1, pairs), batch["token_counts"].view(-1, pairs)
        chosen, rejected = sums[0] / lengths[0], sums[1] / lengths[1]
        # With prompts a batch has three sequences for each pair, and the prompts come last.
        likelihoods = -(sums[0] if len(sums) == 2 else sums[0] + sums[2])
        # Scaled so that the mean over pairs is the mean over tokens.
        nll = likelihoods * (counts.pairs / counts.likelihood_tokens)
        loss = orpo_loss(chosen, rejected, nll, odds_ratio_weight=self.odds_ratio_weight)
        metrics = preference_metrics(chosen, rejected, scale=self.odds_ratio_weight)
        metrics |= {"nll_loss": nll.detach(), "log_odds_ratio": -loss.odds_ratio_losses, "log_odds_chosen": loss.log_odds}
        return PairLosses(loss.losses, metrics)


def run(context: StageContext[Config]) -> StageOutcome:
    """Train without a reference."""
    from align.training.pairwise.run import run_pairwise

    return run_pairwise(context)
