"""The updates of one rollout batch: several passes over it in mini-batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from align.config.online import OnlineOptimization, OnlineTraining, RewardTraining
from align.errors import StageError
from align.losses.policy import PolicyLoss, clipped_policy_loss, k3_kl
from align.losses.ppo import ppo_value_loss
from align.runtime.seed import derive_seed
from align.training.online.experience import Experience
from align.training.online.layout import Episode, PackedEpisodes, to_rows
from align.training.online.models import ForwardSettings, Models, policy_logps, token_values, trainable
from align.training.online.shares import Passes, total_numbers
from align.training.optimizer import make_optimizer
from align.training.sharding import local_part, sum_gradients, whole_tensor


@dataclass(frozen=True)
class LearningModel:
    """A model that learns, with its optimizer and learning rate schedule."""

    name: str
    model: Any
    optimizer: torch.optim.Optimizer
    schedule: Any

    @classmethod
    def of(cls, name: str, model: Any, config: OnlineOptimization, *, learning_rate: float, num_updates: int) -> LearningModel:
        """Give a model an optimizer and a schedule, both at their start.

        Args:
            num_updates: optimizer steps in the whole training.
        """
        optimizer = make_optimizer(trainable(model), config, learning_rate=learning_rate)
        schedule = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=0, num_training_steps=max(num_updates, 1))
        return cls(name, model, optimizer, schedule)

    def clip_gradients(self, max_norm: float) -> float:
        """Scale the gradients down to `max_norm`; returns their norm before that.

        Raises:
            StageError: if it is not finite.
        """
        parameters = trainable(self.model)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # accelerate's own fails for the second of two sharded models.
        total = whole_tensor(torch.nn.utils.get_total_norm(gradients))
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
        norm = float(total)
        if not math.isfinite(norm):
            raise StageError(
                f"The gradient norm of the {self.name} model is {norm}; this update was not made",
                hint="Lower learning_rate, set precision: float32, or look at the scores: are they of a sensible size?",
            )
        return norm

    def add_gradients_of_all(self) -> None:
        """Of all processes, where each has the model whole; of a sharded model they are added up with each backward pass."""
        parameters = trainable(self.model)
        if local_part(parameters[0]) is parameters[0]:
            sum_gradients(parameters)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()


@dataclass(frozen=True)
class Optimizers:
    """The models that learn."""

    policy: LearningModel
    value: LearningModel | None

    @classmethod
    def of(cls, models: Models, config: OnlineTraining, *, num_rollouts: int) -> Optimizers:
        """Fresh ones, for a training of `num_rollouts` rollout batches."""
        per_rollout = config.ppo_epochs * num_mini_batches(config.rollout_batch_size, config.mini_batch_size)
        value, learning = None, num_rollouts
        if (value_config := config.value_settings) is not None:
            learning = max(num_rollouts - value_config.critic_warmup_batches, 0)
            value = LearningModel.of(
                "value",
                models.value,
                config,
                learning_rate=value_config.value_learning_rate or config.learning_rate,
                num_updates=num_rollouts * per_rollout,
            )
        rate, updates = config.learning_rate, learning * per_rollout
        return cls(LearningModel.of("policy", models.policy, config, learning_rate=rate, num_updates=updates), value)

    def __iter__(self) -> Iterator[LearningModel]:
        yield self.policy
        if self.value is not None:
            yield self.value


def mini_batches(count: int, size: int, *, seed: int, rollout: int, epoch: int) -> Iterator[list[int]]:
    """Numbers of the episodes of each mini-batch: a new shuffle every pass, from the seed and the two numbers alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "mini_batches", rollout, epoch))
    order = torch.randperm(count, generator=generator).tolist()
    starts = [number * size for number in range(num_mini_batches(count, size))]
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield order[start:end]


def num_mini_batches(count: int, size: int) -> int:
    """A remainder of less than half a mini-batch joins the last one, so that no update is made from a few episodes."""
    whole, rest = divmod(count, size)
    return max(1, whole + (2 * rest >= size))


