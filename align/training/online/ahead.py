"""Sampling ahead: the engine samples a rollout batch while the models learn from the one before.

The schedule is fixed: rollout batch k is sampled with the weights of version k - 1, batches 0 and 1 with those that the training
starts from. So the result does not depend on which of the two is faster, and a checkpoint keeps the batch whose weights are gone.
The ratios of updates are to the policy as it is when they begin, and importance weights carry from the weights that sampled to
that policy (Hilton et al. 2022, "Batch size-invariance for policy optimization"; Fu et al. 2025, AReaL).
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.engines.protocol import SampledCompletion
from align.store.atomic import write_json
from align.training.online.policy_engine import Completions, PolicyEngine
from align.training.online.rollout import SampledEpisode

AHEAD_NAME = "sampled-ahead.json"


class AheadEngine(PolicyEngine):
    """A policy's engine that does not sleep, and samples in a thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._batches: dict[int, Future[Completions]] = {}
        """By number: the batch that is learned from, and the next one; of each what this process sampled."""

    def wait(self) -> None:
        """Return once nothing is being sampled, as the weights must not change meanwhile.

        Raises:
            AlignError: what sampling raised.
        """
        for batch in self._batches.values():
            batch.result()

    def sample(self, number: int, *, after: int, groups: int) -> list[SampledEpisode]:
        """The completions of a rollout batch, sampled now if that was not done ahead; begins with the next one.

        Raises:
            StageError: if other weights sampled them than the schedule says.
        """
        was_ahead = number in self._batches
        if not was_ahead:  # the first batch, and the one that measures the last updates
            self._start(number)
        self._batches = {number: self._batches[number]}
        outputs = self._batches[number].result()
        if number + 1 < self._sampler.num_rollouts:
            self._start(number + 1)
        version = max(number - 1, 0) if was_ahead else self._version
        return self._episodes(number, outputs, version, after=after, groups=groups)

    def sleep(self) -> None:
        """It goes on sampling."""

    def close(self) -> None:
        """End the engine once it has sampled what it samples."""
        self._thread.shutdown(cancel_futures=True)
        super().close()

    def save(self, folder: Path, number: int, *, writes: bool) -> None:
        """Write a batch into a checkpoint, if it was begun: the weights that sampled it are no longer there.

        Args:
            number: of the first rollout batch that nothing has been learned from.
            writes: whether this process does; all put it together.
        """
        if number not in self._batches:
            return
        outputs = self._of_all(self._batches[number].result())
        if writes:
            completions = [[asdict(completion) for completion in group] for group in outputs]
            write_json(folder / AHEAD_NAME, {"number": number, "completions": completions})

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote, in all processes."""
        if (folder / AHEAD_NAME).exists():
            kept = json.loads((folder / AHEAD_NAME).read_text())
            batch: Future[Completions] = Future()
            # As if the first process had sampled all of it.
            groups = kept["completions"] if self._settings.rank == 0 else []
            batch.set_result([[SampledCompletion(**completion) for completion in group] for group in groups])
            self._batches = {kept["number"]: batch}

    def _start(self, number: int) -> None:
        self._batches[number] = self._thread.submit(self._generate, self._share(number))
