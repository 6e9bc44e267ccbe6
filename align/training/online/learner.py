"""The updates of one rollout batch: several passes over it in mini-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from align.config.ppo import PpoOptimization
from align.errors import StageError
from align.losses.ppo import ppo_policy_loss, ppo_value_loss
from align.training.online.experience import Experience
from align.training.online.layout import Episode, PackedEpisodes
from align.training.online.models import ForwardSettings, Models, policy_logps, token_values, trainable


@dataclass(frozen=True)
class Optimizers:
    """One optimizer and one learning rate schedule for each of the two models that learn."""

    policy: torch.optim.Optimizer
    value: torch.optim.Optimizer
    policy_schedule: Any
    value_schedule: Any

    @classmethod
    def of(cls, models: Models, config: PpoOptimization, *, policy_updates: int, value_updates: int) -> Optimizers:
        """Fresh ones, for so many optimizer steps in the whole training."""

        def adam(model: Any, learning_rate: float) -> torch.optim.Optimizer:
            return torch.optim.AdamW(
                trainable(model), lr=learning_rate, eps=config.adam_epsilon, weight_decay=config.weight_decay, fused=True
            )

        def schedule(optimizer: torch.optim.Optimizer, updates: int) -> Any:
            return get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=0, num_training_steps=max(updates, 1))

        policy = adam(models.policy, config.learning_rate)
        value = adam(models.value, config.value_learning_rate or config.learning_rate)
        return cls(policy, value, schedule(policy, policy_updates), schedule(value, value_updates))


def mini_batches(count: int, size: int, *, seed: int, rollout: int, epoch: int) -> Iterator[list[int]]:
    """Numbers of the episodes of each mini-batch: a new shuffle every pass, from the seed and the two numbers alone."""
    generator = torch.Generator().manual_seed((seed << 24) + (rollout << 8) + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    starts = [number * size for number in range(num_mini_batches(count, size))]
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield order[start:end]


def num_mini_batches(count: int, size: int) -> int:
    """What is left over joins the last mini-batch if it is less than half of one, so that no update is made of a few."""
    whole, rest = divmod(count, size)
    return max(1, whole + (2 * rest >= size))


@dataclass(frozen=True)
class PolicyLearner:
    """Trains policy and value model on rollout batches."""

    models: Models
    optimizers: Optimizers
    settings: ForwardSettings
    config: PpoOptimization
    seed: int

    def update(
        self, episodes: Sequence[Episode], experience: Experience, *, rollout: int, score_bias: float
    ) -> list[dict[str, float]]:
        """Learn from one rollout batch; the numbers of every update, under TRL's names.

        Both losses are summed over the completion tokens of a mini-batch and divided by their number, whatever forward passes it
        is cut into.

        Args:
            rollout: number of the rollout batch; in the first `critic_warmup_batches` only the value model learns.
            score_bias: taken off every value, as it was off the scores.
        Raises:
            StageError: if a gradient is not finite; the weights are then those of the update before.
        """
        config = self.config
        learn_policy = rollout >= config.critic_warmup_batches
        rows: list[dict[str, float]] = []
        for epoch in range(config.ppo_epochs):
            for chosen in mini_batches(len(episodes), config.mini_batch_size, seed=self.seed, rollout=rollout, epoch=epoch):
                passes = self.settings.passes(episodes, chosen)
                row = self._accumulate(passes, experience, score_bias, learn_policy)
                rows.append(row | self._apply(learn_policy))
                if config.update_kl_limit is not None and row["policy/approxkl_avg"] > config.update_kl_limit:
                    return rows
        return rows

    def _accumulate(
        self, passes: Sequence[PackedEpisodes], experience: Experience, score_bias: float, learn_policy: bool
    ) -> dict[str, float]:
        """Gradients of one mini-batch; they add up over its passes, and no graph is kept from one to the next."""
        config, count = self.config, sum(len(batch.tokens) for batch in passes)
        sums: dict[str, Tensor] = {}
        for batch in passes:
            values = token_values(self.models.value, batch, self.settings) - score_bias
            with torch.set_grad_enabled(learn_policy):
                logps = policy_logps(self.models.policy, batch, self.settings)
            old, mask = experience.at(batch.tokens), torch.ones_like(values, dtype=torch.bool)[None]
            value_losses = ppo_value_loss(
                values[None], old.values[None], old.returns[None], mask, cliprange_value=config.cliprange_value
            )
            policy = ppo_policy_loss(
                logps[None], old.logps[None], old.advantages[None], mask, cliprange=config.cliprange, dual_clip=config.dual_clip
            )
            policy_losses = policy.losses * old.importance
            (config.vf_coef * value_losses.sum() / count).backward()
            if learn_policy:
                (policy_losses.sum() / count).backward()
            numbers = {
                "loss/policy_avg": policy_losses.detach(),
                "loss/value_avg": value_losses.detach(),
                "policy/clipfrac_avg": policy.clipped,
                "policy/approxkl_avg": policy.approx_kl,
                "val/clipfrac_avg": ((values.detach() - old.values).abs() > config.cliprange_value).float(),
                "val/ratio": policy.ratio,
            }
            for name, values_of_pass in numbers.items():
                sums[name] = sums.get(name, torch.zeros((), device=values.device)) + values_of_pass.sum()
        return {name: float(value) / count for name, value in sums.items()}

    def _apply(self, learn_policy: bool) -> dict[str, float]:
        """Clip, check, step, clear; the gradients' norms before clipping and the policy's learning rate."""
        optimizers, numbers = self.optimizers, {}
        learners = {"value": (self.models.value, optimizers.value, optimizers.value_schedule)}
        if learn_policy:
            learners["policy"] = (self.models.policy, optimizers.policy, optimizers.policy_schedule)
            numbers["lr"] = optimizers.policy_schedule.get_last_lr()[0]
        for name, (model, _, _) in learners.items():
            norm = float(torch.nn.utils.clip_grad_norm_(trainable(model), self.config.max_grad_norm))
            if not math.isfinite(norm):
                raise StageError(
                    f"The gradient norm of the {name} model is {norm}; this update was not made",
                    hint="Lower learning_rate, set precision: float32, or look at the scores: are they of a sensible size?",
                )
            numbers[f"{name}/grad_norm"] = norm
        for _, optimizer, schedule in learners.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        return numbers
