"""One optimizer batch in several forward and backward passes, and in smaller ones after an out-of-memory error.

transformers' trainer collates micro-batches before it trains on them, so their size is fixed for a whole training. Here it hands
over the rows of a whole optimizer batch, and they are cut and collated in the step. How they are cut changes nothing but
rounding: every loss is divided by what its whole optimizer batch has.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from align.runtime.group import all_of
from align.training import zero3
from align.training.pass_size import PassSize
from align.training.sharding import keep_parameters, own_share


@dataclass(frozen=True)
class StepRows:
    """The rows of an optimizer batch as the data set has them; transformers takes it for a batch of tensors."""

    rows: Sequence[Any]


@dataclass(frozen=True)
class Sums:
    """Metrics of the rows since the last line of the log. It is replaced and never changed, so that a pass can be undone."""

    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Their sums, scalars."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Number of values in each sum: a metric may be one of some rows only."""


class StepTrainer(Trainer):
    """Cuts optimizer batches into passes itself.

    Its arguments are those of transformers: passes of `per_device_train_batch_size` rows, `gradient_accumulation_steps` of them,
    which together are the optimizer batch of all processes. Each process is handed the whole batch and takes its share.
    """

    data_collator: Any
    metrics_so_far = Sums()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled:
            zero3.prepare_otherwise(self.accelerator)
        else:
            keep_parameters(self.accelerator)
        size = self.args.per_device_train_batch_size
        most = math.ceil(size * self.args.gradient_accumulation_steps / self.args.world_size)
        self.pass_size = PassSize(min(size, most), "rows")
        self._is_filler = False
        self.args.per_device_train_batch_size *= self.args.gradient_accumulation_steps
        self.args.gradient_accumulation_steps = 1
        self._train_batch_size = self.args.train_batch_size

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Optimizer batches of rows."""
        collator, self.data_collator = self.data_collator, StepRows
        try:
            loader: DataLoader[Any] = super().get_train_dataloader()
        finally:
            self.data_collator = collator
        if self.args.world_size > 1:
            # accelerate would give each process every so many batches, and repeat rows where the last ones are not enough.
            share: Any = loader.batch_sampler
            share.num_processes, share.process_index, share.even_batches = 1, 0, False
        return loader

    def get_batch_samples(self, epoch_iterator: Iterator[StepRows], *_: Any) -> tuple[list[StepRows], None]:
        """The next optimizer batch; its labels are counted when it is collated."""
        return [next(epoch_iterator)], None

    def batch_counts(self, batches: Sequence[Mapping[str, Tensor]], fillers: Sequence[Mapping[str, Tensor]] = ()) -> Any:
        """What the losses of an optimizer batch are divided by: numbers of the batches of all processes.

        Args:
            batches: those of this process.
            fillers: batches that count nothing; a pass over the others is one over these too.
        """
        raise NotImplementedError

    def batch_loss(self, model: Any, inputs: dict[str, Any], counts: Any) -> Tensor:
        """The loss summed over what a batch has and divided by what the whole optimizer batch has."""
        raise NotImplementedError

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The part of a batch in the loss of the optimizer batch, times the number of processes, whose gradients are averaged."""
        counts = self.batch_counts([inputs]) if num_items_in_batch is None else num_items_in_batch
        loss = self.batch_loss(model, inputs, counts)
        if self.args.world_size > 1:
            loss = loss * (0 if self._is_filler else self.args.world_size)
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def training_step(self, model: Any, inputs: StepRows, num_items_in_batch: None = None) -> Tensor:
        """Gradients of an optimizer batch; its loss, detached."""
        state, metrics = _random_state(self.args.device), self.metrics_so_far

        def step() -> Tensor:
            # As they were before the step, also when a pass of it has failed.
            _set_random_state(self.args.device, state)
            self.metrics_so_far = metrics
            model.zero_grad()
            return self._accumulate(model, inputs.rows)

        def used() -> int:
            largest: int = min(self.pass_size.size, math.ceil(len(inputs.rows) / self.args.world_size))
            return largest

        # The others would wait for gradients that this process has thrown away. ZeRO-3 has exchanged those of passes before.
        if self.args.world_size > 1 or self.is_deepspeed_enabled:
            return self.pass_size.only_try(step, used=used)
        return self.pass_size.retry(step, used=used)

    def add_metrics(self, metrics: Mapping[str, Tensor]) -> None:
        """Remember metrics, one value per row that has the metric, for the next line of the log; called by `compute_loss`."""
        if self._is_filler:
            return
        before = self.metrics_so_far
        sums = {name: before.metrics.get(name, 0.0) + values.sum() for name, values in metrics.items()}
        self.metrics_so_far = Sums(sums, {name: before.counts.get(name, 0) + len(values) for name, values in metrics.items()})

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the metrics over all rows since the last line."""
        if "loss" in logs and (means := self._means_so_far()):
            logs = {**logs, **means, **self.derived_metrics(means)}
            self.metrics_so_far = Sums()
        super().log(logs, *args, **kwargs)

    def _means_so_far(self) -> dict[str, float]:
        """Means of the metrics over the rows of all processes."""
        found = self.metrics_so_far
        values = torch.stack([value.float() for value in found.metrics.values()]).tolist() if found.metrics else []
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        # A process whose share had no rows, or none with a metric, has no sum of it.
        for sums in all_of({name: (value, found.counts[name]) for name, value in zip(found.metrics, values, strict=True)}):
            for name, (value, count) in sums.items():
                totals[name], counts[name] = totals.get(name, 0.0) + value, counts.get(name, 0) + count
        return {name: total / counts[name] for name, total in totals.items() if counts[name]}

    def derived_metrics(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Further metrics that follow from the means."""
        return {}

    def _accumulate(self, model: Any, rows: Sequence[Any]) -> Tensor:
        size, processes = self.pass_size.size, self.args.world_size
        own = [rows[index] for index in own_share(len(rows), self.args.process_index, processes)]
        batches = [self._collate(own[start : start + size]) for start in range(0, len(own), size)]
        # Under FSDP2 every pass is one of all processes, also of those whose share is smaller.
        num_passes = math.ceil(math.ceil(len(rows) / processes) / size)
        fillers = [self._collate(rows[:1]) for _ in range(num_passes - len(batches))]
        counts = self.batch_counts(batches, fillers)
        waiting = [*((batch, False) for batch in batches), *((batch, True) for batch in fillers)]
        del batches, fillers
        losses = []
        while waiting:
            batch, self._is_filler = waiting.pop(0)
            # FSDP2 would keep whole gradients until the last pass, as large as the whole model. ZeRO-3 never does.
            keeps = waiting and not self.accelerator.is_fsdp2
            self.accelerator.gradient_state._set_sync_gradients(not waiting)
            with self.accelerator.no_sync(model) if keeps else contextlib.nullcontext():
                losses.append(super().training_step(model, batch, counts))
        self._is_filler = False
        return torch.stack(losses).sum()

    def _collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        return self._prepare_inputs(self.data_collator(rows))  # type: ignore[no-any-return]


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Of the generators that dropout draws from."""
    states = [torch.get_rng_state()]
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (*states,)


def _set_random_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