@dataclass(frozen=True)
class LearningPhase:
    """What the updates of one rollout batch learn from, and how far they are."""

    episodes: list[Episode]
    experience: Experience | None
    """None for methods that learn from the episodes alone."""
    numbers: dict[str, float]
    """Of the rollout batch, under TRL's names."""
    nonfinite: int
    """Completions left out because a score was not finite."""
    new_tokens: int = 0
    """Sampled tokens, with those of the completions that were left out."""
    scored: int = 0
    """Completions that were scored, those among them that were left out."""
    scored_tokens: int = 0
    """Of those completions and their prompts."""
    refilled: int = 0
    """Prompts that were drawn in place of others."""
    truncated: int = 0
    """Completions left out because they were cut."""
    updates: list[dict[str, float]] = field(default_factory=list)
    """Numbers of every update that was made."""


Accumulate = Callable[[Passes], dict[str, float]]
"""Adds the gradients of one mini-batch up over the passes of this process, and returns the numbers of all."""


@dataclass(frozen=True)
class Learner:
    """Trains the policy, and the value model where there is one, on rollout batches. A method says what the gradients are."""

    optimizers: Optimizers
    settings: ForwardSettings
    config: OnlineTraining
    seed: int

    def accumulator(self, phase: LearningPhase, *, learn_policy: bool, score_bias: float, kl_coef: float) -> Accumulate:
        """What computes the gradients of a mini-batch of this rollout batch."""
        raise NotImplementedError

    def is_far(self, row: dict[str, float]) -> bool:
        """Whether the policy has moved so far that the rest of the rollout batch is left out, by the numbers of an update."""
        return False

    def learns_policy(self, rollout: int) -> bool:
        """False for the first rollout batches if they train the value model alone."""
        value_config = self.config.value_settings
        return value_config is None or rollout >= value_config.critic_warmup_batches

    def update(
        self,
        phase: LearningPhase,
        *,
        rollout: int,
        score_bias: float,
        kl_coef: float,
        before_update: Callable[[], None] = lambda: None,
    ) -> None:
        """Learn from one rollout batch, from where `phase` stands; the numbers of every update join it, under TRL's names.

        What losses are divided by is counted over the whole mini-batch, whatever processes and forward passes share it.

        Args:
            rollout: number of the rollout batch.
            score_bias: subtracted from every value, as it was from the scores.
            kl_coef: weight of the KL penalty, where that is a term of the loss.
            before_update: called before every update; what it raises leaves models and phase as they are.
        Raises:
            StageError: if a gradient is not finite; the weights are then those of the update before.
        """
        config, learn_policy = self.config, self.learns_policy(rollout)
        episodes, size = phase.episodes, config.mini_batch_size
        if not episodes:  # all were cut
            return
        batches = (
            chosen
            for epoch in range(config.ppo_epochs)
            for chosen in mini_batches(len(episodes), size, seed=self.seed, rollout=rollout, epoch=epoch)
        )
        accumulate = self.accumulator(phase, learn_policy=learn_policy, score_bias=score_bias, kl_coef=kl_coef)
        for chosen in itertools.islice(batches, len(phase.updates), None):
            before_update()
            row = self.settings.run_passes(episodes, chosen, accumulate)
            phase.updates.append(row | self._apply(learn_policy))
            # It was measured before this step, which stays; only the remaining updates are skipped.
            if self.is_far(row):
                return

    def clear_gradients(self) -> None:
        """Passes that memory was not enough for may have left some."""
        for learner in self.optimizers:
            learner.optimizer.zero_grad(set_to_none=True)

    def _apply(self, learn_policy: bool) -> dict[str, float]:
        """Clip, check, step, clear; the gradients' norms before clipping and the policy's learning rate."""
        policy, numbers = self.optimizers.policy, {}
        learners = [learner for learner in self.optimizers if learn_policy or learner is not policy]
        if learn_policy:
            numbers["lr"] = policy.schedule.get_last_lr()[0]
        # All norms are checked before the first step, so that no model is ahead of the other after an error.
        for learner in learners:
            learner.add_gradients_of_all()
            numbers[f"{learner.name}/grad_norm"] = learner.clip_gradients(self.config.max_grad_norm)
        for learner in learners:
            learner.step()
        return numbers


