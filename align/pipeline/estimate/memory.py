"""The sizes of a training step in bytes: models, gradients, optimizer, activations, logits, the sampling engine, and its disk.

Every tensor that torch keeps is counted, in the order of the computation; `torch.autograd.graph.saved_tensors_hooks` showed what
a layer keeps for the backward pass. Measured constants, each with its source, are at the top. `scripts/benchmarks/memory.py`
compares the result with real runs; docs/memory.md has its table.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from align.config.peft import VirtualTokens
from align.config.sections import OptimizerName
from align.engines.open import resolve_engine
from align.engines.vllm_engine import CPU_KV_CACHE_GIB
from align.errors import EnvironmentProblem
from align.models.shape import ModelShape
from align.models.sizes import ENGINE_ROWS, FORWARD_TOKENS, GRADIENTS_AT_ONCE, ZERO3_NUMBERS_AT_ONCE
from align.pipeline.estimate.loaded_model import NUMBER_BYTES, WEIGHT_BYTES, LoadedModel, Peft
from align.pipeline.estimate.machine import Machine
from align.runtime.context import PLAIN, MemoryChoice
from align.runtime.device import Device
from align.runtime.spread import ALONE, Spread
from align.training.checkpoint import KEEP
from align.training.needs import SAMPLED_ROWS, Batch, Precision, RowLength, Sampler, Setting, TrainingNeeds, training_precision

MIB = 1 << 20
PROCESS_BYTES: dict[Device, int] = {
    # Resident set of a worker that trains a model of a few thousand parameters: Python, torch, transformers, TRL, PEFT.
    "cpu": 465 * MIB,
    # A CUDA context and cuBLAS's workspaces; not measured here, usually 0.4 to 0.7 GiB.
    "cuda": 600 * MIB,
}
VLLM_BYTES = 450 * MIB
"""Memory that vLLM and its engine add to a worker on a CPU, without weights and cache: a ppo stage with vLLM took 1.52 GB more
than with transformers."""
MOMENTS_BYTES: dict[OptimizerName, float] = {
    # Two moments for every parameter that learns: float32, or 8 bits and a float32 scale for 256 of them.
    "adamw": 8,
    "adamw_8bit": 2 + 8 / 256,
    "paged_adamw_8bit": 2 + 8 / 256,
    # A number for each row and column of a matrix.
    "adafactor": 0,
}
CHECKPOINTS = KEEP + 1
"""One more than are kept: the oldest is removed after the newest is complete."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of a training and its parts, in bytes."""

    weights: int
    """Of the models that learn."""
    gradients: int
    optimizer: int
    activations: int
    """Of the forward and backward pass, logits included; 0 counts towards the peak where the optimizer's step is larger."""
    other_models: int
    """Reference, teacher, reward models, and the sampling engine unless it sleeps while models learn."""
    process: int
    peak: int
    exchange: int = 0
    """What processes that share a training need to exchange gradients or weights."""


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
    choice: MemoryChoice = PLAIN
    """What the stage does to fit, where the recipe leaves that to the machine."""
    spread: Spread = ALONE
    """The processes that share it; memory is that of each of them."""


def method_name(peft: Peft) -> str:
    """How tables call a way of training: its `method`, or full."""
    return "full" if peft is None else peft.method


