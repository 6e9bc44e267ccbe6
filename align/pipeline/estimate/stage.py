"""Memory and disk of a training stage with one method: what is in its process, phase by phase, and what it writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from align.config.peft import Lora, VirtualTokens
from align.config.sections import PairwiseOptimization
from align.engines.open import resolve_engine
from align.engines.vllm_engine import CPU_KV_CACHE_GIB
from align.errors import EnvironmentProblem
from align.pipeline.estimate.batch import episode_batch, pair_batch, sft_batch
from align.pipeline.estimate.lengths import SAMPLED_ROWS, RowLength
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.memory import (
    FLOAT32_BYTES,
    MIB,
    MOMENTS_BYTES,
    PROCESS_BYTES,
    Arithmetic,
    Batch,
    Memory,
    backward_bytes,
    inference_bytes,
    peak_memory,
    step_bytes,
    trainable_parameters,
    weight_bytes,
)
from align.pipeline.estimate.shape import ModelShape
from align.stages import dpo, orpo, ppo, reward_model, sft
from align.training.checkpoint import KEEP

TrainingConfig = sft.Config | reward_model.Config | dpo.Config | orpo.Config | ppo.Config
Peft = Lora | VirtualTokens | None

FORWARD_TOKENS = 8192
"""Of a pass without gradients: the reference's over pairs, the reward model's over held-out ones
(`REFERENCE_BATCH_TOKENS` and `EVALUATION_BATCH_TOKENS` of the trainers)."""
VLLM_BYTES = 450 * MIB
"""What importing vLLM and starting an engine adds to a worker on a CPU, beside weights and cache: a ppo stage with vLLM took
1.52 GB more than with transformers."""
TRANSFORMERS_ENGINE_ROWS = 64
"""Completions that the transformers engine samples at once (`align.engines.transformers_engine.ROWS_PER_BATCH`)."""
CHECKPOINTS = KEEP + 1
"""One more than are kept: the oldest goes once the newest is whole."""


def method_name(peft: Peft) -> str:
    return "full" if peft is None else peft.method


@dataclass(frozen=True)
class Sources:
    """The models that a stage reads."""

    model: ModelShape
    """That training starts from."""
    reference: ModelShape | None = None
    """Of dpo, where it is another model."""
    reward_models: tuple[ModelShape, ...] = ()
    """Scorers of ppo."""
    value_model: ModelShape | None = None
    """That ppo's value model starts from, where it is not the policy."""


@dataclass(frozen=True)
class Estimate:
    """What one stage needs with one method."""

    method: str
    """full, lora, qlora, prefix_tuning or prompt_tuning."""
    trainable_parameters: int
    memory: Memory
    disk_bytes: int
    """At its fullest: checkpoints, epochs and the result."""
    kept_bytes: int
    """What stays when the stage is done."""


def estimate_stage(
    config: TrainingConfig, peft: Peft, sources: Sources, lengths: Sequence[RowLength] | None, machine: Machine
) -> Estimate:
    """The estimate of a stage as configured, but with `peft` as its method.

    Args:
        peft: None for full fine-tuning.
        lengths: of the rows it trains on; None where they are not known, so that its limits count.
    """
    arithmetic = Arithmetic(machine.device, machine.precision(config.precision))
    if isinstance(config, ppo.Config):
        memory = _ppo_memory(config, peft, sources, lengths, machine, arithmetic)
    else:
        memory = _supervised_memory(config, peft, sources, lengths, arithmetic)
    shape, is_scorer = sources.model, isinstance(config, reward_model.Config)
    trainable = trainable_parameters(shape, peft, has_score_head=is_scorer)
    kept, full = _disk(config, trainable, _value_parameters(sources, peft) if isinstance(config, ppo.Config) else 0)
    return Estimate(method_name(peft), trainable, memory, full, kept)


def _supervised_memory(
    config: sft.Config | reward_model.Config | dpo.Config | orpo.Config,
    peft: Peft,
    sources: Sources,
    lengths: Sequence[RowLength] | None,
    arithmetic: Arithmetic,
) -> Memory:
    shape, is_scorer = sources.model, isinstance(config, reward_model.Config)
    if isinstance(config, sft.Config):
        batch = sft_batch(config, peft, lengths, context=shape.context)
    else:
        assert isinstance(config, PairwiseOptimization)
        batch = pair_batch(config, peft, lengths, context=shape.context, device=arithmetic.device, has_logits=not is_scorer)
    trainable = trainable_parameters(shape, peft, has_score_head=is_scorer)
    weights, optimizer = weight_bytes(shape, peft, has_score_head=is_scorer), MOMENTS_BYTES * trainable
    phases, tokens = [], _forward_tokens(lengths)
    if isinstance(config, dpo.Config):
        phases.append(weights + inference_bytes(shape, tokens=tokens, targets=tokens))
        if (other := sources.reference) is not None:
            phases.append(weight_bytes(other, None) + inference_bytes(other, tokens=tokens, targets=tokens))
    if is_scorer:  # the held-out pairs are scored by the saved model while the trained one is still there
        scorer = weight_bytes(shape, None, has_score_head=True)
        phases.append(weights + optimizer + scorer + inference_bytes(shape, tokens=tokens, targets=0))
    return peak_memory(
        weights=weights,
        gradients=FLOAT32_BYTES * trainable,
        optimizer=optimizer,
        backward=backward_bytes(shape, peft, batch, arithmetic),
        step=step_bytes(shape, trainable, device=arithmetic.device, is_full=peft is None),
        others=0,
        process=PROCESS_BYTES[arithmetic.device],
        accumulates=batch.accumulates,
        other_phases=phases,
    )


