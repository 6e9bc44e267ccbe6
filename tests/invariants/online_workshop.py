"""A small online training, of any method, for the tests of what must not change its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.config.rules import RuleSet
from align.config.sections import RulesScorer
from align.data.encoding import encode_prompts
from align.data.template import ChatFormat
from align.engines.transformers_engine import TransformersEngine
from align.models.folder import ModelFolder
from align.models.trainable import TrainableModel
from align.records import Message, Prompt
from align.runtime.events import Progress
from align.scoring.scorers import ScorerSet
from align.testing import Recorder, run_context
from align.training.online.experience import make_experience
from align.training.online.learner import Optimizers, PolicyLearner
from align.training.online.models import ForwardSettings, Models, ValueStart, load_models
from align.training.online.rollout import RolloutSampler
from align.training.online.trainer import OnlineResult, OnlineTrainer
from align.training.pass_size import PassSize

CPU = torch.device("cpu")
TEXTS = ["tell me something", "what is it", "why", "말해 줘", "왜 그래", "go on then", "and you", "hello there"]
# Rewards short completions: about half of a random model's are, so that there is something to learn from at once.
RULES = {"rules": [{"type": "length", "name": "short", "max_characters": 6}]}
SMALL: dict[str, Any] = {
    "rollout_batch_size": 16,
    "mini_batch_size": 8,
    "ppo_epochs": 2,
    "max_completion_tokens": 6,
    "learning_rate": 3e-3,
    "lr_scheduler": "constant",
    "missing_eos_penalty": 0.0,
    "checkpoint_steps": 1,
}


class Training(Recorder):
    """An online training that can be stopped and started again."""

    def __init__(self, base: Path, work: Path, config: Any, *, precision: str = "float32") -> None:
        """Make a training that is not started yet.

        Args:
            config: settings of a method, with its advantage estimator.
        """
        self.base, self.work, self.precision = base, work, precision
        self.config = config
        super().__init__()
        self.models: Models | None = None
        self.pass_size = PassSize(self.config.micro_batch_tokens, "tokens")
        self.engine = TransformersEngine

    def parts(self, num_rollouts: int) -> tuple[Models, RolloutSampler]:
        tokenizer = ModelFolder(self.base).tokenizer
        chat_format = ChatFormat(tokenizer, where="base")
        prompts = [Prompt(id=f"p{n}", prompt=[Message(role="user", content=text)]) for n, text in enumerate(TEXTS)]
        encoded = encode_prompts(prompts, chat_format, max_prompt_tokens=96, on_invalid="error", where=lambda line: "prompts")
        start = TrainableModel(ModelFolder(self.base), None, self.base.parent, "ppo")
        has_value = self.config.value_settings is not None
        value = ValueStart(start, is_reward_model=False, zero_head=True) if has_value else None
        config = self.config.model_copy(update={"num_episodes": num_rollouts * self.config.rollout_batch_size})
        settings = ForwardSettings(CPU, self.precision, config.temperature, self.pass_size, chat_format.pad_token_id)
        models = load_models(start, value, settings, seed=0, with_reference=config.needs_reference)
        scorer = RulesScorer(rules=RuleSet.model_validate(RULES))
        sampler = RolloutSampler(
            prompts,
            encoded.rows,
            config,
            scorers=ScorerSet({"short": scorer}, {}, batch_tokens=100),
            score_weights={"short": 1.0},
            chat_format=chat_format,
            seed=11,
            group_size=config.group_size,
        )
        return models, sampler

    def run(self, num_rollouts: int, stop: Callable[[int], int | None] = lambda done: None) -> OnlineResult:
        models, sampler = self.parts(num_rollouts)
        self.models = models
        self.events.clear()

        def stop_requested() -> int | None:
            return stop(max((int(event.done) for event in self.of(Progress)), default=0))

        context = run_context(self.work, seed=11, emit=self.handle, stop_requested=stop_requested)
        engine = self.engine(ModelFolder(self.base), dtype="float32", max_model_tokens=128)
        return OnlineTrainer(models, sampler, engine, context, self.config, self.config).train()

    def weights(self) -> dict[str, torch.Tensor]:
        assert self.models is not None
        return {name: parameter.detach().clone() for name, parameter in parameters(self.models)}


def parameters(models: Models) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Of the models that learn."""
    for which, model in (("policy", models.policy), ("value", models.value)):
        if model is not None:
            yield from ((f"{which}.{name}", parameter) for name, parameter in model.named_parameters())


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_tokens_count_once(result: OnlineResult, training: Training) -> None:
    """Also those of a rollout batch that was sampled again after a stop."""
    metrics, config = result.metrics, training.config
    sampled = sum(row["rollout/completion_tokens"] for row in result.history.rows) * config.rollout_batch_size
    assert metrics["new_tokens"] == pytest.approx(sampled)
    assert metrics["trained_tokens"] == config.ppo_epochs * metrics["tokens"] > metrics["new_tokens"]


def gradients(training: Training) -> dict[str, torch.Tensor]:
    """Gradients of one mini-batch of 16 episodes, not yet applied."""
    models, sampler = training.parts(num_rollouts=1)
    engine = TransformersEngine(ModelFolder(training.base), dtype="float32", max_model_tokens=128)
    rollout = sampler.rollout(sampler.score(sampler.sample(0, engine)))
    # Old log-probabilities that differ, so that ratios, clipping and importance weights all matter.
    config = training.config
    experience, _ = make_experience(rollout, models, config, config, kl_coef=0.05, score_bias=0.1)
    noise = torch.randn(len(experience.logps), generator=torch.Generator().manual_seed(0))
    changes = {"logps": experience.logps + 0.2 * noise, "importance": experience.importance + 0.1 * noise}
    if experience.reference_logps is not None:
        changes["reference_logps"] = experience.reference_logps + 0.5 * noise
    experience = replace(experience, **changes)
    learner = PolicyLearner(Optimizers.of(models, config, num_rollouts=1), models.settings, config, 0)
    learner._accumulate(experience, 0.1, True, models.settings.passes(rollout.episodes, range(16)), kl_coef=0.05)
    return {name: parameter.grad for name, parameter in parameters(models) if parameter.grad is not None}
