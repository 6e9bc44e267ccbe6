"""Reward model: a scalar score that ranks completions as a judge did.

Bradley–Terry: -log sigmoid(score(chosen) - score(rejected)) (Ouyang et al. 2022, eq. 1), initialised from a fine-tuned model
with a new score head. In: a model, preferences. Out: a reward model. Metrics: held-out accuracy with its interval, accuracy of
the rule "the longer completion wins" on the same pairs, accuracy by length difference.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.config.reference import ModelReference, PreferencesReference
from align.config.sections import OnInvalid, Optimization
from align.stages.protocol import StageConfig

VERSION = 1


class Config(Optimization, StageConfig):
    """Bradley–Terry reward model on preferences."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint_steps"})

    model: ModelReference
    """Model to start from; usually the SFT model."""
    data: PreferencesReference
    """Pairs of a chosen and a rejected completion."""
    max_tokens: int = Field(default=1024, ge=8)
    """A prompt and completion longer than this together is an error, or a counted drop."""
    on_invalid: OnInvalid = "error"
    """What to do with a pair that is too long."""
    held_out_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pairs kept out of training to measure accuracy; chosen by a hash of the prompt, so one prompt is on one side."""
    center_coef: float = Field(default=0.01, ge=0)
    """Weight of (score(chosen) + score(rejected))², which keeps scores near zero (Eisenstein et al. 2023)."""
