"""The three networks of PPO that the trainer runs itself: policy, reference and value model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from align.models.head import target_logps
from align.models.load import load_causal_lm, load_reward_model
from align.training.ppo.layout import ROW_TOKENS, Episode, PackedEpisodes, pack_episodes


@dataclass(frozen=True)
class Arithmetic:
    """How forward passes are computed."""

    device: torch.device
    precision: str
    """float32 or bfloat16 (autocast)."""
    temperature: float
    micro_batch_tokens: int
    pad_token_id: int

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def passes(self, episodes: Sequence[Episode], chosen: Sequence[int]) -> list[PackedEpisodes]:
        packed = pack_episodes(
            episodes,
            chosen,
            micro_batch_tokens=self.micro_batch_tokens,
            row_tokens=ROW_TOKENS[self.device.type],
            pad_token_id=self.pad_token_id,
        )
        return [batch.to(self.device) for batch in packed]


@dataclass(frozen=True)
class Models:
    """All in evaluation mode throughout: with dropout the ratio of new to old probabilities would not start at 1."""

    policy: Any
    reference: Any
    value: Any
    """A reward model architecture: a backbone and a head of one number."""

    def policy_weights(self) -> list[tuple[str, Tensor]]:
        """What an engine needs of the policy, by the names in its folder."""
        return [(name, parameter.detach()) for name, parameter in self.policy.named_parameters()]


def load_models(
    policy: Path,
    value: Path | None,
    *,
    value_head: Literal["reward_model", "zero"],
    device: torch.device,
    pad_token_id: int,
    seed: int,
) -> Models:
    """Policy and reference from `policy`; the value model from the reward model in `value`, or from the policy where it is None.

    Raises:
        RecipeError: if a folder cannot be used, or the value model does not give one number per token.
    """
    if value is None:
        torch.manual_seed(seed)  # the new head is drawn from it before it becomes zero
        value_model = load_reward_model(policy, new_head=True, pad_token_id=pad_token_id)
    else:
        value_model = load_reward_model(value, new_head=False, pad_token_id=pad_token_id)
    if value is None or value_head == "zero":
        torch.nn.init.zeros_(value_model.score.weight)
    models = [load_causal_lm(policy), load_causal_lm(policy), value_model]
    for model in models:
        model.to(device).eval()
    models[1].requires_grad_(False)
    return Models(*models)


def policy_logps(model: Any, batch: PackedEpisodes, arithmetic: Arithmetic) -> Tensor:
    """[completion tokens] log-probability of every sampled token, nats; carries the gradient."""
    with arithmetic.autocast():
        states = _states(model, batch)
        return target_logps(model, states, batch.targets, temperature=arithmetic.temperature).logps


@torch.no_grad()
def policy_logps_and_entropy(model: Any, batch: PackedEpisodes, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """[completion tokens] log-probability of every sampled token, and the entropy it was drawn with, nats."""
    with arithmetic.autocast():
        states = _states(model, batch)
        result = target_logps(model, states, batch.targets, temperature=arithmetic.temperature, with_entropy=True)
    assert result.entropy is not None
    return result.logps, result.entropy


def token_values(model: Any, batch: PackedEpisodes, arithmetic: Arithmetic) -> Tensor:
    """[completion tokens] value of the state before each token was drawn, float32; carries the gradient."""
    with arithmetic.autocast():
        values: Tensor = model.score(_states(model, batch))[:, 0]
    return values.float()


def _states(model: Any, batch: PackedEpisodes) -> Tensor:
    hidden = model.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[batch.sources]  # type: ignore[no-any-return]
