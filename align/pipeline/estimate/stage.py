"""Memory and disk of a training stage with one method: what its process holds in each phase, and what it writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from align.config.peft import Lora, VirtualTokens
from align.engines.open import resolve_engine
from align.engines.vllm_engine import CPU_KV_CACHE_GIB
from align.errors import EnvironmentProblem
from align.models.sizes import ENGINE_ROWS, FORWARD_TOKENS
from align.pipeline.estimate.lengths import SAMPLED_ROWS
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.memory import (
    FLOAT32_BYTES,
    MIB,
    MOMENTS_BYTES,
    PROCESS_BYTES,
    Memory,
    backward_bytes,
    inference_bytes,
    peak_memory,
    step_bytes,
    trainable_parameters,
    weight_bytes,
)
from align.pipeline.estimate.shape import ModelShape
from align.training.checkpoint import KEEP
from align.training.needs import RowLength, Sampler, Setting, TrainingNeeds, training_precision

Peft = Lora | VirtualTokens | None

VLLM_BYTES = 450 * MIB
"""Memory that vLLM and its engine add to a worker on a CPU, without weights and cache: a ppo stage with vLLM took 1.52 GB more
than with transformers."""
CHECKPOINTS = KEEP + 1
"""One more than are kept: the oldest is removed after the newest is complete."""


def method_name(peft: Peft) -> str:
    return "full" if peft is None else peft.method


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
    """What stays after the stage is done."""


def estimate_stage(
    needs: TrainingNeeds,
    peft: Peft,
    shapes: Mapping[str, ModelShape],
    lengths: Sequence[RowLength] | None,
    machine: Machine,
) -> Estimate:
    """The estimate of a stage as configured, but with `peft` as its method.

    Args:
        peft: None for full fine-tuning.
        shapes: of every model that `needs` names.
        lengths: of the rows it trains on; None where they are not known, and the stage's limits take their place.
    """
    device, precision = machine.device, training_precision(needs.precision, gpu_has_bfloat16=machine.has_bfloat16)
    shape, is_scorer = shapes[needs.model], needs.has_score_head
    virtual_tokens = peft.num_virtual_tokens if isinstance(peft, VirtualTokens) else 0
    batch = needs.batch(Setting(lengths, shape.context, virtual_tokens, device))
    model_parameters = trainable_parameters(shape, peft, has_score_head=is_scorer)
    weights = weight_bytes(shape, peft, has_score_head=is_scorer)
    backward = backward_bytes(shape, peft, batch, device, precision)
    step = step_bytes(shape, model_parameters, device=device, is_full=peft is None)
    learning = model_parameters
    if needs.value_model is not None:
        value = shapes[needs.value_model]
        learning += trainable_parameters(value, peft, has_score_head=True)
        weights += weight_bytes(value, peft, has_score_head=True)
        # Both graphs exist before the value model's backward pass. The optimizers are fused, so their step needs nothing more.
        backward += backward_bytes(value, peft, replace(batch, targets=0), device, precision)
        step = 0
    optimizer = MOMENTS_BYTES * learning
    phases = []
    tokens = FORWARD_TOKENS
    if lengths is not None and len(lengths) < SAMPLED_ROWS:  # then all rows are known; each side of a pair has the prompt
        tokens = min(tokens, sum(2 * row.longer_side for row in lengths))
    if needs.reference is not None:
        phases.append(weights + inference_bytes(shape, tokens=tokens, targets=tokens))
        # A reference of its own is loaded and dropped before the model to train is loaded.
        if needs.reference != needs.model:
            other = shapes[needs.reference]
            phases.append(weight_bytes(other, None) + inference_bytes(other, tokens=tokens, targets=tokens))
    if is_scorer:  # the held-out pairs are scored by the saved model while the trained one is still there
        scorer = weight_bytes(shape, None, has_score_head=True)
        phases.append(weights + optimizer + scorer + inference_bytes(shape, tokens=tokens, targets=0))
    memory = peak_memory(
        weights=weights,
        gradients=FLOAT32_BYTES * learning,
        optimizer=optimizer,
        backward=backward,
        step=step,
        others=sum(weight_bytes(shapes[name], None, has_score_head=True) for name in needs.scorers)
        + (needs.frozen_copies * weight_bytes(shape, None) if peft is None else 0)
        + (0 if needs.sampler is None else _sampler_bytes(needs.sampler, shape, machine)),
        process=PROCESS_BYTES[device],
        accumulates=batch.accumulates,
        other_phases=phases,
    )
    # A checkpoint holds the trained parameters and their two moments, an artifact the trained parameters. Epochs exist twice
    # until the work folder is removed after the commit.
    kept = (1 + needs.num_epochs_kept) * FLOAT32_BYTES * model_parameters
    checkpoints = CHECKPOINTS * (FLOAT32_BYTES + MOMENTS_BYTES) * learning
    full = kept + needs.num_epochs_kept * FLOAT32_BYTES * model_parameters + checkpoints
    return Estimate(method_name(peft), model_parameters, memory, full, kept)


def _sampler_bytes(sampler: Sampler, policy: ModelShape, machine: Machine) -> int:
    """The sampling engine: a copy of the policy and a cache of keys and values."""
    choice, on_gpu = sampler.choice, machine.device == "cuda"
    try:
        engine = resolve_engine(choice.engine)
    except EnvironmentProblem:
        engine = choice.engine
    number = 2 if choice.dtype == "bfloat16" or (choice.dtype == "auto" and on_gpu) else FLOAT32_BYTES
    # vLLM fills its share with cache, whatever the model's size.
    if engine == "vllm" and on_gpu:
        return round(sampler.memory_share * machine.total_bytes)
    if engine == "vllm":
        cache_gib = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB))
        return number * policy.parameters + round(cache_gib * (1 << 30)) + VLLM_BYTES
    tokens, rows = min(sampler.tokens, policy.context), min(ENGINE_ROWS, sampler.rows)
    return number * (policy.parameters + rows * tokens * 2 * policy.num_layers * policy.key_size)
