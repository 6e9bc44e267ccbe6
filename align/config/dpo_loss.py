"""Which member of DPO's family is trained, with the settings that its authors published as defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from align.config.base import Problem, StrictModel
from align.config.sections import DpoVariant

PUBLISHED: dict[str, dict[str, float]] = {
    "sigmoid_norm": {"beta": 5.0},  # Tulu 3, OLMo 2 and OLMo 3
    "robust": {"label_smoothing": 0.1},  # Chowdhury et al. 2024
    "sppo_hard": {"beta": 0.001},  # Wu et al. 2024
}
"""Defaults of the variants that differ from DPO's own."""
SMOOTHED = ("sigmoid", "robust")
AVERAGED = ("ipo", "sigmoid_norm")


class DpoLoss(StrictModel):
    """The loss of a stage `dpo`; formulas are those of `align.losses.dpo_loss`."""

    variant: DpoVariant = "sigmoid"
    """Shape of the loss: sigmoid is DPO itself, hinge as in SLiC-HF, ipo a squared distance on averages per token, sigmoid_norm
    DPO on averages per token, robust for flipped labels, apo_zero and apo_down anchored at the reference, sppo_hard squared."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference. Default of sigmoid_norm: 5, of sppo_hard: 0.001."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of flipped labels, for sigmoid (conservative DPO) and robust only. Default of robust: 0.1."""
    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen completions beside the loss: a mean over the batch's tokens (RPO)."""

    ld_alpha: float = Field(default=1.0, ge=0, le=1)
    """Weight of the log-probabilities of tokens beyond the length of the pair's shorter completion, in policy and reference
    (LD-DPO). 1: they count in full; 0: not at all. 0.5 is usual."""

    @property
    def averages_per_token(self) -> bool:
        """Whether the loss compares log-probabilities per token, or long completions would decide."""
        return self.variant in AVERAGED

    @property
    def tail_weight(self) -> float:
        """See `PairwiseConfig`."""
        return self.ld_alpha

    @property
    def knows_loss_of_equal_models(self) -> bool:
        """Whether the loss is the same for all pairs while policy and reference are the same model."""
        return not self.nll_weight

    @model_validator(mode="before")
    @classmethod
    def _published(cls, fields: Any) -> Any:
        variant = fields.get("variant") if isinstance(fields, Mapping) else None
        return {**PUBLISHED[variant], **fields} if isinstance(variant, str) and variant in PUBLISHED else fields

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        variant, smoothing = fields.get("variant", cls.model_fields["variant"].default), fields.get("label_smoothing")
        if variant not in SMOOTHED and isinstance(smoothing, float) and smoothing > 0:
            yield Problem(("label_smoothing",), f"is defined for sigmoid and robust only, not for {variant}; leave it out")
        likelihood, alpha = fields.get("nll_weight"), fields.get("ld_alpha")
        if isinstance(likelihood, int | float) and likelihood > 0 and isinstance(alpha, int | float) and alpha < 1:
            yield Problem(("ld_alpha",), "cannot be used with nll_weight, which needs the whole chosen completion; leave one out")
