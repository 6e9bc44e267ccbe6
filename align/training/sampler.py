"""The order of rows: random, but rows of a batch are of similar length, so that it has little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainingArguments

from align.runtime.seed import derive_seed
from align.training.sharding import allow_fsdp_on_cpu

# Batches whose rows are sorted together: more means less padding, fewer means more randomness.
GROUP_BATCHES = 16


class LengthGroupedSampler(Sampler[int]):
    """Shuffles, sorts groups of batches by length, shuffles the batches. The order follows from seed and epoch alone.

    transformers has one too, but it draws from torch's global generator, whose state differs after a resume.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "epoch", self._epoch))
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        group_size = GROUP_BATCHES * self._batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), group_size):
            group = sorted(order[start : start + group_size], key=lambda index: -self._lengths[index])
            batches += [group[first : first + self._batch_size] for first in range(0, len(group), self._batch_size)]
        # The one batch that may be short stays last: the trainer cuts rows by count, and would cut all later batches elsewhere.
        places = torch.randperm(max(len(batches) - 1, 0), generator=generator).tolist()
        return iter([index for batch in [*(batches[place] for place in places), *batches[-1:]] for index in batch])


class LengthGroupedTrainer(Trainer):
    """A trainer whose batches hold rows of similar length. Its losses must be divided by the counts of the optimizer batch."""

    loss_is_scaled_for_ga = True  # transformers would divide by the number of micro-batches once more

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Any],
        collator: Callable[[Sequence[Any]], Mapping[str, Any]],
        arguments: Mapping[str, Any],
        *,
        lengths: Sequence[int],
    ) -> None:
        """Make a trainer of rows whose lengths are known.

        Args:
            arguments: of `TrainingArguments`.
            lengths: tokens of every row.
        """
        args = TrainingArguments(**arguments)
        # Reading `device` sets `_n_gpu`. With several GPUs in one process transformers would split every batch among them, and
        # with it tensors that belong together.
        _ = args.device
        args._n_gpu = min(args.n_gpu, 1)
        allow_fsdp_on_cpu(args)
        self._lengths = lengths
        super().__init__(model=model, args=args, train_dataset=rows, data_collator=collator)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """Groups by length in whole optimizer batches, so that the rows of a step do not depend on the size of a micro-batch."""
        args = self.args
        batch_size = args.train_batch_size * args.gradient_accumulation_steps
        return LengthGroupedSampler(self._lengths, batch_size=batch_size, seed=args.data_seed)
