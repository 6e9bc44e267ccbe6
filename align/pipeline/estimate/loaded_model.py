"""The sizes of a model in memory in bytes: its weights, what its passes keep, and what processes that share it exchange."""

from __future__ import annotations

from dataclasses import dataclass

from align.config.peft import Lora, VirtualTokens
from align.config.sections import OptimizerName
from align.models.shape import PYTHON_GELUS, LinearLayer, ModelShape
from align.models.sizes import ZERO3_NUMBERS_AT_ONCE, divergence_tensors, logits_chunk_tokens, teacher_chunk_tokens
from align.runtime.device import Device
from align.runtime.spread import Spread
from align.training.needs import Batch, Precision, Teacher

Peft = Lora | VirtualTokens | None

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
NUMBER_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
WEIGHT_BYTES = 4
"""Of a weight, and of its gradient: float32 whatever the arithmetic of a pass."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: 4 bits, an 8-bit scale for 64 weights, a float32 scale for 256 of those (Dettmers et al. 2023, section 3)."""
LOGITS_BYTES = 4
"""Of a logit: log-softmax and gradient take its place, both in float32."""
NORM_BYTES = 8
"""Of a number that a norm reads: its input and what it normalised, in float32 whatever the precision."""


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
    is_divided: bool = False
    """Whether fsdp2 divides it. On a CPU freed memory then leaves the process (`runtime.allocator`)."""

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

    def logits_bytes(self, targets: int, device: Device, teacher: Teacher | None = None) -> int:
        """The head's backward pass holds the logits of one chunk of tokens at a time; a score head has none."""
        if teacher is None:
            return LOGITS_BYTES * self._logits_at_once(targets, device)
        tokens = min(targets, teacher_chunk_tokens(self.shape.vocabulary, device))
        return divergence_tensors(teacher.beta) * LOGITS_BYTES * tokens * self.shape.vocabulary

    def cast_bytes(self, precision: Precision) -> int:
        """The bfloat16 copies that autocast makes of weights; quantised layers are unpacked one by one, a head stays float32."""
        if precision == "float32" or self.quantized_parameters:
            return 0
        in_bfloat16 = isinstance(self.peft, Lora) and self.frozen == "bfloat16"
        copied = self.added_parameters if in_bfloat16 else self.shape.linear_parameters
        # Layers that are computed again cast their weights again, one layer at a time.
        return NUMBER_BYTES[precision] * copied // (self.shape.num_layers if self.recomputes else 1)

    def backward_bytes(self, batch: Batch, device: Device, precision: Precision, teacher: Teacher | None = None) -> int:
        """A forward and backward pass at its peak, without weights, gradients and optimizer."""
        shape = self.shape
        # The peak is the head's backward pass: it comes first, when every layer's activations are still kept.
        kept = self.activation_bytes(batch, precision)
        retained = round(ALLOCATOR_SHARE[device, isinstance(self.peft, Lora)] * kept)
        if self.is_divided and device == "cpu":
            retained = 0
        head_learns = self.peft is None and not self.has_score_head
        head_gradient = WEIGHT_BYTES * shape.vocabulary * shape.hidden_size if head_learns else 0
        largest = max((layer.parameters for layer in shape.linear_layers), default=0)
        unpacked = NUMBER_BYTES[precision] * largest if self.quantized_parameters else 0
        logits = self.logits_bytes(batch.targets, device, teacher)
        return kept + retained + logits + head_gradient + unpacked + self.cast_bytes(precision)

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

    def exchange_bytes(self, spread: Spread) -> int:
        """What a process has besides its share of weights, gradients and moments, because others share the training."""
        if spread.strategy == "ddp":  # the buckets in which gradients are summed: gradient_as_bucket_view is off
            return WEIGHT_BYTES * self.trainable_parameters
        if not spread.divides_model:
            return 0
        # Whole: a layer, the next, which is fetched meanwhile, and the head, which stays from its forward to its backward pass.
        whole = self.shape.vocabulary * self.shape.hidden_size + 2 * self.shape.linear_parameters // self.shape.num_layers
        gathered = min(whole, self.parameters) * self.weight_bytes // self.parameters
        if spread.strategy == "zero3":  # the buffer in which it exchanges gradients, and what it fetches ahead
            gathered += WEIGHT_BYTES * (ZERO3_NUMBERS_AT_ONCE + min(ZERO3_NUMBERS_AT_ONCE, self.parameters))
        return gathered

    def step_bytes(self, device: Device, optimizer: OptimizerName = "adamw") -> int:
        """The optimizer's step besides gradients and moments: tensor by tensor; AdamW on a GPU needs no copies."""
        if device == "cuda" and optimizer != "adafactor":
            return 0
        return 2 * WEIGHT_BYTES * self.shape.largest_tensor if self.peft is None else 0
