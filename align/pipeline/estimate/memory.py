"""Peak memory of a training in bytes, counted from shapes: every tensor that torch keeps.

We observed what a layer keeps for the backward pass with `torch.autograd.graph.saved_tensors_hooks`; it is counted below in the
order of the computation. Measured constants, each with its source, are at the top. `scripts/benchmarks/memory.py` compares the
result with real runs; docs/memory.md has its table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from align.config.peft import Lora, VirtualTokens
from align.models.sizes import LOGITS_CHUNK_TOKENS
from align.pipeline.estimate.shape import PYTHON_GELUS, LinearLayer, ModelShape
from align.training.needs import Batch, Device, Precision

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
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: 4 bits, an 8-bit scale for 64 weights, a float32 scale for 256 of those (Dettmers et al. 2023, section 3)."""
FLOAT32_BYTES = 4
MOMENTS_BYTES = 8
"""Two float32 moments of AdamW, for every parameter that learns."""
LOGITS_BYTES = 12
"""Of a logit at the peak of the head's backward pass: log-softmax, its gradient and the logits' gradient, float32 each."""


def chosen_layers(shape: ModelShape, peft: Lora) -> list[LinearLayer]:
    """The linear layers that LoRA is added to."""
    if peft.target_modules == "all_linear":
        return list(shape.linear_layers)
    ends = peft.target_modules
    return [layer for layer in shape.linear_layers if any(layer.name == end or layer.name.endswith(f".{end}") for end in ends)]


def trainable_parameters(shape: ModelShape, peft: Lora | VirtualTokens | None, *, has_score_head: bool = False) -> int:
    """Number of parameters that are trained.

    Full: all. LoRA: rank · (rows + columns) of every chosen layer. Prefix tuning: a key and a value for every layer and virtual
    token; prompt tuning: an embedding for every virtual token.

    Args:
        has_score_head: of a reward or value model: one row of the hidden size in place of the language model's head, which
            always learns.
    """
    head = shape.hidden_size if has_score_head else 0
    if peft is None:
        return shape.backbone_parameters + (head or shape.head_parameters)
    if isinstance(peft, Lora):
        return head + sum(peft.rank * (layer.rows + layer.columns) for layer in chosen_layers(shape, peft))
    per_token = 2 * shape.num_layers * shape.key_size if peft.method == "prefix_tuning" else shape.hidden_size
    return head + peft.num_virtual_tokens * per_token


def weight_bytes(shape: ModelShape, peft: Lora | VirtualTokens | None, *, has_score_head: bool = False) -> int:
    """Bytes of a loaded model in float32, with what `peft` adds to it; linear layers in 4 bits for qlora."""
    parameters = shape.backbone_parameters + (shape.hidden_size if has_score_head else shape.head_parameters)
    added = 0 if peft is None else trainable_parameters(shape, peft)
    in_four_bits = shape.linear_parameters if _is_quantized(shape, peft) else 0
    return round(FLOAT32_BYTES * (parameters + added - in_four_bits) + NF4_BYTES * in_four_bits)


def _is_quantized(shape: ModelShape, peft: Lora | VirtualTokens | None) -> bool:
    return peft is not None and peft.method == "qlora" and shape.quantizable


def activation_bytes(shape: ModelShape, peft: Lora | VirtualTokens | None, batch: Batch, precision: Precision) -> int:
    """Bytes that the layers keep of a batch for the backward pass."""
    # Like the norms of a layer: its input and what it normalised.
    final_norm = 2 * FLOAT32_BYTES * shape.hidden_size
    return batch.tokens * (shape.num_layers * _layer_bytes(shape, peft, batch, precision) + final_norm)


