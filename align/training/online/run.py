"""The path of every online method: encode the prompts, load the models, train, save the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from align.data.encoding import encode_prompts
from align.engines.holder import EngineHolder
from align.engines.open import open_beside_ranks, open_separate
from align.engines.task import max_prompt_tokens_for
from align.models.chat_format import load_format
from align.models.folder import ModelFolder, refuse_encoder_decoder
from align.models.load import check_vocabulary
from align.models.trainable import TrainableModel, save_trained
from align.records import Prompt
from align.runtime.bitsandbytes_check import require_for_optimizer
from align.runtime.device import device_name
from align.scoring.scorers import ScorerSet, reward_model_folders
from align.stage import StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, METRICS_NAME, MODEL_FOLDER, write_rows
from align.training.loop import resolve_precision
from align.training.online.advantage import Advantage
from align.training.online.config import DistillConfig, OnlineConfig, ScoredConfig
from align.training.online.models import ForwardSettings, load_models
from align.training.online.rollout import RolloutSampler
from align.training.online.trainer import OnlineTrainer
from align.training.online.value import ValueModel
from align.training.pass_size import PassSize
from align.training.sharding import whole


def run_online(
    context: StageContext[ScoredConfig], advantage: Advantage, *, value_model: ValueModel | None = None
) -> StageOutcome:
    """A whole stage: train `context.config.model` by the scores of its own completions.

    Raises:
        As `_run`, and StageError if a rollout batch got no finite score at all.
    """
    config = context.config
    weights = {name: config.score_weights.get(name, 1.0) for name in config.scorers}
    return _run(context, advantage, value_model=value_model, score_weights=weights)


def run_distillation(context: StageContext[DistillConfig]) -> StageOutcome:
    """A whole stage: train `context.config.model` by the probabilities that its teacher gives to its own completions.

    Raises:
        As `_run`, and RecipeError if the teacher has other tokens.
    """
    teacher = context.artifact(context.config.teacher)
    folder, student = ModelFolder.of(teacher), context.artifact(context.config.model)
    refuse_encoder_decoder(context.config.method, teacher, folder)
    check_vocabulary(student, ModelFolder.of(student), teacher, folder, role="teacher")
    return _run(context, None, teacher=folder)


def _run(
    context: StageContext[Any],
    advantage: Advantage | None,
    *,
    value_model: ValueModel | None = None,
    teacher: ModelFolder | None = None,
    score_weights: Mapping[str, float] | None = None,
) -> StageOutcome:
    """Train on completions of the model.

    Raises:
        DataError: if a prompt is too long and on_invalid is error. RecipeError: if a model cannot be used.
        StageError: if a gradient is not finite.
        Interrupted: if a stop was requested.
    """
    config: OnlineConfig = context.config
    source, data = context.artifact(config.model), context.artifact(config.prompts)
    folder = ModelFolder.of(source)
    refuse_encoder_decoder(config.method, source, folder)
    chat_format = load_format(folder, where=source.where(None))
    prompt_limit = min(max_prompt_tokens_for(reader, config) for reader in (folder, teacher) if reader is not None)
    max_tokens = prompt_limit + config.max_completion_tokens
    records = data.rows(Prompt)
    encoded = encode_prompts(records, chat_format, max_prompt_tokens=prompt_limit, on_invalid=config.on_invalid, where=data.where)
    start = TrainableModel(folder, config.peft, context.store_root, context.name, config.save_dtype)
    if value_model is not None:
        value_model.check(source, folder, max_tokens)
    settings = ForwardSettings(
        torch.device(device_name()),
        resolve_precision(config.precision),
        config.temperature,
        PassSize(config.micro_batch_tokens, "tokens"),
        chat_format.pad_token_id,
        rank=context.rank,
        spread=context.spread,
    )
    require_for_optimizer(config.optimizer, context.name)
    value_start = None if value_model is None else value_model.start(start)
    rewards, scorers = config.reward_settings, config.all_scorers
    models = load_models(
        start,
        value_start,
        settings,
        seed=context.seed,
        with_reference=rewards is not None and rewards.needs_reference,
        teacher=teacher,
    )
    # Dropped prompts leave gaps, so rows are matched by id.
    by_id = {record.id: record for record in records}
    sampler = RolloutSampler(
        [by_id[row.id] for row in encoded.rows],
        encoded.rows,
        config,
        scorers=ScorerSet(scorers, reward_model_folders(scorers, context.artifacts), batch_tokens=config.score_batch_tokens),
        score_weights=score_weights or {},
        chat_format=chat_format,
        seed=context.seed,
        group_size=1 if advantage is None else advantage.group_size,
    )
    # One process scores for all.
    engine = None
    if context.rank < context.spread.samplers:
        options = {"dtype": config.dtype, "max_model_tokens": max_tokens}
        if context.spread.engines is not None:
            engine = open_separate(config.engine, folder, context.spread.engines, **options)
        elif context.spread.is_shared:
            engine = open_beside_ranks(config.engine, folder, memory_share=config.engine_memory_share, **options)
        else:
            holder = EngineHolder(config, memory_share=config.engine_memory_share, host=context.engine_host)
            engine = holder.engine_for(folder, max_tokens)
    result = OnlineTrainer(models, sampler, engine, context, config, advantage).train()
    with context.saving(), whole(models.policy, keep=context.is_first):
        if context.is_first:
            save_trained(models.policy, chat_format, context.output / MODEL_FOLDER, start)
    if context.is_first:
        write_rows(context.output / DROPS_NAME, encoded.drops)
        result.history.write(context.output / METRICS_NAME)
    return StageOutcome(
        metrics=result.metrics,
        rows_in=len(records),
        rows_out=len(encoded.rows),
        dropped=encoded.dropped(),
        versions={} if engine is None else {engine.name: engine.version},
    )
