"""The value model of methods that have one: the model that it starts from, and whether that fits the policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from align.config.online import ValueOptimization
from align.errors import RecipeError
from align.models.folder import ModelFolder
from align.models.load import differing_tokens
from align.models.trainable import TrainableModel
from align.store.artifact import Artifact
from align.training.online.models import ValueStart


@dataclass(frozen=True)
class ValueModel:
    """A value model that starts from a reward model, or from the policy with a head of zeros."""

    config: ValueOptimization
    reward_model: Artifact | None

    @cached_property
    def _folder(self) -> ModelFolder:
        assert self.reward_model is not None
        return ModelFolder.of(self.reward_model)

    def check(self, policy: Artifact, folder: ModelFolder, max_tokens: int) -> None:
        """The value model reads the policy's tokens, so it must have the same ones, and room for all of them.

        Args:
            folder: the policy's.
        Raises:
            RecipeError: if it does not.
        """
        source = self.reward_model
        if source is None:
            return
        if differing := differing_tokens(self._folder, folder):
            raise RecipeError(
                f"{source.name}: the value model starts from this reward model, but its tokenizer is not that of {policy.name} "
                f"({len(differing):,} tokens differ: {', '.join(map(repr, differing[:3]))}, …)",
                hint="Set value_model to a reward model made from the same base; "
                "one with another tokenizer can still be a scorer.",
            )
        if (context := self._folder.context_tokens) < max_tokens:
            raise RecipeError(
                f"{source.name}: the value model sees {context} tokens, prompt and completion may have {max_tokens}",
                hint="Lower max_prompt_tokens or max_completion_tokens.",
            )

    def start(self, policy: TrainableModel) -> ValueStart:
        """It learns as the policy does; a reward model that is an adapter is trained further with its own settings."""
        source, peft = self.reward_model, policy.peft
        if source is None:
            return ValueStart(policy, is_reward_model=False, zero_head=True)
        if peft is not None:
            peft = self._folder.peft or peft
        start = replace(policy, folder=self._folder, peft=peft, name=source.name)
        return ValueStart(start, is_reward_model=True, zero_head=self.config.value_head == "zero")
