"""The sizes of a training step in bytes: models, gradients, optimizer, activations, logits, the sampling engine, and its disk.

Every tensor that torch keeps is counted, in the order of the computation; `torch.autograd.graph.saved_tensors_hooks` showed what
a layer keeps for the backward pass. Measured constants, each with its source, are at the top. `scripts/benchmarks/memory.py`
compares the result with real runs; docs/memory.md has its table.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from align.config.peft import Lora, VirtualTokens
from align.config.sections import OptimizerName
from align.engines.open import resolve_engine
from align.engines.vllm_engine import CPU_KV_CACHE_GIB
from align.errors import EnvironmentProblem
from align.models.shape import PYTHON_GELUS, LinearLayer, ModelShape
from align.models.sizes import ENGINE_ROWS, FORWARD_TOKENS, logits_chunk_tokens, teacher_chunk_tokens
from align.pipeline.estimate.machine import Machine
from align.runtime.context import PLAIN, MemoryChoice
from align.runtime.device import Device
from align.training.checkpoint import KEEP
from align.training.needs import SAMPLED_ROWS, Batch, Precision, RowLength, Sampler, Setting, TrainingNeeds, training_precision

Peft = Lora | VirtualTokens | None

MIB = 1 << 20
PROCESS_BYTES: dict[Device, int] = {
    # Resident set of a worker that trains a model of a few thousand parameters: Python, torch, transformers, TRL, PEFT.
    "cpu": 465 * MIB,
    # A CUDA context and cuBLAS's workspaces; not measured here, usually 0.4 to 0.7 GiB.
    "cuda": 600 * MIB,
}
ALLOCATOR_SHARE: dict[tuple[Device, bool], float] = {
    # By device, and whether LoRA is trained. glibc keeps freed blocks of up to 32 MiB, with long-lived ones between them: from
    # nothing (two steps) to 0.66 of the activations in full trainings of 10 to 60 million parameters, 1.26 and 1.34 in two with
    # LoRA, whose layers free several tensors for each they keep. With MALLOC_MMAP_THRESHOLD_=1048576 it was next to nothing.
    ("cpu", False): 0.4,
    ("cpu", True): 1.3,
    # PyTorch's CUDA allocator fragments less, as blocks are rounded and reused; not measured here.
    ("cuda", False): 0.1,
    ("cuda", True): 0.1,
}
VLLM_BYTES = 450 * MIB
"""Memory that vLLM and its engine add to a worker on a CPU, without weights and cache: a ppo stage with vLLM took 1.52 GB more
than with transformers."""
NUMBER_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
WEIGHT_BYTES = 4
"""Of a weight, and of its gradient: float32 whatever the arithmetic of a pass."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: 4 bits, an 8-bit scale for 64 weights, a float32 scale for 256 of those (Dettmers et al. 2023, section 3)."""
MOMENTS_BYTES: dict[OptimizerName, float] = {
    # Two moments for every parameter that learns: float32, or 8 bits and a float32 scale for 256 of them.
    "adamw": 8,
    "adamw_8bit": 2 + 8 / 256,
    "paged_adamw_8bit": 2 + 8 / 256,
    # A number for each row and column of a matrix.
    "adafactor": 0,
}
LOGITS_BYTES = 4
"""Of a logit: log-softmax and gradient take its place, both in float32."""
TEACHER_TENSORS = 12
"""Of the size of a chunk's logits, in the divergence from a teacher and its backward pass: logits and log-probabilities of both
models, their mix, its differences from both, and gradients."""
NORM_BYTES = 8
"""Of a number that a norm reads: its input and what it normalised, in float32 whatever the precision."""
CHECKPOINTS = KEEP + 1
"""One more than are kept: the oldest is removed after the newest is complete."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and the bytes that its parts and passes take."""

    shape: ModelShape
    peft: Peft = None
    """None for full fine-tuning, or for a model that does not learn."""
    has_score_head: bool = False
    """Of a reward or value model: one row of the hidden size, which always learns, in place of the language model's head."""
    learns: bool = True
    frozen: Precision = "float32"
    """What weights that do not learn are kept in; virtual tokens need them in float32."""
    recomputes: bool = False
    """Whether the backward pass computes each layer again."""

    @property
    def parameters(self) -> int:
        """Without those that `peft` adds."""
        return self.shape.backbone_parameters + (self.shape.hidden_size if self.has_score_head else self.shape.head_parameters)

    @property
    def lora_layers(self) -> list[LinearLayer]:
        """The linear layers that LoRA is added to."""
        if not isinstance(self.peft, Lora):
            return []
        ends, layers = self.peft.target_modules, self.shape.linear_layers
        return [layer for layer in layers if ends == "all_linear" or f".{layer.name}".endswith(tuple(f".{end}" for end in ends))]

    @property
    def added_parameters(self) -> int:
        """Numbers that the method adds to the model.

        LoRA: rank · (rows + columns) of every chosen layer. Prefix tuning: a key and a value for every layer and virtual
        token. Prompt tuning: an embedding for every virtual token.
        """
        if isinstance(self.peft, VirtualTokens):
            in_layers = 2 * self.shape.num_layers * self.shape.key_size
            return self.peft.num_virtual_tokens * (in_layers if self.peft.method == "prefix_tuning" else self.shape.hidden_size)
        return 0 if self.peft is None else sum(self.peft.rank * (layer.rows + layer.columns) for layer in self.lora_layers)

    @property
    def trainable_parameters(self) -> int:
        if self.peft is None:
            return self.parameters
        return self.added_parameters + (self.shape.hidden_size if self.has_score_head else 0)

    @property
    def quantized_parameters(self) -> int:
        """Weights in 4 bits: those of the linear layers, for qlora."""
        is_quantized = self.peft is not None and self.peft.method == "qlora" and self.shape.quantizable
        return self.shape.linear_parameters if is_quantized else 0

    @property
    def weight_bytes(self) -> int:
        learning = self.trainable_parameters if self.learns else 0
        frozen = self.parameters + self.added_parameters - self.quantized_parameters - learning
        return round(WEIGHT_BYTES * learning + self.frozen_bytes * frozen + NF4_BYTES * self.quantized_parameters)

    @property
    def frozen_bytes(self) -> int:
        """Of a weight that does not learn and is not in 4 bits."""
        return WEIGHT_BYTES if isinstance(self.peft, VirtualTokens) else NUMBER_BYTES[self.frozen]

    def activation_bytes(self, batch: Batch, precision: Precision) -> int:
        """What the layers keep of a batch for the backward pass."""
        once = NORM_BYTES * self.shape.hidden_size  # the last norm
        if batch.is_masked:  # layers share the mask
            once += NUMBER_BYTES[precision] * batch.row_tokens
        if self.recomputes:  # one layer at a time
            once += self._layer_bytes(batch, precision)
        return batch.tokens * (self.shape.num_layers * self.kept_of_a_layer(batch, precision) + once)

    def kept_of_a_layer(self, batch: Batch, precision: Precision) -> int:
        """Bytes of one token that one layer keeps for the backward pass: only its input where the layer is computed again."""
        if self.recomputes:
            return NUMBER_BYTES[self._stream(precision)] * self.shape.hidden_size
        return self._layer_bytes(batch, precision)

    def _stream(self, precision: Precision) -> Precision:
        """What the sum that runs through the layers is kept in: the type of the embeddings."""
        in_bfloat16 = precision == "bfloat16" and isinstance(self.peft, Lora) and self.frozen == "bfloat16"
        return "bfloat16" if in_bfloat16 else "float32"

    def _layer_bytes(self, batch: Batch, precision: Precision) -> int:
        """What one layer keeps of one token."""
        shape, hidden, number = self.shape, self.shape.hidden_size, NUMBER_BYTES[precision]
        learns_in_layers = not isinstance(self.peft, VirtualTokens)
        norms = 2 * NORM_BYTES * hidden
        # Inputs of linear layers are kept only where a weight learns from them; autocast copies them for each layer that reads
        # them, else those that read the same tensor share it.
        readers = max(2, round(len(shape.linear_layers) / shape.num_layers) - 2) if precision == "bfloat16" else 2
        inputs = readers * number * hidden if learns_in_layers else 0
        # Query, key and value, and attention's result. With a mask, grouped keys and values are written out for every head.
        grouped = 1 < shape.num_key_value_heads < shape.num_heads
        key = shape.query_size if batch.is_masked and grouped else shape.key_size
        attention = number * (2 * shape.query_size + 2 * key)
        if batch.is_split:
            attention += number * shape.query_size
            attention += round(batch.copied_share * number * (2 * shape.query_size + 2 * key))
        # Gated: both branches, the activated one and the product. Otherwise the activation's input, output and its parts.
        kept = 4 if shape.is_gated else 5 if shape.activation in PYTHON_GELUS else 2
        feed_forward = number * shape.intermediate_size * (kept if learns_in_layers else kept - 1)
        inner = number * self.peft.rank * len(self.lora_layers) // shape.num_layers if isinstance(self.peft, Lora) else 0
        return norms + inputs + attention + feed_forward + inner

    def logits_bytes(self, targets: int, device: Device) -> int:
        """The head's backward pass holds the logits of one chunk of tokens at a time; a score head has none."""
        return LOGITS_BYTES * self._logits_at_once(targets, device)

    def divergence_bytes(self, targets: int, device: Device) -> int:
        """What the divergence from a teacher holds, a chunk of tokens at a time."""
        vocabulary = self.shape.vocabulary
        return TEACHER_TENSORS * LOGITS_BYTES * vocabulary * min(targets, teacher_chunk_tokens(vocabulary, device))

    def cast_bytes(self, precision: Precision) -> int:
        """The bfloat16 copies that autocast makes of weights; quantised layers are unpacked one by one, a head stays float32."""
        if precision == "float32" or self.quantized_parameters:
            return 0
        in_bfloat16 = isinstance(self.peft, Lora) and self.frozen == "bfloat16"
        copied = self.added_parameters if in_bfloat16 else self.shape.linear_parameters
        # Layers that are computed again cast their weights again, one layer at a time.
        return NUMBER_BYTES[precision] * copied // (self.shape.num_layers if self.recomputes else 1)

    def backward_bytes(self, batch: Batch, device: Device, precision: Precision) -> int:
        """A forward and backward pass at its peak, without weights, gradients and optimizer."""
        shape = self.shape
        # The peak is the head's backward pass: it comes first, when every layer's activations are still kept.
        kept = self.activation_bytes(batch, precision)
        retained = round(ALLOCATOR_SHARE[device, isinstance(self.peft, Lora)] * kept)
        head_learns = self.peft is None and not self.has_score_head
        head_gradient = WEIGHT_BYTES * shape.vocabulary * shape.hidden_size if head_learns else 0
        largest = max((layer.parameters for layer in shape.linear_layers), default=0)
        unpacked = NUMBER_BYTES[precision] * largest if self.quantized_parameters else 0
        return kept + retained + self.logits_bytes(batch.targets, device) + head_gradient + unpacked + self.cast_bytes(precision)

    def forward_bytes(self, tokens: int, device: Device) -> int:
        """Peak of a pass without gradients.

        The residual stream and its norm, the three states of a feed-forward layer, and the logits of a chunk with their
        log-softmax.
        """
        states = tokens * 3 * (self.shape.hidden_size + self.shape.intermediate_size)
        return NUMBER_BYTES["float32"] * (states + 2 * self._logits_at_once(tokens, device))

    def _logits_at_once(self, tokens: int, device: Device) -> int:
        vocabulary = self.shape.vocabulary
        return 0 if self.has_score_head else min(tokens, logits_chunk_tokens(vocabulary, device)) * vocabulary

    def step_bytes(self, device: Device, optimizer: OptimizerName = "adamw") -> int:
        """The optimizer's step besides gradients and moments: tensor by tensor; AdamW on a GPU needs no copies."""
        if device == "cuda" and optimizer != "adafactor":
            return 0
        return 2 * WEIGHT_BYTES * self.shape.largest_tensor if self.peft is None else 0


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


