"""Proximal Policy Optimization: sample from the policy, score, and make what scored above expectation likelier.

Reward per token: -kl_coef * (log-probability - the reference's), and the score on the last one; advantages by GAE against a
value model that starts as the reward model; clipped updates. Ouyang et al. 2022, appendix C.4; Schulman et al. 2017.
In: a model (policy and frozen reference), prompts, scorers. Out: a model. Metrics per rollout batch: objective/scores,
objective/kl, objective/entropy, policy/clipfrac_avg, policy/approxkl_avg, val/explained_var, rollout/eos_share, ….
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from align.config.base import ExecutionOnly
from align.config.online import OnlineTraining, ValueOptimization
from align.config.peft import LoraOnly
from align.config.reference import ModelReference, RewardModelReference, RowsReference
from align.config.sections import EngineChoice, OnInvalid, PointwiseScorer, RulesScorer
from align.data.encoding import encode_prompts
from align.data.template import ChatFormat
from align.errors import RecipeError
from align.models.folder import context_tokens, refuse_encoder_decoder
from align.records import Prompt
from align.stage import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, METRICS_NAME, MODEL_FOLDER, Artifact, write_rows
from align.training.needs import Sampler, TrainingNeeds, episode_batch
from align.training.online.advantage import Gae

if TYPE_CHECKING:
    from align.models.trainable import TrainableModel
    from align.training.online.models import ValueStart

VERSION = 3


class Config(OnlineTraining, Gae, ValueOptimization, EngineChoice, LoraOnly, StageConfig):
    """PPO on prompts, with scorers that score completions."""

    model: ModelReference
    """Model to start from; a frozen copy of it is the reference."""
    prompts: RowsReference[Prompt]
    """Prompts to sample completions for."""
    scorers: dict[str, PointwiseScorer] = Field(min_length=1)
    """Scorer by name: the name of a reward model stage, or {rules: …}; their weighted sum is optimised."""
    score_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a scorer in the sum. Default: 1."""
    watch: dict[str, PointwiseScorer] = Field(default_factory=dict)
    """Scorers that are logged and never optimised: a second opinion, by which reward hacking is seen."""
    value_model: RewardModelReference | None = None
    """Reward model that the value model starts from. Default: the first reward model in scorers, or the policy."""
    on_invalid: OnInvalid = "error"
    """What to do with a prompt that is too long."""
    score_batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass of a reward model; scores depend on it by rounding only."""
    engine_memory_share: ExecutionOnly[float] = Field(default=0.3, gt=0, lt=1)
    """Part of a GPU's memory that vLLM may take beside the models that learn; no effect on a CPU."""

    @model_validator(mode="after")
    def _names_fit(self) -> Config:
        if unknown := sorted(self.score_weights.keys() - self.scorers.keys()):
            raise ValueError(f"score_weights names {unknown[0]!r}, which is not among the scorers ({', '.join(self.scorers)})")
        if twice := sorted(self.watch.keys() & self.scorers.keys()):
            raise ValueError(f"{twice[0]!r} is both in scorers and in watch; a scorer that is optimised is logged anyway")
        return self

    @classmethod
    def _why_no_virtual_tokens(cls) -> str:
        return "completions share rows, and virtual tokens stand in front of a row; nor can vLLM sample with them"

    def value_source(self) -> RewardModelReference | None:
        """The reward model that the value model starts from; None for the policy."""
        reward_models = [scorer for scorer in self.scorers.values() if not isinstance(scorer, RulesScorer)]
        return self.value_model or next(iter(reward_models), None)

    def training_needs(self) -> TrainingNeeds:
        return TrainingNeeds(
            self.model,
            self.prompts,
            self.precision,
            self.peft,
            partial(episode_batch, self),
            value_model=self.value_source() or self.model,
            # The reference, and the policy from before an update that may be taken back.
            frozen_copies=1 if self.kl_limit is None else 2,
            scorers=tuple(scorer for scorer in (*self.scorers.values(), *self.watch.values()) if isinstance(scorer, str)),
            sampler=Sampler(
                self, self.engine_memory_share, self.max_prompt_tokens + self.max_completion_tokens, self.rollout_batch_size
            ),
        )


