"""The value model of methods that have one: the model that it starts from, and whether that fits the policy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from align.config.online import ValueOptimization
from align.errors import RecipeError
from align.models.adapter import read_adapter
from align.models.folder import context_tokens, is_adapter
from align.models.load import differing_tokens
from align.models.trainable import TrainableModel
from align.store.artifact import Artifact
from align.training.online.models import ValueStart


@dataclass(frozen=True)
class ValueModel:
    """A value model that starts from a reward model, or from the policy with a head of zeros."""

    config: ValueOptimization
    reward_model: Artifact | None

    def check(self, policy: Artifact, max_tokens: int) -> None:
        """The value model reads the policy's tokens, so it must have the same ones, and room for all of them.

        Raises:
            RecipeError: if it does not.
        """
        source = self.reward_model
        if source is None:
            return
        if differing := differing_tokens(source.model_path, policy.model_path):
            raise RecipeError(
                f"{source.name}: the value model starts from this reward model, but its tokenizer is not that of {policy.name} "
                f"({len(differing):,} tokens differ: {', '.join(map(repr, differing[:3]))}, …)",
                hint="Set value_model to a reward model made from the same base; "
                "one with another tokenizer can still be a scorer.",
            )
        if (context := context_tokens(source.model_path)) < max_tokens:
            raise RecipeError(
                f"{source.name}: the value model sees {context} tokens, prompt and completion may have {max_tokens}",
                hint="Lower max_prompt_tokens or max_completion_tokens.",
            )

    def start(self, policy: TrainableModel) -> ValueStart:
        """It learns as the policy does; a reward model that is an adapter is trained further with its own settings."""
        source, peft = self.reward_model, policy.peft
        if source is None:
            return ValueStart(policy, is_reward_model=False, zero_head=True)
        if peft is not None and is_adapter(source.model_path):
            peft = read_adapter(source.model_path).peft
        start = replace(policy, folder=source.model_path, peft=peft, name=source.name)
        return ValueStart(start, is_reward_model=True, zero_head=self.config.value_head == "zero")
