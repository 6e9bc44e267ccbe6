"""One trainer for every loss on pairs, on transformers' Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainingArguments

from align.training.loop import GuardedTraining
from align.training.pairwise.collator import PairCollator, TrainingPair
from align.training.pairwise.forward import layout_of
from align.training.pairwise.objective import BatchCounts, PairwiseObjective, likelihood_tokens
from align.training.sampler import LengthGroupedSampler


class PairwiseTrainer(GuardedTraining, Trainer):
    """Minimises an objective's mean over the pairs of every optimizer batch, however that batch is cut into micro-batches.

    The model must have been through `add_pair_outputs`.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: Sequence[TrainingPair],
        objective: PairwiseObjective,
        collator: PairCollator,
        arguments: Mapping[str, Any],
    ) -> None:
        args = TrainingArguments(**arguments)
        # Set once the devices are known. Several GPUs in one process would cut batches whose tensors belong together.
        _ = args.device
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(model=model, args=args, train_dataset=list(pairs), data_collator=collator)
        self._objective = objective
        self._sums: dict[str, Tensor] = {}
        self._pairs_seen = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """Groups by length in whole optimizer batches, so that the size of a micro-batch does not decide what a step sees."""
        args = self.args
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return LengthGroupedSampler([len(pair) for pair in self.train_dataset], batch_size=batch_size, seed=args.seed)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> BatchCounts | None:
        return self._count(batch_samples, device) if batch_samples else None

    def _count(self, batches: Sequence[Mapping[str, Tensor]], device: torch.device) -> BatchCounts:
        pairs = sum(len(batch["last_index"]) // 2 for batch in batches)
        counts = torch.tensor([pairs, sum(int(likelihood_tokens(batch).sum()) for batch in batches)], device=device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return BatchCounts(counts[0], counts[1])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: BatchCounts | None = None
    ) -> Any:
        """The objective summed over the pairs of a micro-batch, divided by the pairs of the optimizer batch."""
        outputs = model(layout=layout_of(inputs))
        counts = num_items_in_batch if num_items_in_batch is not None else self._count([inputs], outputs.device)
        result = self._objective.pair_losses(outputs, inputs, counts)
        self._remember(result.metrics)
        # DDP averages gradients over processes; the counts are of all of them.
        loss = result.losses.sum() / counts.pairs * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def _remember(self, metrics: Mapping[str, Tensor]) -> None:
        for name, values in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + values.sum()
        self._pairs_seen += len(next(iter(metrics.values())))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the metrics over all pairs since the last line."""
        if "loss" in logs and self._pairs_seen:
            names = list(self._sums)
            seen = torch.tensor(self._pairs_seen, dtype=torch.float32, device=self.args.device)
            totals = torch.stack([*(self._sums[name].float() for name in names), seen])
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals, reduction="sum")
            *values, pairs = totals.tolist()
            logs = {**logs, **{name: value / pairs for name, value in zip(names, values, strict=True)}}
            self.forget_metrics()
        super().log(logs, *args, **kwargs)

    def forget_metrics(self) -> None:
        """Start the means anew; after a pass that is no training step."""
        self._sums, self._pairs_seen = {}, 0

    @torch.no_grad()
    def loss_of(self, pairs: Sequence[TrainingPair]) -> float:
        """Mean loss of some pairs under the weights as they are, in the arithmetic of training."""
        self.model.eval()
        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in self.data_collator(pairs).items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.args.bf16):
            loss = float(self.compute_loss(self.model, inputs))
        self.forget_metrics()
        return loss
