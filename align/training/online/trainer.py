"""An online training from start to end: sample, score, learn, and repeat.

Ouyang et al. 2022 (InstructGPT), appendix C.4; Huang et al. 2024, "The N+ implementation details of RLHF with PPO".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from align.config.online import DistillTraining, OnlineTraining
from align.engines.protocol import TextEngine
from align.errors import Interrupted, StageError
from align.runtime.context import RunContext
from align.runtime.group import from_first
from align.runtime.life import still_working
from align.runtime.profile import phase
from align.training import checkpoint
from align.training.loop import TrainingHistory
from align.training.online.advantage import Advantage
from align.training.online.ahead import AheadEngine
from align.training.online.distill import Distiller
from align.training.online.experience import (
    Experience,
    length_numbers,
    make_experience,
    mean_numbers,
    watched_numbers,
    without_cut_ones,
)
from align.training.online.learner import Learner, LearningPhase, Optimizers, PolicyLearner, num_mini_batches
from align.training.online.models import Models, trainable
from align.training.online.noted import unusual
from align.training.online.policy_engine import PolicyEngine
from align.training.online.rollout import Rollout, RolloutSampler, ScoredEpisode
from align.training.online.state import TrainerState, load_state, save_state
from align.training.online.summary import summary

MAX_KL_ERROR = 0.2
SHOWN = (("score", "objective/scores"), ("kl", "objective/kl"), ("kl", "teacher/kl"))
"""What progress shows of a rollout batch, where it has it: short name and metric."""


@dataclass(frozen=True)
class OnlineResult:
    """The result of a training; the policy is in the models that were passed in."""

    history: TrainingHistory
    metrics: dict[str, Any]


class OnlineTrainer:
    """Trains `models.policy`, and `models.value` where there is one, in place."""

    def __init__(
        self,
        models: Models,
        sampler: RolloutSampler,
        engine: TextEngine | None,
        context: RunContext,
        config: OnlineTraining,
        advantage: Advantage | None,
    ) -> None:
        """Make a trainer; a checkpoint is looked for when it trains.

        Args:
            advantage: None for a method that learns from a teacher, the reference in `models`.
            engine: runs the model that training starts from; it is closed at the end. Of several processes the first have one.
        """
        self._models = models
        self._sampler = sampler
        kind = AheadEngine if config.rollouts_ahead else PolicyEngine
        self._engine = kind(engine, sampler, models, checks=config.check_weights)
        self._context = context
        self._config = config
        self._advantage = advantage
        self._num_rollouts = sampler.num_rollouts
        self._optimizers = Optimizers.of(models, config, num_rollouts=self._num_rollouts)
        self._rewards = rewards = config.reward_settings
        self._kl_limit = None if rewards is None else rewards.kl_limit
        self._learner: Learner
        if rewards is not None:
            self._learner = PolicyLearner(self._optimizers, models.settings, rewards, context.seed)
        else:
            assert isinstance(config, DistillTraining), "a method learns from scores or from a teacher"
            self._learner = Distiller(self._optimizers, models.settings, config, context.seed, models.reference)
        self._state = TrainerState(kl_coef=0.0 if rewards is None else rewards.kl_coef)
        self._policy_before: list[Tensor] | None = None
        """The policy before its last update, kept where kl_limit may undo that update."""
        self._checkpoints = context.work / checkpoint.FOLDER_NAME
        self._clock = checkpoint.Clock(config.checkpoint_minutes, context.checkpoint_request)
        learning = [learner.model for learner in self._optimizers]
        models.settings.pass_size.keep_in(context, learning, gradient_checkpointing=config.gradient_checkpointing)
        self._noted: set[str] = set()

    @phase("train")
    def train(self) -> OnlineResult:
        """To the end, from the newest whole checkpoint where there is one.

        Raises:
            Interrupted: if a stop was requested; a checkpoint was written before.
            StageError: if a gradient is not finite, or a rollout batch got no finite score at all.
        """
        unfinished = self._resume()
        stopped_by_kl = False
        try:
            while self._state.rollouts < self._num_rollouts and not stopped_by_kl:
                if unfinished is not None:
                    self._engine.sleep()
                phase, unfinished = unfinished or self._roll_out(), None
                stopped_by_kl = self._exceeds_kl_limit(phase.numbers)
                if not stopped_by_kl:
                    self._learn(phase)
                    self._keep(phase.numbers)
            if self._kl_limit is not None and not stopped_by_kl:
                phase = self._roll_out()  # the KL after the last update is not known yet
                stopped_by_kl = self._exceeds_kl_limit(phase.numbers)
            if self._kl_limit is not None:
                self._state.new_tokens += phase.new_tokens  # the last batch only measured the KL
        finally:
            self._engine.close()
        if stopped_by_kl:
            self._restore_policy(phase.numbers)
        metrics = summary(self._state, self._config, self._models, stopped_by_kl=stopped_by_kl)
        return OnlineResult(TrainingHistory(self._state.rows, self._state.rollouts), metrics)

    def _sample_and_score(self, *, drawn: int, groups: int) -> list[ScoredEpisode]:
        """Completions of the policy as it is; the first process alone scores.

        Args:
            drawn: prompts that were drawn for this rollout batch before.
            groups: prompts to draw.
        """
        state = self._state
        self._check_stop()
        with self._timed("rollout"):
            self._engine.wait()
        with self._timed("sync"), phase("engine"):
            self._engine.exchange(state.rollouts)
        with self._timed("rollout"):
            sampled = self._engine.sample(state.rollouts, after=state.refilled + drawn, groups=groups)
            self._engine.sleep()
        self._check_stop()
        with self._timed("score"):
            return self._sampler.score(sampled) if sampled else []

    def _roll_out(self) -> LearningPhase:
        """Sample and score, and compute what the updates need. Changes nothing but the score bias."""
        state, settings, size = self._state, self._config.group_settings, self._sampler.groups_per_batch
        scored: list[ScoredEpisode] = []
        equal: set[int] = set()
        drawn, refills = 0, 0 if settings is None else settings.refill_limit
        for _ in range(1 + refills):
            missing = size - (drawn - len(equal))
            scored += self._sample_and_score(drawn=drawn, groups=missing)
            drawn += missing
            equal = set() if settings is None else from_first(self._sampler.equal_groups(scored))
            if not equal:
                break
        # Where no group teaches anything, equal ones do no harm.
        skipped = equal if refills and len(equal) < drawn else set()
        # An error of the first process ends all of them.
        rollout = self._sampler.rollout(scored, skipped=skipped) if self._context.is_first else None
        sampled = [row.sampled for row in scored]
        new_tokens = sum(len(episode.completion.token_ids) for episode in sampled)
        scored_tokens = new_tokens + sum(len(episode.prompt_token_ids) for episode in sampled)
        if rollout is not None:
            self._context.sample(state.rollouts, rollout.texts)
            rollout = replace(rollout, texts=[])
        rollout, counts = from_first((rollout, (len(scored), new_tokens, scored_tokens)))
        assert rollout is not None
        # Set once, while the policy is still the reference: a bias that follows the policy would cancel its progress.
        value_config = self._config.value_settings
        if state.rollouts == 0 and value_config is not None and value_config.center_scores:
            state.score_bias = float(rollout.scores.mean())
        with self._timed("experience"):
            experience, numbers = self._experience(rollout)
        numbers = from_first(numbers)  # decisions follow from them
        numbers["rollout/weights_version"] = rollout.weights_version
        self._check_stop()
        episodes = rollout.episodes
        if settings is not None and experience is not None:
            numbers["zero_variance_groups"] = len(equal) / drawn
            if settings.truncated == "mask":
                episodes, experience = without_cut_ones(rollout, experience)
                numbers["rollout/truncated_masked"] = 1 - len(episodes) / len(rollout.episodes)
        self._note_unusual(numbers)
        num_scored, new_tokens, scored_tokens = counts
        return LearningPhase(
            episodes,
            experience,
            numbers,
            rollout.nonfinite,
            new_tokens,
            scored=num_scored,
            scored_tokens=scored_tokens,
            refilled=drawn - size,
            truncated=len(rollout.episodes) - len(episodes),
        )

    def _experience(self, rollout: Rollout) -> tuple[Experience | None, dict[str, float]]:
        """What the updates need beyond the episodes, and the numbers of the rollout batch."""
        if self._rewards is None or self._advantage is None:
            return None, {**length_numbers(rollout), **watched_numbers(rollout)}
        kl_coef, bias = self._state.kl_coef, self._state.score_bias
        return make_experience(rollout, self._models, self._rewards, self._advantage, kl_coef=kl_coef, score_bias=bias)

    def _learn(self, phase: LearningPhase) -> None:
        """Update the models; the numbers of the updates join those of the rollout batch."""
        state, config, numbers = self._state, self._config, phase.numbers
        if self._kl_limit is not None and not phase.updates:
            self._policy_before = [parameter.detach().clone() for parameter in trainable(self._models.policy)]
        with self._timed("train"):
            check = lambda: self._check_stop(phase)  # noqa: E731
            self._learner.update(
                phase,
                rollout=state.rollouts,
                score_bias=state.score_bias,
                kl_coef=state.kl_coef,
                before_update=check,
            )
        numbers.update(mean_numbers(phase.updates))
        numbers["updates"] = len(phase.updates)
        self._note_unusual(numbers)
        # While only the value model learns the KL is about 0, and a coefficient that adapts would shrink for no reason.
        if self._rewards is not None and self._learner.learns_policy(state.rollouts):
            state.kl_coef = adapted_kl_coef(
                state.kl_coef,
                numbers.get("objective/kl", 0.0),
                target=self._rewards.kl_target,
                horizon=self._rewards.kl_horizon,
                episodes=len(phase.episodes),
            )
        # Counted here, not where it was sampled, so that a batch that a resumed training samples again counts once.
        tokens, per_pass = sum(map(len, phase.episodes)), num_mini_batches(len(phase.episodes), config.mini_batch_size)
        state.new_tokens += phase.new_tokens
        state.tokens += tokens
        state.trained_tokens += round(tokens * len(phase.updates) / per_pass)
        state.nonfinite += phase.nonfinite
        state.scored += phase.scored
        state.scored_tokens += phase.scored_tokens
        state.refilled += phase.refilled
        state.truncated += phase.truncated
        state.rollouts += 1

    def _note_unusual(self, numbers: Mapping[str, float]) -> None:
        """Say once of each metric that it is beyond its usual range."""
        for name, note in unusual(numbers, self._state.rollouts + 1).items():
            if name not in self._noted:
                self._noted.add(name)
                self._context.note(note)

    def _keep(self, numbers: dict[str, float]) -> None:
        """Log a rollout batch, report progress, and write a checkpoint when one is due."""
        state = self._state
        state.rows.append({"step": state.rollouts, "episode": state.rollouts * self._config.rollout_batch_size, **numbers})
        self._context.metrics(state.rows[-1])
        shown = {short: numbers[name] for short, name in SHOWN if name in numbers}
        per_batch = {"episodes": float(self._config.rollout_batch_size)}
        self._context.progress("train", state.rollouts, self._num_rollouts, "rollouts", per_batch, **shown)
        steps = self._config.checkpoint_steps
        is_due = from_first(self._clock.is_due()) or (steps is not None and state.rollouts % steps == 0)
        if is_due and state.rollouts < self._num_rollouts:
            self._write_checkpoint()

    def _exceeds_kl_limit(self, numbers: dict[str, float]) -> bool:
        return self._kl_limit is not None and numbers["objective/kl"] > self._kl_limit

    def _restore_policy(self, numbers: dict[str, float]) -> None:
        """Undo the updates that led over the KL limit."""
        kl, limit = numbers["objective/kl"], self._kl_limit
        if self._policy_before is None:
            raise StageError(
                f"The KL to the reference is {kl:.3g} nats per completion before the first update, above kl_limit {limit}",
                hint="Raise kl_limit: so large a value at the start is the noise of the estimate.",
            )
        with torch.no_grad():
            for parameter, before in zip(trainable(self._models.policy), self._policy_before, strict=True):
                parameter.copy_(before)
        self._context.note(
            f"stopped after {self._state.rollouts} of {self._num_rollouts} rollout batches: KL {kl:.3g} nats is above kl_limit "
            f"{limit:g}; the policy from before the last updates is kept"
        )

    @contextlib.contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._state.seconds[kind] = self._state.seconds.get(kind, 0.0) + time.perf_counter() - started

    def _check_stop(self, phase: LearningPhase | None = None) -> None:
        """Stop if that was requested. Called only between updates, when a checkpoint is exact.

        Args:
            phase: what is learned from at present.
        """
        still_working()
        number = from_first(self._context.stop_requested())
        if number is None:
            return
        updates = len(phase.updates) if phase is not None else 0
        if self._state.rollouts > 0 or updates:
            self._write_checkpoint(phase if updates else None)
        raise Interrupted(
            f"Stopped after {self._state.rollouts} of {self._num_rollouts} rollout batches"
            f"{f' and {updates} updates from the next' if updates else ''}; a checkpoint is kept.",
            signal_number=number,
        )

    def _write_checkpoint(self, phase: LearningPhase | None = None) -> None:
        folder = self._checkpoints / f"{checkpoint.PREFIX}{self._state.rollouts}"
        with self._timed("checkpoint"), self._context.saving():
            # Without updates since, a checkpoint of this name was written when its rollout batch was done.
            first = self._context.is_first
            if from_first(phase is not None or (first and checkpoint.problem_with(folder) is not None)):
                new = folder.with_name("unfinished")
                save_state(new, self._state, self._optimizers, self._policy_before, phase, writes=first)
                self._engine.save(new, self._state.rollouts + (phase is not None), writes=first)
                if first:
                    checkpoint.seal(new, called=folder.name)
                    checkpoint.replace(folder, new)
                    checkpoint.remove_old(self._checkpoints)
        self._clock.restart()

    def _resume(self) -> LearningPhase | None:
        """Go back to the newest checkpoint; what it had begun to learn from, if anything."""
        # One process moves damaged ones aside; the others take what it found.
        first = self._context.is_first
        start = from_first(checkpoint.newest_valid(self._checkpoints, on_damage=self._context.note) if first else None)
        if start is None:
            return None
        self._state, self._policy_before, phase = load_state(start, self._optimizers, self._models.settings.device)
        self._engine.load(start)
        for row in self._state.rows:  # they may not have reached a file of events before the kill
            self._context.metrics(row)
        behind = f" and {len(phase.updates)} updates" if phase is not None else ""
        self._context.note(f"resuming after rollout batch {self._state.rollouts}{behind}")
        return phase


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float | None, horizon: int, episodes: int) -> float:
    """The coefficient for the next rollout batch.

    kl_coef * (1 + error * episodes / horizon), error = kl / target - 1, held within ±0.2. Ziegler et al. 2019, §2.2.

    Args:
        kl: mean KL per completion of this rollout batch, nats.
        target: None leaves the coefficient as it is.
        horizon: episodes over which the coefficient follows.
        episodes: completions in this rollout batch.
    """
    if target is None:
        return kl_coef
    error = min(max(kl / target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
    return kl_coef * (1 + error * episodes / horizon)
