"""What the Config of every online stage has: models, prompts and scorers beside the settings of training.

Recipes are read with it: importing it loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

from pydantic import Field, model_validator

from align.config.base import ExecutionOnly
from align.config.online import GroupTraining, OnlineTraining
from align.config.peft import LoraOnly
from align.config.reference import ModelReference, RowsReference
from align.config.row_need import RowNeed
from align.config.sections import EngineChoice, OnInvalid, PointwiseScorer, reward_models_of
from align.records import Prompt
from align.stage import StageConfig
from align.training.needs import Sampler, TrainingNeeds, episode_passes
from align.training.online.advantage import GroupAdvantage


class OnlineConfig(OnlineTraining, EngineChoice, LoraOnly, StageConfig):
    """A stage adds an `Advantage`, and `ValueOptimization` where it has a value model."""

    method: ClassVar[str]
    """Stage type, as messages call it."""

    model: ModelReference
    """Model to start from; where a KL is measured, a frozen copy of it is the reference."""
    prompts: RowsReference[Prompt]
    """Prompts to sample completions for."""
    scorers: dict[str, PointwiseScorer] = Field(min_length=1)
    """Scorer by name: the name of a reward model stage, {rules: …}, or {ensemble: […]}; their weighted sum is optimised."""
    score_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a scorer in the sum. Default: 1."""
    watch: dict[str, PointwiseScorer] = Field(default_factory=dict)
    """Scorers that are logged and never optimised, to detect reward hacking."""
    on_invalid: OnInvalid = "error"
    """What to do with a prompt that is too long."""
    score_batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass of a reward model; scores depend on it by rounding only."""
    engine_memory_share: ExecutionOnly[float] = Field(default=0.3, gt=0, lt=1)
    """Part of a GPU's memory that vLLM may take beside the models that learn; no effect on a CPU."""

    @model_validator(mode="after")
    def _names_fit(self) -> OnlineConfig:
        if unknown := sorted(self.score_weights.keys() - self.scorers.keys()):
            raise ValueError(f"score_weights names {unknown[0]!r}, which is not among the scorers ({', '.join(self.scorers)})")
        if twice := sorted(self.watch.keys() & self.scorers.keys()):
            raise ValueError(f"{twice[0]!r} is both in scorers and in watch; a scorer that is optimised is logged anyway")
        return self

    def row_needs(self) -> Iterator[RowNeed]:
        from align.scoring.rules import prompt_needs

        scorers = {"scorers": self.scorers, "watch": self.watch}
        yield from prompt_needs("prompts", {(key, name): scorer for key in scorers for name, scorer in scorers[key].items()})

    @classmethod
    def _why_no_virtual_tokens(cls) -> str:
        return "completions share rows, and virtual tokens stand in front of a row; nor can vLLM sample with them"

    def training_needs(self) -> TrainingNeeds:
        """Those of a method without a value model."""
        return TrainingNeeds(
            self.model,
            self.prompts,
            self.precision,
            self.peft,
            partial(episode_passes, self),
            self,
            save_dtype=self.save_dtype,
            # The reference, and the policy from before an update that may be undone.
            frozen_copies=int(self.needs_reference) + int(self.kl_limit is not None),
            scorers=tuple(name for each in (*self.scorers.values(), *self.watch.values()) for name in reward_models_of(each)),
            sampler=Sampler(
                self, self.engine_memory_share, self.max_prompt_tokens + self.max_completion_tokens, self.rollout_batch_size
            ),
        )


class GroupConfig(GroupAdvantage, GroupTraining, OnlineConfig):
    """The Config of a method that compares the completions of a prompt; a stage sets its defaults."""