def _forward_tokens(lengths: Sequence[RowLength] | None) -> int:
    """Of the largest pass without gradients over pairs, whose sides are there with a prompt each."""
    if lengths is None or len(lengths) >= SAMPLED_ROWS:
        return FORWARD_TOKENS
    return min(FORWARD_TOKENS, sum(2 * row.longer_side for row in lengths))


def _ppo_memory(
    config: ppo.Config,
    peft: Peft,
    sources: Sources,
    lengths: Sequence[RowLength] | None,
    machine: Machine,
    arithmetic: Arithmetic,
) -> Memory:
    """Policy, value model, reference (full fine-tuning only: an adapter is switched off), reward models and engine at once."""
    policy, value = sources.model, sources.value_model or sources.model
    batch = episode_batch(config, lengths, context=policy.context, device=arithmetic.device)
    trainable = trainable_parameters(policy, peft) + _value_parameters(sources, peft)
    gradients = FLOAT32_BYTES * trainable
    others = (
        (weight_bytes(policy, None) if peft is None else 0)
        + sum(weight_bytes(scorer, None, has_score_head=True) for scorer in sources.reward_models)
        + _engine_bytes(config, policy, machine)
        + (weight_bytes(policy, None) if config.kl_limit is not None and peft is None else 0)  # the policy before its update
    )
    # Both graphs are there before the value model's backward pass.
    value_batch = Batch(batch.tokens, batch.row_tokens, 0, batch.is_masked, batch.accumulates)
    backward = backward_bytes(policy, peft, batch, arithmetic) + backward_bytes(value, peft, value_batch, arithmetic)
    fused_step = 0  # its optimizers are fused
    return peak_memory(
        weights=weight_bytes(policy, peft) + weight_bytes(value, peft, has_score_head=True),
        gradients=gradients,
        optimizer=MOMENTS_BYTES * trainable,
        backward=backward,
        step=fused_step,
        others=others,
        process=PROCESS_BYTES[arithmetic.device],
        accumulates=batch.accumulates,
    )


def _value_parameters(sources: Sources, peft: Peft) -> int:
    return trainable_parameters(sources.value_model or sources.model, peft, has_score_head=True)


def _engine_bytes(config: ppo.Config, policy: ModelShape, machine: Machine) -> int:
    """The sampling engine: a copy of the policy and a cache of keys and values."""
    try:
        engine = resolve_engine(config.engine)
    except EnvironmentProblem:
        engine = config.engine
    in_bfloat16 = config.dtype == "bfloat16" or (config.dtype == "auto" and machine.device == "cuda")
    number = 2 if in_bfloat16 else FLOAT32_BYTES
    if engine == "vllm" and machine.device == "cuda":
        return round(config.engine_memory_share * machine.total_bytes)
    if engine == "vllm":
        cache_gib = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB))
        return number * policy.parameters + round(cache_gib * (1 << 30)) + VLLM_BYTES
    tokens = min(config.max_prompt_tokens + config.max_completion_tokens, policy.context)
    rows = min(TRANSFORMERS_ENGINE_ROWS, config.rollout_batch_size)
    return number * (policy.parameters + rows * tokens * 2 * policy.num_layers * policy.key_size)


def _disk(config: TrainingConfig, trainable: int, value_parameters: int) -> tuple[int, int]:
    """Bytes that stay, and at the fullest. A checkpoint has what is trained and its two moments; an artifact what is trained,
    which is the whole model in full fine-tuning."""
    model = FLOAT32_BYTES * trainable
    epochs = config.num_epochs * model if isinstance(config, sft.Config) else 0
    checkpoint = (FLOAT32_BYTES + MOMENTS_BYTES) * (trainable + value_parameters)
    kept = model + epochs
    # Epochs are copied out of the work folder, which goes after the commit.
    return kept, kept + epochs + CHECKPOINTS * checkpoint