def method_name(peft: Peft) -> str:
    """How tables call a way of training: its `method`, or full."""
    return "full" if peft is None else peft.method


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
    virtual_tokens = peft.num_virtual_tokens if isinstance(peft, VirtualTokens) else 0
    has_flash = device == "cuda" and machine.has_bfloat16 and precision == "bfloat16"
    passes = needs.passes(Setting(lengths, shapes[needs.model].context, virtual_tokens, device, has_flash))
    # As `runtime.device.frozen_dtype` decides: scorers serve no training's precision.
    frozen_scorer: Precision = "bfloat16" if machine.has_bfloat16 else "float32"
    frozen: Precision = "float32" if precision == "float32" else frozen_scorer
    moments, recomputes = MOMENTS_BYTES[needs.memory.optimizer], needs.memory.gradient_checkpointing is True
    model = LoadedModel(shapes[needs.model], peft, needs.has_score_head, frozen=frozen, recomputes=recomputes)
    value = [replace(model, shape=shapes[name], has_score_head=True) for name in (needs.value_model,) if name is not None]
    learners = [model, *value]
    others = [LoadedModel(shapes[name], None, True, learns=False, frozen=frozen_scorer) for name in needs.scorers]
    others += [LoadedModel(shapes[name], learns=False, frozen=frozen) for name in (needs.teacher,) if name is not None]
    if peft is None and needs.frozen_copies:  # an adapter is switched off instead
        # The reference, and what an update may go back to, which is as exact as what learns.
        reference, before = (LoadedModel(shapes[needs.model], learns=learns, frozen=frozen) for learns in (False, True))
        others += [reference, *[before] * (needs.frozen_copies - 1)]
    learning = sum(learner.trainable_parameters for learner in learners)
    sampler, sleeps = _sampler_bytes(needs.sampler, model.shape, machine)
    parts = {
        "weights": sum(learner.weight_bytes for learner in learners),
        "gradients": WEIGHT_BYTES * learning,
        "optimizer": round(moments * learning),
        "other_models": sum(other.weight_bytes for other in others) + (0 if sleeps else sampler),
        "process": PROCESS_BYTES[device],
    }
    # The optimizers of a training with a value model are fused: their step needs nothing more.
    step = 0 if value else model.step_bytes(device, needs.memory.optimizer)
    beside = _phases_beside_training(needs, parts["weights"], shapes, lengths, frozen, device)
    sampling = sampler + sum(parts[name] for name in ("weights", "optimizer", "other_models")) if sleeps else 0

    def with_pass(batch: Batch) -> Memory:
        # All graphs exist before the first backward pass.
        activations = sum(learner.backward_bytes(batch, device, precision) for learner in learners)
        activations += 0 if needs.teacher is None else model.divergence_bytes(batch.targets, device)
        peak = peak_bytes(
            **parts,
            activations=activations,
            step=step,
            accumulates=batch.accumulates,
            has_moments=batch.has_moments,
            other_phases=[*beside, sampling],
        )
        return Memory(**parts, activations=activations, peak=peak)

    memory = max((with_pass(batch) for batch in passes), key=lambda memory: memory.peak)
    # A checkpoint holds the trained parameters and their two moments, an artifact the trained parameters. The last epoch is the
    # result. An adapter is float32 always.
    stored = model.shape.stored_dtype if needs.save_dtype == "auto" else needs.save_dtype
    number = NUMBER_BYTES["bfloat16" if peft is None and stored == "bfloat16" else "float32"]
    kept = max(1, needs.num_epochs_kept) * number * model.trainable_parameters
    full = kept + round(CHECKPOINTS * (WEIGHT_BYTES + moments) * learning)
    return Estimate(method_name(peft), model.trainable_parameters, memory, full, kept)


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
        return round(sampler.memory_share * machine.total_bytes), True
    if engine == "vllm":
        cache_gib = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB))
        return number * policy.parameters + round(cache_gib * (1 << 30)) + VLLM_BYTES, False
    tokens, rows = min(sampler.tokens, policy.context), min(ENGINE_ROWS, sampler.rows)
    return number * (policy.parameters + rows * tokens * 2 * policy.num_layers * policy.key_size), False
