"""A first guess of how long a stage takes, where no similar one has finished: its operations and steps, at a stated speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from align.config.online import OnlineTraining
from align.config.sections import JudgeScorer, reward_models_of
from align.engines.open import resolve_engine
from align.errors import EnvironmentProblem
from align.models.folder import ModelFolder
from align.models.shape import BACKWARD, FORWARD, ModelShape, read_shape
from align.pipeline.estimate.lengths import MeasuredRows
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import starting_folder
from align.pipeline.estimate.planned_rows import PlannedRows, RowsPlanner
from align.pipeline.estimate.speed import (
    ENGINE_START_SECONDS,
    FORKED_START_SECONDS,
    START_SECONDS,
    Speed,
)
from align.pipeline.plan import Plan, PlannedStage
from align.training.needs import TrainingNeeds, Trains

LIKELIHOODS = 2
"""Passes over each model's answers in a comparison: its own likelihood and the baseline's, for the KL."""


@dataclass(frozen=True)
class Guess:
    """Of one stage."""

    seconds: float
    is_bound: bool
    """Whether completions that are yet to be sampled count as long as they may become."""


class SpeedGuess:
    """Knows the models and the rows of a plan. What a judge takes at its endpoint is not known."""

    def __init__(self, plan: Plan, machine: Machine, speed: Speed, measured: MeasuredRows) -> None:
        self._plan = plan
        self._stages = {stage.name: stage for stage in plan.stages}
        self._device = machine.device
        self._speed = speed
        self._planner = RowsPlanner(plan, measured)
        self._shape_in = cache(read_shape)  # stages of a plan often share a model

    def guess(self, stage: PlannedStage, workers: int = 1) -> Guess | None:
        """None where a model or its rows are not known.

        Args:
            workers: that share the work, each with a device of its own.
        """
        config: Any = stage.node.config
        match stage.stage_type:
            case "generate":
                work = self._sampling(config, [config.model], [])
            case "compare":
                work = self._comparison(config)
            case "select_checkpoint":
                maker: Any = self._stages[config.model].node.config if config.model in self._stages else None
                epochs = getattr(maker, "num_epochs", 1)
                work = self._sampling(config, [config.model] * epochs, [config.scorer])
            case "select_model":
                work = self._sampling(config, list(config.models.values()), [config.scorer])
            case "score":
                work = self._scoring(config)
            case "best_of_n" | "pairs" | "label":
                work = Guess(0.0, is_bound=False)
            case _ if isinstance(config, OnlineTraining):
                work = self._online(config)
            case _ if isinstance(config, Trains):
                work = self._training(config)
            case _:
                work = None
        return None if work is None else Guess(self._start(stage) + work.seconds / workers, work.is_bound)

    def _start(self, stage: PlannedStage) -> float:
        first = next((other for other in self._plan.stages if other.status == "run"), None)
        return START_SECONDS if self._device == "cuda" or stage is first else FORKED_START_SECONDS

    def _model(self, name: str) -> tuple[ModelFolder, ModelShape] | None:
        folder = starting_folder(self._plan, name)
        shape = None if folder is None else self._shape_in(folder)
        return None if folder is None or shape is None else (folder, shape)

    def _rows_of(self, name: str, model: str) -> tuple[PlannedRows, ModelShape] | None:
        """Rows as a model reads them, and the model."""
        if (found := self._model(model)) is None or (rows := self._planner.rows(name, found[0])) is None:
            return None
        return rows, found[1]

    def _training(self, config: Any) -> Guess | None:
        needs: TrainingNeeds = config.training_needs()
        if (found := self._rows_of(needs.rows, needs.model)) is None:
            return None
        rows, shape = found
        operations = config.num_epochs * _operations(needs) + (0 if needs.reference is None else FORWARD)
        tokens = rows.tokens
        if needs.is_labelled:  # each completion with the prompt, beside one that is as long
            tokens = rows.rows * (rows.sides * rows.prompt + 2 * rows.completion)
        return Guess(tokens * shape.parameters * operations / self._speed.flops, rows.is_bound)

    def _comparison(self, config: Any) -> Guess | None:
        scorers = list(config.scorers.values())
        answers = self._sampling(config, config.models, scorers, likelihoods=LIKELIHOODS)
        if answers is None or config.pool_candidates <= config.num_candidates:
            return answers
        pool = self._sampling(config, [config.baseline], scorers, each=config.pool_candidates - config.num_candidates)
        return None if pool is None else Guess(answers.seconds + pool.seconds, answers.is_bound)

    def _sampling(
        self, config: Any, models: Sequence[str], scorers: Sequence[Any], *, each: int | None = None, likelihoods: int = 0
    ) -> Guess | None:
        """Every model answers the prompts, and every scorer scores the answers."""
        new, each, engine = config.max_completion_tokens, each or config.num_candidates, _engine(config.engine)
        seconds = ENGINE_START_SECONDS.get((engine, self._device), 0.0)
        for model in models:
            if (found := self._rows_of(config.prompts, model)) is None:
                return None
            rows, shape = found
            answers = rows.rows * each * (rows.prompt + new)
            if (scoring := self._scorers_seconds(scorers, answers)) is None:
                return None
            seconds += scoring + likelihoods * self._speed.forward_seconds(shape.parameters, answers)
            seconds += self._speed.sampling_seconds(shape, engine, prompts=rows.rows, prompt=rows.prompt, each=each, new=new)
        return Guess(seconds, is_bound=True)

    def _scoring(self, config: Any) -> Guess | None:
        models = [name for scorer in config.scorers.values() for name in reward_models_of(scorer)]
        if any(isinstance(scorer, JudgeScorer) for scorer in config.scorers.values()):
            return None
        found = [self._rows_of(config.candidates, model) for model in models]
        if None in found:
            return None
        known = [pair for pair in found if pair is not None]
        seconds = sum(self._speed.forward_seconds(shape.parameters, rows.tokens) for rows, shape in known)
        return Guess(seconds, any(rows.is_bound for rows, _ in known))

    def _online(self, config: Any) -> Guess | None:
        """Sampling, scores, log-probabilities of policy, reference and values where they are needed, then the epochs.

        Prompts that replace others (`refill_limit`) are not foreseen.
        """
        needs: TrainingNeeds = config.training_needs()
        found, value, teacher = self._rows_of(needs.rows, needs.model), None, None
        if needs.value_model is not None and (value := self._model(needs.value_model)) is None:
            return None
        if needs.teacher is not None and (teacher := self._model(needs.teacher.model)) is None:
            return None
        if found is None:
            return None
        rows, shape = found
        engine, batch = _engine(config.engine), config.rollout_batch_size
        episodes = -(-(config.num_episodes or rows.rows * config.group_size) // batch) * batch
        tokens = episodes * (rows.prompt + config.max_completion_tokens)
        scoring = self._scorers_seconds(needs.scorers, tokens)
        if scoring is None:
            return None
        learning = shape.parameters + (0 if value is None else value[1].parameters)
        passes = config.ppo_epochs * (_operations(needs) * learning + (FORWARD * teacher[1].parameters if teacher else 0))
        if (rewards := config.reward_settings) is not None:
            passes += FORWARD * (learning + (shape.parameters if rewards.needs_reference else 0))
        sampled = self._speed.sampling_seconds(
            shape,
            engine,
            prompts=batch // config.group_size,
            prompt=rows.prompt,
            each=config.group_size,
            new=config.max_completion_tokens,
        )
        seconds = scoring + tokens * passes / self._speed.flops + episodes / batch * sampled
        return Guess(ENGINE_START_SECONDS.get((engine, self._device), 0.0) + seconds, is_bound=True)

    def _scorers_seconds(self, scorers: Sequence[Any], tokens: float) -> float | None:
        """Of the reward models among the scorers; rules take no time."""
        models = [self._model(name) for scorer in scorers for name in reward_models_of(scorer)]
        if None in models:
            return None
        return sum(self._speed.forward_seconds(found[1].parameters, tokens) for found in models if found is not None)


def _engine(name: str) -> str:
    try:
        return resolve_engine(name)
    except EnvironmentProblem:  # a run says so
        return name


def _operations(needs: TrainingNeeds) -> int:
    """Per weight, token and epoch."""
    of_epoch = FORWARD + (BACKWARD if needs.peft is None else BACKWARD // 2)
    return of_epoch + (FORWARD if needs.memory.gradient_checkpointing is True else 0)