@dataclass(frozen=True)
class PolicyLearner(Learner):
    """Learns from advantages, by the clipped surrogate."""

    config: RewardTraining

    def accumulator(self, phase: LearningPhase, *, learn_policy: bool, score_bias: float, kl_coef: float) -> Accumulate:
        assert phase.experience is not None
        return partial(self._accumulate, phase.experience, score_bias, learn_policy, kl_coef=kl_coef)

    def is_far(self, row: dict[str, float]) -> bool:
        limit = self.config.update_kl_limit
        return limit is not None and row["policy/approxkl_avg"] > limit

    def _accumulate(
        self,
        experience: Experience,
        score_bias: float,
        learn_policy: bool,
        passes: Passes,
        *,
        kl_coef: float = 0.0,
    ) -> dict[str, float]:
        """Gradients of one mini-batch. They add up over its passes; each pass frees its graph."""
        self.clear_gradients()
        config, count, completions = self.config, passes.tokens, passes.completions
        aggregation = config.surrogate.aggregation
        divisor = {"tokens": count, "sequences": completions, "constant": completions * config.max_completion_tokens}[aggregation]
        sums: dict[str, Tensor] = {}
        for batch, weight in passes.weighted():
            old = experience.at(batch.tokens)
            value_losses, value_numbers = self._value_losses(batch, old, score_bias)
            with torch.set_grad_enabled(learn_policy):
                logps = policy_logps(self.optimizers.policy.model, batch, self.settings)
            policy = self._policy_loss(batch, old, logps)
            policy_losses, kl_numbers = policy.losses * old.importance, {}
            if old.reference_logps is not None:
                kl = k3_kl(logps, old.reference_logps)
                policy_losses, kl_numbers = policy_losses + kl_coef * kl, {"loss/kl_avg": kl.detach()}
            if value_losses is not None and config.value_settings is not None:
                # Divided by the tokens of the mini-batch, not of the pass, so that the size of a pass changes no gradient.
                (config.value_settings.vf_coef * value_losses.sum() / count * weight).backward()
            if learn_policy:
                weighted = policy_losses / batch.lengths(logps.device) if aggregation == "sequences" else policy_losses
                (weighted.sum() / divisor * weight).backward()
            if not weight:
                continue
            numbers = {
                "loss/policy_avg": policy_losses.detach(),
                "policy/clipfrac_avg": policy.clipped,
                "policy/approxkl_avg": policy.approx_kl,
                "val/ratio": policy.ratio,
                **kl_numbers,
                **value_numbers,
            }
            for name, values_of_pass in numbers.items():
                sums[name] = sums.get(name, torch.zeros((), device=logps.device)) + values_of_pass.sum()
        return {name: total / count for name, total in total_numbers({name: float(sums[name]) for name in sums}).items()}

    def _policy_loss(self, batch: PackedEpisodes, old: Experience, logps: Tensor) -> PolicyLoss:
        """[completion tokens] of each; in rows of one completion each while the loss is computed, as it may have one ratio."""
        surrogate = self.config.surrogate
        rows, mask = to_rows(logps, batch.offsets)
        loss = clipped_policy_loss(
            rows,
            to_rows(old.logps, batch.offsets)[0],
            to_rows(old.advantages, batch.offsets)[0],
            mask,
            clip_low=surrogate.clip_low,
            clip_high=surrogate.clip_high,
            level=surrogate.level,
            dual_clip=self.config.dual_clip,
        )
        return PolicyLoss(*(part[mask] for part in loss))

    def _value_losses(self, batch: PackedEpisodes, old: Experience, score_bias: float) -> tuple[Tensor | None, dict[str, Tensor]]:
        """[1, completion tokens] losses of the value model, and what is logged of them; None without a value model."""
        config, learner = self.config.value_settings, self.optimizers.value
        if config is None or learner is None or old.values is None or old.returns is None:
            return None, {}
        values = token_values(learner.model, batch, self.settings) - score_bias
        mask = torch.ones_like(values, dtype=torch.bool)[None]
        losses = ppo_value_loss(values[None], old.values[None], old.returns[None], mask, cliprange_value=config.cliprange_value)
        clipped = (values.detach() - old.values).abs() > config.cliprange_value
        return losses, {"loss/value_avg": losses.detach(), "val/clipfrac_avg": clipped.float()}
