"""What the Config of every online stage has: models, prompts and scorers beside the settings of training.

Recipes are read with it: importing it loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from pydantic import Field, model_validator

from align.config.base import ExecutionOnly, Problem, StrictModel
from align.config.online import DistillTraining, GroupTraining, OnlineTraining, RewardTraining
from align.config.peft import LoraOnly
from align.config.reference import ModelReference, RowsReference
from align.config.row_need import RowNeed
from align.config.sections import EngineChoice, OnInvalid, PointwiseScorer, reward_models_of
from align.records import Prompt
from align.stage import StageConfig
from align.training.needs import Sampler, Teacher, TrainingNeeds, episode_passes
from align.training.online.advantage import GroupAdvantage


class PolicyConfig(OnlineTraining, EngineChoice, LoraOnly, StageConfig):
    """What is trained, and on what."""

    method: ClassVar[str]
    """Stage type, as messages call it."""

    model: ModelReference
    """Model to start from; where a KL is measured, a frozen copy of it is the reference."""
    prompts: RowsReference[Prompt]
    """Prompts to sample completions for."""


class OptimisedScorers(StrictModel):
    """What the methods that learn from scores optimise."""

    scorers: dict[str, PointwiseScorer] = Field(min_length=1)
    """Scorer by name: the name of a reward model stage, {rules: …}, or {ensemble: […]}; their weighted sum is optimised."""
    score_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a scorer in the sum. Default: 1."""


class OnlineConfig(PolicyConfig):
    """What every online stage has."""

    watch: dict[str, PointwiseScorer] = Field(default_factory=dict)
    """Scorers that are logged and never optimised, to detect reward hacking."""
    on_invalid: OnInvalid = "error"
    """What to do with a prompt that is too long."""
    score_batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass of a reward model; scores depend on it by rounding only."""
    engine_memory_share: ExecutionOnly[float] = Field(default=0.3, gt=0, lt=1)
    """Part of a GPU's memory that vLLM may take beside the models that learn; no effect on a CPU."""

    @property
    def all_scorers(self) -> dict[str, PointwiseScorer]:
        """Those that are optimised, where there are any, and those that are watched."""
        return self.watch

    def row_needs(self) -> Iterator[RowNeed]:
        from align.scoring.rules import prompt_needs

        scorers = {key: getattr(self, key) for key in ("scorers", "watch") if key in type(self).model_fields}
        yield from prompt_needs("prompts", {(key, name): scorer for key in scorers for name, scorer in scorers[key].items()})

    @classmethod
    def _why_no_virtual_tokens(cls) -> str:
        return "completions share rows, and virtual tokens stand in front of a row; nor can vLLM sample with them"

    def training_needs(self) -> TrainingNeeds:
        """Those of a method with a policy alone."""
        return TrainingNeeds(
            self.model,
            self.prompts,
            self.precision,
            self.peft,
            partial(episode_passes, self),
            self,
            save_dtype=self.save_dtype,
            scorers=tuple(name for each in self.all_scorers.values() for name in reward_models_of(each)),
            sampler=Sampler(
                self,
                self.engine_memory_share,
                self.max_prompt_tokens + self.max_completion_tokens,
                self.rollout_batch_size,
                samples_ahead=self.rollouts_ahead > 0,
            ),
        )


class ScoredConfig(OnlineConfig, OptimisedScorers, PolicyConfig, RewardTraining):
    """Of a stage that learns from scores. It adds an `Advantage`, and `ValueOptimization` where it has a value model."""

    # The order of bases is that of the settings, which is a part of every fingerprint.

    @model_validator(mode="after")
    def _names_fit(self) -> ScoredConfig:
        if unknown := sorted(self.score_weights.keys() - self.scorers.keys()):
            raise ValueError(f"score_weights names {unknown[0]!r}, which is not among the scorers ({', '.join(self.scorers)})")
        if twice := sorted(self.watch.keys() & self.scorers.keys()):
            raise ValueError(f"{twice[0]!r} is both in scorers and in watch; a scorer that is optimised is logged anyway")
        return self

    @property
    def all_scorers(self) -> dict[str, PointwiseScorer]:
        return {**self.scorers, **self.watch}

    def training_needs(self) -> TrainingNeeds:
        """Those of a method without a value model."""
        # The reference, and the policy from before an update that may be undone.
        return replace(super().training_needs(), frozen_copies=int(self.needs_reference) + int(self.kl_limit is not None))


class DistillConfig(DistillTraining, OnlineConfig):
    """Of a stage that learns from a teacher."""

    model: ModelReference
    """Student: the model to start from."""
    teacher: ModelReference
    """Model whose probabilities are learned; it needs the vocabulary of `model`."""

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        if "teacher" in fields and fields["teacher"] == fields.get("model"):
            yield Problem(("teacher",), "it is the model that learns, so there is nothing to learn; name another model")

    @property
    def group_size(self) -> int:
        """Completions of one prompt: what is learned of one does not depend on others."""
        return 1

    def training_needs(self) -> TrainingNeeds:
        """Those of a method with a student and a teacher."""
        return replace(super().training_needs(), teacher=Teacher(self.teacher, self.beta))


class GroupConfig(GroupAdvantage, GroupTraining, ScoredConfig):
    """The Config of a method that compares the completions of a prompt; a stage sets its defaults."""