def estimate_stage(
    needs: TrainingNeeds,
    peft: Peft,
    shapes: Mapping[str, ModelShape],
    lengths: Sequence[RowLength] | None,
    machine: Machine,
    spread: Spread = ALONE,
) -> Estimate:
    """The estimate of a stage as configured, but with `peft` as its method.

    Args:
        peft: None for full fine-tuning.
        shapes: of every model that `needs` names.
        lengths: of the rows it trains on; None where they are not known, and the stage's limits take their place.
        spread: the processes that share it; `needs` is then what one of them does.
    """
    device, precision = machine.device, training_precision(needs.precision, gpu_has_bfloat16=machine.has_bfloat16)
    virtual_tokens = peft.num_virtual_tokens if isinstance(peft, VirtualTokens) else 0
    has_flash = device == "cuda" and machine.has_bfloat16 and precision == "bfloat16"
    passes = needs.passes(Setting(lengths, shapes[needs.model].context, virtual_tokens, device, has_flash))
    # As `runtime.device.frozen_dtype` decides: scorers serve no training's precision.
    frozen_scorer: Precision = "bfloat16" if machine.has_bfloat16 else "float32"
    frozen: Precision = "float32" if precision == "float32" else frozen_scorer
    moments, recomputes = MOMENTS_BYTES[needs.memory.optimizer], needs.memory.gradient_checkpointing is True
    is_divided = spread.strategy == "fsdp2"
    model = LoadedModel(
        shapes[needs.model], peft, needs.has_score_head, frozen=frozen, recomputes=recomputes, is_divided=is_divided
    )
    value = [replace(model, shape=shapes[name], has_score_head=True) for name in (needs.value_model,) if name is not None]
    learners = [model, *value]
    scorers = [LoadedModel(shapes[name], None, True, learns=False, frozen=frozen_scorer) for name in needs.scorers]
    passed = [LoadedModel(shapes[each.model], learns=False, frozen=frozen) for each in (needs.teacher,) if each is not None]
    kept_copies: list[LoadedModel] = []
    if peft is None and needs.frozen_copies:  # an adapter is switched off instead
        # The reference, and what an update may go back to, which is as exact as what learns.
        reference, before = (LoadedModel(shapes[needs.model], learns=learns, frozen=frozen) for learns in (False, True))
        passed, kept_copies = [*passed, reference], [before] * (needs.frozen_copies - 1)
    learning = sum(learner.trainable_parameters for learner in learners)
    # An engine on GPUs of its own takes nothing from those that train.
    is_elsewhere = spread.engines is not None and device == "cuda"
    sampler, sleeps = _sampler_bytes(None if is_elsewhere else needs.sampler, model.shape, machine)
    divided = spread.processes if spread.divides_model else 1
    parts = {
        "weights": sum(learner.weight_bytes for learner in learners) // divided,
        "gradients": WEIGHT_BYTES * learning // divided,
        "optimizer": round(moments * learning) // divided,
        # One process samples and scores for all of an online training.
        "other_models": sum(scorer.weight_bytes for scorer in scorers)
        + sum(other.weight_bytes for other in (*passed, *kept_copies)) // divided
        + (0 if sleeps else sampler),
        "process": PROCESS_BYTES[device],
    }
    exchange = _exchange_bytes(learners, passed, spread, in_buckets=needs.sampler is not None)
    # The optimizers of a training with a value model are fused: their step needs nothing more.
    step = 0 if value else model.step_bytes(device, needs.memory.optimizer) // divided
    if spread.strategy == "zero3":  # it copies the gradients of so many parameters to update them
        step += WEIGHT_BYTES * min(ZERO3_NUMBERS_AT_ONCE, learning // divided)
    beside = _phases_beside_training(needs, parts["weights"], shapes, lengths, frozen, device)
    between_updates = sum(parts[name] for name in ("weights", "optimizer", "other_models"))
    sampling = sampler + between_updates if sleeps else 0
    # A checkpoint of an online method puts a model's parameters, then its moments together, in the computer's memory.
    together = max(WEIGHT_BYTES, moments) * max(learner.trainable_parameters for learner in learners)
    saving = between_updates + round(together) if divided > 1 and device == "cpu" and needs.sampler is not None else 0

    def with_pass(batch: Batch) -> Memory:
        # All graphs exist before the first backward pass.
        activations = sum(learner.backward_bytes(batch, device, precision, needs.teacher) for learner in learners)
        peak = peak_bytes(
            **parts | {"other_models": parts["other_models"] + exchange},
            activations=activations,
            step=step,
            accumulates=batch.accumulates,
            has_moments=batch.has_moments,
            other_phases=[*beside, sampling, saving],
        )
        return Memory(**parts, activations=activations, peak=peak, exchange=exchange)

    memory = max((with_pass(batch) for batch in passes), key=lambda memory: memory.peak)
    # A checkpoint holds the trained parameters and their two moments, an artifact the trained parameters. The last epoch is the
    # result. An adapter is float32 always.
    stored = model.shape.stored_dtype if needs.save_dtype == "auto" else needs.save_dtype
    number = NUMBER_BYTES["bfloat16" if peft is None and stored == "bfloat16" else "float32"]
    kept = max(1, needs.num_epochs_kept) * number * model.trainable_parameters
    full = kept + round(CHECKPOINTS * (WEIGHT_BYTES + moments) * learning)
    return Estimate(method_name(peft), model.trainable_parameters, memory, full, kept, spread=spread)


def _exchange_bytes(learners: Sequence[LoadedModel], passed: Sequence[LoadedModel], spread: Spread, *, in_buckets: bool) -> int:
    """What the processes that share a training need to exchange gradients or weights.

    Args:
        passed: models without gradients that passes go through, too.
        in_buckets: whether a part of the gradients at a time is summed, after all passes.
    """
    if spread.divides_model:
        return sum(model.exchange_bytes(spread) for model in (*learners, *passed))
    at_once = sum(learner.exchange_bytes(spread) for learner in learners)
    return min(at_once, WEIGHT_BYTES * GRADIENTS_AT_ONCE) if in_buckets else at_once


def peak_bytes(
    *, weights: int, gradients: int, optimizer: int, activations: int, other_models: int, process: int, step: int,
    accumulates: bool, has_moments: bool = True, other_phases: Iterable[int] = (),
) -> int:  # fmt: skip
    """The largest of: a backward pass, an optimizer step, and phases beside training.

    Args:
        step: see `LoadedModel.step_bytes`.
        accumulates, has_moments: see `Batch`.
        other_phases: bytes at phases without this training's gradients, `process` not included.
    """
    during_training = weights + optimizer + other_models
    # Gradients are there during the whole backward pass only if an earlier pass left them; else they replace freed activations.
    backward = during_training + activations + (gradients if accumulates else 0) - (0 if has_moments else optimizer)
    return process + max(backward, during_training + gradients + step, *other_phases)


def _phases_beside_training(
    needs: TrainingNeeds,
    weights: int,
    shapes: Mapping[str, ModelShape],
    lengths: Sequence[RowLength] | None,
    frozen: Precision,
    device: Device,
) -> Iterator[int]:
    """Bytes while a model goes through pairs without gradients, `process` not included."""
    tokens = FORWARD_TOKENS
    if lengths is not None and len(lengths) < SAMPLED_ROWS:  # then all rows are known; each side of a pair has the prompt
        tokens = min(tokens, sum(2 * row.longer_side for row in lengths))
    if needs.reference is not None:
        yield weights + LoadedModel(shapes[needs.model]).forward_bytes(tokens, device)
        # A reference of its own is loaded and dropped before the model to train is loaded.
        other = LoadedModel(shapes[needs.reference], learns=False, frozen=frozen)
        yield other.weight_bytes + other.forward_bytes(tokens, device) if needs.reference != needs.model else 0
    if needs.has_score_head:  # the held-out pairs are scored by the saved model, when the trained one is gone
        scorer = LoadedModel(shapes[needs.model], has_score_head=True, learns=False, frozen=frozen)
        yield scorer.weight_bytes + scorer.forward_bytes(tokens, device)


def _sampler_bytes(sampler: Sampler | None, policy: ModelShape, machine: Machine) -> tuple[int, bool]:
    """The sampling engine, a copy of the policy and a cache of keys and values; and whether it sleeps while models learn."""
    if sampler is None:
        return 0, False
    choice, on_gpu = sampler.choice, machine.device == "cuda"
    is_half = choice.dtype == "bfloat16" or (choice.dtype == "auto" and machine.has_bfloat16)
    try:
        engine = resolve_engine(choice.engine)
    except EnvironmentProblem:
        engine = choice.engine
    number = NUMBER_BYTES["bfloat16" if is_half else "float32"]
    # vLLM fills its share with cache, whatever the model's size.
    if engine == "vllm" and on_gpu:
        return round(sampler.memory_share * machine.total_bytes), not sampler.samples_ahead
    if engine == "vllm":
        cache_gib = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB))
        return number * policy.parameters + round(cache_gib * (1 << 30)) + VLLM_BYTES, False
    tokens, rows = min(sampler.tokens, policy.context), min(ENGINE_ROWS, sampler.rows)
    return number * (policy.parameters + rows * tokens * 2 * policy.num_layers * policy.key_size), False