def run(context: StageContext[Config]) -> StageOutcome:
    """Encode the prompts, load the models, train, save the policy."""
    import torch

    from align.engines.open import open_engine
    from align.engines.shards import decoder
    from align.engines.task import max_prompt_tokens_for
    from align.models.load import load_tokenizer
    from align.models.trainable import TrainableModel, save_trained
    from align.scoring.scorers import ScorerSet, reward_model_folders
    from align.training.loop import resolve_precision
    from align.training.online.models import ForwardSettings, load_models
    from align.training.online.rollout import RolloutSampler
    from align.training.online.trainer import OnlineTrainer

    config = context.config
    source, data = context.artifact(config.model), context.artifact(config.prompts)
    refuse_encoder_decoder("ppo", source)
    tokenizer = load_tokenizer(source.model_path)
    chat_format = ChatFormat(tokenizer, where=source.where(None))
    room = max_prompt_tokens_for(source.model_path, config)
    records = data.rows(Prompt)
    encoded = encode_prompts(records, chat_format, max_prompt_tokens=room, on_invalid=config.on_invalid, where=data.where)
    value = None if (name := config.value_source()) is None else context.artifact(name)
    if value is not None:
        _check_value_model(value, source, room + config.max_completion_tokens)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = TrainableModel(source.model_path, config.peft, context.store_root, context.name)
    models = load_models(
        start,
        _value_start(value, start, config),
        device=device,
        pad_token_id=chat_format.pad_token_id,
        seed=context.seed,
    )
    scorers = {**config.scorers, **config.watch}
    by_id = {record.id: record for record in records}
    sampler = RolloutSampler(
        [by_id[row.id] for row in encoded.rows],
        encoded.rows,
        config,
        scorers=ScorerSet(scorers, reward_model_folders(scorers, context.artifacts), batch_tokens=config.score_batch_tokens),
        score_weights={name: config.score_weights.get(name, 1.0) for name in config.scorers},
        stop_token_id=chat_format.eos_token_id,
        decode=decoder(source.model_path),
        seed=context.seed,
        group_size=config.group_size,
    )
    settings = ForwardSettings(
        device, resolve_precision(config.precision), config.temperature, config.micro_batch_tokens, chat_format.pad_token_id
    )
    engine = open_engine(
        config.engine,
        source.model_path,
        dtype=config.dtype,
        max_model_tokens=room + config.max_completion_tokens,
        memory_share=config.engine_memory_share,
    )
    trainer = OnlineTrainer(
        models,
        sampler,
        engine,
        context,
        config,
        settings,
        config,
        value_config=config,
        num_rollouts=-(-(config.num_episodes or len(encoded.rows)) // config.rollout_batch_size),
        engine_weights_differ=start.is_quantized,
    )
    result = trainer.train()
    save_trained(models.policy, tokenizer, context.output / MODEL_FOLDER, start)
    write_rows(context.output / DROPS_NAME, encoded.drops)
    result.history.write(context.output / METRICS_NAME)
    return StageOutcome(
        metrics=result.metrics,
        rows_in=len(records),
        rows_out=len(encoded.rows),
        dropped=encoded.dropped(),
        versions={engine.name: engine.version},
    )


def _value_start(value: Artifact | None, policy: TrainableModel, config: Config) -> ValueStart:
    """The value model learns as the policy does; a reward model that is an adapter is trained further with its own settings."""
    from align.models.adapter import read_adapter
    from align.models.folder import is_adapter
    from align.training.online.models import ValueStart

    if value is None:
        return ValueStart(policy, is_reward_model=False, zero_head=True)
    peft = policy.peft
    if peft is not None and is_adapter(value.model_path):
        peft = read_adapter(value.model_path).peft
    start = replace(policy, folder=value.model_path, peft=peft, name=value.name)
    return ValueStart(start, is_reward_model=True, zero_head=config.value_head == "zero")


def _check_value_model(value: Artifact, policy: Artifact, tokens: int) -> None:
    """The value model reads the policy's tokens, so it must have the same ones, and room for all of them.

    Raises:
        RecipeError: if it does not.
    """
    from align.models.load import differing_tokens

    if differing := differing_tokens(value.model_path, policy.model_path):
        raise RecipeError(
            f"{value.name}: the value model starts from this reward model, but its tokenizer is not that of {policy.name} "
            f"({len(differing):,} tokens differ: {', '.join(map(repr, differing[:3]))}, …)",
            hint="Set value_model to a reward model made from the same base; one with another tokenizer can still be a scorer.",
        )
    if (context := context_tokens(value.model_path)) < tokens:
        raise RecipeError(
            f"{value.name}: the value model sees {context} tokens, prompt and completion may have {tokens}",
            hint="Lower max_prompt_tokens or max_completion_tokens.",
        )
