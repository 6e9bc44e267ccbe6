"""One optimizer batch in several forward and backward passes, and in smaller ones after an out-of-memory error.

transformers' trainer collates micro-batches before it trains on them, so their size is fixed for a whole training. Here it hands
over the rows of a whole optimizer batch, and they are cut and collated in the step. How they are cut changes nothing but
rounding: every loss is divided by what its whole optimizer batch has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from align.training.pass_size import PassSize


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

    Its arguments are those of transformers: passes of `per_device_train_batch_size` rows, `gradient_accumulation_steps` of them.
    """

    data_collator: Any
    metrics_so_far = Sums()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pass_size = PassSize(self.args.per_device_train_batch_size, "rows")
        self.args.per_device_train_batch_size *= self.args.gradient_accumulation_steps
        self.args.gradient_accumulation_steps = 1
        self._train_batch_size = self.args.train_batch_size

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Optimizer batches of rows."""
        collator, self.data_collator = self.data_collator, StepRows
        try:
            return super().get_train_dataloader()  # type: ignore[no-any-return]
        finally:
            self.data_collator = collator

    def get_batch_samples(self, epoch_iterator: Iterator[StepRows], *_: Any) -> tuple[list[StepRows], None]:
        """The next optimizer batch; its labels are counted when it is collated."""
        return [next(epoch_iterator)], None

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

        if self.args.world_size > 1:  # the others would wait for gradients that this process has thrown away
            return step()
        return self.pass_size.retry(step, used=lambda: min(self.pass_size.size, len(inputs.rows)))

    def add_metrics(self, metrics: Mapping[str, Tensor]) -> None:
        """Remember metrics, one value per row that has the metric, for the next line of the log; called by `compute_loss`."""
        before = self.metrics_so_far
        sums = {name: before.metrics.get(name, 0.0) + values.sum() for name, values in metrics.items()}
        self.metrics_so_far = Sums(sums, {name: before.counts.get(name, 0) + len(values) for name, values in metrics.items()})

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the metrics over all rows since the last line."""
        sums = self.metrics_so_far
        if "loss" in logs and sums.metrics:
            counts = torch.tensor(list(sums.counts.values()), dtype=torch.float32, device=self.args.device)
            totals = torch.stack([torch.stack([value.float() for value in sums.metrics.values()]), counts])
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals, reduction="sum")
            means = {name: value / count for name, value, count in zip(sums.metrics, *totals.tolist(), strict=True) if count}
            logs = {**logs, **means, **self.derived_metrics(means)}
            self.metrics_so_far = Sums()
        super().log(logs, *args, **kwargs)

    def derived_metrics(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Further metrics that follow from the means."""
        return {}

    def _accumulate(self, model: Any, rows: Sequence[Any]) -> Tensor:
        size = self.pass_size.size
        batches = [self._prepare_inputs(self.data_collator(rows[start : start + size])) for start in range(0, len(rows), size)]
        counts = self._get_num_items_in_batch(batches, self.args.device)
        losses = []
        while batches:
            batch = batches.pop(0)
            with self.accelerator.no_sync(model) if batches else contextlib.nullcontext():
                losses.append(super().training_step(model, batch, counts))
        return torch.stack(losses).sum()


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Of the generators that dropout draws from."""
    states = [torch.get_rng_state()]
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (*states,)


def _set_random_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