def _layer_bytes(shape: ModelShape, peft: Lora | VirtualTokens | None, batch: Batch, precision: Precision) -> int:
    """Bytes of one layer for one token."""
    hidden, number = shape.hidden_size, FLOAT32_BYTES if precision == "float32" else 2
    learns_in_layers = not isinstance(peft, VirtualTokens)
    # Each of two norms keeps its input and what it normalised, in float32 whatever the precision.
    norms = 4 * FLOAT32_BYTES * hidden
    # Inputs of linear layers are kept only where a weight learns from them; autocast makes a copy for each layer that reads them.
    readers = max(2, round(len(shape.linear_layers) / shape.num_layers) - 2)
    inputs = (2 * FLOAT32_BYTES if precision == "float32" else readers * number) * hidden if learns_in_layers else 0
    # Query, key and value, and attention's result. With a mask, grouped keys and values are written out for every head.
    grouped = 1 < shape.num_key_value_heads < shape.num_heads
    key = shape.query_size if batch.is_masked and grouped else shape.key_size
    attention = number * (2 * shape.query_size + 2 * key)
    mask = number * batch.row_tokens if batch.is_masked else 0
    # Gated: both branches, the activated one and the product. Otherwise the input and output of the activation, and its parts.
    kept = 4 if shape.is_gated else 5 if shape.activation in PYTHON_GELUS else 2
    feed_forward = number * shape.intermediate_size * (kept if learns_in_layers else kept - 1)
    inner = 0
    if isinstance(peft, Lora):
        inner = number * peft.rank * len(chosen_layers(shape, peft)) // shape.num_layers
    return norms + inputs + attention + mask + feed_forward + inner


def logits_bytes(shape: ModelShape, targets: int) -> int:
    """Bytes of the head's backward pass, which holds the logits of one chunk of tokens at a time."""
    return LOGITS_BYTES * min(targets, LOGITS_CHUNK_TOKENS) * shape.vocabulary


def cast_bytes(shape: ModelShape, peft: Lora | VirtualTokens | None, precision: Precision) -> int:
    """Bytes of the bfloat16 copies that autocast makes of linear layers' weights; quantised layers are unpacked one by one."""
    if precision == "float32":
        return 0
    return 0 if _is_quantized(shape, peft) else 2 * (shape.linear_parameters + shape.vocabulary * shape.hidden_size)


def backward_bytes(
    shape: ModelShape, peft: Lora | VirtualTokens | None, batch: Batch, device: Device, precision: Precision
) -> int:
    """Bytes of a forward and backward pass at its peak, without weights, gradients and optimizer."""
    # The peak is the head's backward pass: it comes first, when every layer's activations are still kept.
    kept = activation_bytes(shape, peft, batch, precision)
    head_gradient = FLOAT32_BYTES * shape.vocabulary * shape.hidden_size if peft is None and batch.targets else 0
    unpacked = FLOAT32_BYTES * max(layer.parameters for layer in shape.linear_layers) if _is_quantized(shape, peft) else 0
    retained = round(ALLOCATOR_SHARE[device, isinstance(peft, Lora)] * kept)
    return kept + retained + logits_bytes(shape, batch.targets) + head_gradient + unpacked + cast_bytes(shape, peft, precision)


def inference_bytes(shape: ModelShape, *, tokens: int, targets: int) -> int:
    """Bytes of a forward pass without gradients: the residual stream and its norm, the three states of a feed-forward layer, and
    logits with their log-softmax."""
    states = tokens * FLOAT32_BYTES * (3 * shape.hidden_size + 3 * shape.intermediate_size)
    return states + 2 * FLOAT32_BYTES * min(targets, LOGITS_CHUNK_TOKENS) * shape.vocabulary


def step_bytes(shape: ModelShape, trainable: int, *, device: Device, is_full: bool) -> int:
    """Bytes of AdamW's step besides gradients and moments: a CPU updates tensor by tensor, a GPU all tensors at once."""
    if device == "cuda":
        return FLOAT32_BYTES * trainable
    return 2 * FLOAT32_BYTES * shape.largest_tensor if is_full else 0


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
    """Reference, reward models, sampling engine."""
    process: int
    peak: int


def peak_memory(
    *, weights: int, gradients: int, optimizer: int, backward: int, step: int, others: int, process: int,
    accumulates: bool, other_phases: Iterable[int] = (),
) -> Memory:  # fmt: skip
    """The largest of: a backward pass, an optimizer step, and phases beside training.

    Args:
        backward: see `backward_bytes`.
        step: see `step_bytes`.
        accumulates: see `Batch`.
        other_phases: bytes at phases without this training's gradients, `process` not included.
    """
    # Gradients are there during the whole backward pass only if an earlier pass left them; else they replace freed activations.
    training = weights + others + optimizer + max(backward + (gradients if accumulates else 0), gradients + step)
    peak = process + max(training, *other_phases, 0)
    return Memory(weights, gradients, optimizer, backward, others, process, peak)
