"""One trainer for every loss on pairs, on transformers' Trainer, and its forward pass.

The pass gives a log-probability for every sequence of a batch, or a score for every side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from align.losses.dpo import tail_weights
from align.models.dropout import set_dropout
from align.models.head import extend_forward, last_hidden_states, target_logps
from align.models.logits import in_float32
from align.models.sizes import FORWARD_TOKENS
from align.runtime.device import device_name
from align.runtime.profile import phase
from align.runtime.spread import ALONE, Spread
from align.scoring.batching import run_batches
from align.training.loop import GuardedTraining
from align.training.pairwise.collator import PairCollator, TrainingPair
from align.training.pairwise.objective import BatchCounts, PairwiseConfig, likelihood_tokens
from align.training.pairwise.training_pairs import pair_lengths
from align.training.pairwise.visibility import pair_mask
from align.training.sampler import LengthGroupedTrainer
from align.training.sharding import computes_in_bfloat16, release, shard


class PairwiseTrainer(GuardedTraining, LengthGroupedTrainer):
    """Minimises an objective's mean over the pairs of every optimizer batch, however that batch is cut into micro-batches.

    The model must have been through `prepare_model`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: Sequence[TrainingPair],
        objective: PairwiseConfig,
        collator: PairCollator,
        arguments: Mapping[str, Any],
    ) -> None:
        release(model)
        super().__init__(model, pairs, collator, arguments, lengths=pair_lengths(pairs))
        self._objective = objective

    def batch_counts(self, batches: Sequence[Mapping[str, Tensor]], fillers: Sequence[Mapping[str, Tensor]] = ()) -> BatchCounts:
        """Pairs and tokens, and the sum of a value that the losses of the optimizer batch share."""
        counts = self._count(batches, self.args.device)
        if self.args.world_size > 1:
            counts = BatchCounts(*self.accelerator.reduce(torch.stack(counts[:2]), reduction="sum"))
        if not self._objective.has_shared_value or (len(batches) == 1 and self.args.world_size == 1):
            return counts
        sums = [self._shared_sum(self.model_wrapped, batch) for batch in (*batches, *fillers)]
        total = torch.stack(sums[: len(batches)] or [0 * sums[0]]).sum()
        return counts._replace(shared_sum=self.accelerator.reduce(total, reduction="sum"))

    @torch.no_grad()
    def _shared_sum(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        with self._arithmetic(self.args.device):
            return self._objective.shared_value(model(layout=layout_of(inputs)), inputs).sum()

    def _arithmetic(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_in_bfloat16(self.args))

    def _count(self, batches: Sequence[Mapping[str, Tensor]], device: torch.device) -> BatchCounts:
        pairs = sum(len(batch["last_index"]) // 2 for batch in batches)
        counts = torch.tensor([pairs, sum(int(likelihood_tokens(batch).sum()) for batch in batches)], device=device)
        return BatchCounts(counts[0], counts[1])

    def batch_loss(self, model: Any, inputs: dict[str, Any], counts: BatchCounts) -> Tensor:
        """The objective summed over the pairs of a micro-batch, divided by the pairs of the optimizer batch."""
        result = self._objective.pair_losses(model(layout=layout_of(inputs)), inputs, counts)
        self.add_metrics(result.metrics)
        return result.losses.sum() / counts.pairs

    def derived_metrics(self, means: Mapping[str, float]) -> Mapping[str, float]:
        return self._objective.derived_metrics(means)

    @torch.no_grad()
    @phase("score")
    def measure(self, pairs: Sequence[TrainingPair]) -> dict[str, float]:
        """Means of loss and metrics over some pairs under the weights as they are, in the arithmetic of training.

        With several processes, each computes all of them: they are few.
        """
        self.model.eval()
        device = next(self.model.parameters()).device
        found: dict[str, tuple[list[float], list[int]]] = {}
        shared: list[float] = []

        def inputs_of(chosen: Sequence[int]) -> dict[str, Tensor]:
            batch = self.data_collator([pairs[index] for index in sorted(chosen)])
            return {name: tensor.to(device) for name, tensor in batch.items()}

        def share(chosen: Sequence[int]) -> None:
            shared.append(float(self._shared_sum(self.model, inputs_of(chosen))))

        def add(chosen: Sequence[int]) -> None:
            inputs = inputs_of(chosen)
            counts = self._count([inputs], device)
            if shared:  # all pairs are one batch to it
                counts = counts._replace(shared_sum=counts.pairs * (sum(shared) / len(pairs)))
            with self._arithmetic(device):
                result = self._objective.pair_losses(self.model(layout=layout_of(inputs)), inputs, counts)
            for name, values in {"loss": result.losses, **result.metrics}.items():
                sums, numbers = found.setdefault(name, ([], []))
                sums.append(float(values.sum()))
                numbers.append(len(values))

        for visit in (share, add) if self._objective.has_shared_value else (add,):
            for _ in run_batches(pair_lengths(pairs), FORWARD_TOKENS, visit):
                pass
        release(self.model)
        means = {name: sum(sums) / sum(numbers) for name, (sums, numbers) in found.items() if any(numbers)}
        return {**means, **self.derived_metrics(means)}


def prepare_model(model: Any, *, tail_weight: float = 1.0, spread: Spread = ALONE) -> Any:
    """The model in eval mode on the device of training, where `model(layout=…)` returns what `pair_outputs` says.

    Args:
        spread: under fsdp2 or zero3 the process keeps its part of the model only.
    """
    # Dropout would make the policy differ from a reference that is itself, and the loss at step 0 from that of equal models.
    set_dropout(model, 0.0)
    extend_forward(model, "layout", partial(pair_outputs, tail_weight=tail_weight))
    return shard(model.eval(), spread) if spread.divides_model else model.eval().to(device_name())


def layout_of(batch: Mapping[str, Tensor], device: torch.device | None = None) -> dict[str, Tensor]:
    """The part of a batch that the model sees, on `device` if one is given."""
    # FSDP's mixed precision rounds the floats that go through a wrapped forward. The loss's own columns must not be rounded.
    return {name: tensor.to(device) for name, tensor in batch.items() if not tensor.is_floating_point()}


def pair_outputs(model: Any, layout: Mapping[str, Tensor], *, tail_weight: float = 1.0) -> Tensor:
    """Summed log-probability of every sequence (language model) or score of every side (reward model).

    Args:
        model: a causal language model, or a sequence classifier with one label.
        layout: tensors of `PairCollator`; without prompts as targets if there is a tail weight.
        tail_weight: of the tokens beyond the length of the pair's shorter completion; see `tail_weights`.
    Returns:
        Language model: [sequences], float32, nats. Reward model: [2 * pairs], float32. Both carry the gradient.
    """
    hidden = last_hidden_states(
        model,
        input_ids=layout["input_ids"],
        position_ids=layout["position_ids"],
        attention_mask=pair_mask(model, layout),
    ).flatten(0, 1)
    if (score_head := getattr(model, "score", None)) is not None:
        # Not a view: FSDP2 hangs the gathering of the backward pass on the output.
        return in_float32(score_head, hidden.index_select(0, layout["last_index"]))[:, 0].clone()
    logps = target_logps(model, hidden.index_select(0, layout["hidden_index"]), layout["target_ids"])
    if tail_weight != 1:
        logps = logps * tail_weights(layout["token_counts"], tail_weight)
    return logps.new_zeros(len(layout["token_counts"])).index_add(0, layout["sequence_index"], logps)
