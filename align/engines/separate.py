"""Engines on devices of their own: they sample for a training that never uses these devices, and never sleep.

Each is in a process of its own. Requests are divided among them, in order; the weights reach all of them at once
(`align.engines.weight_transfer`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from align.engines.apart import EngineApart
from align.engines.checksum import WeightChecksums
from align.engines.protocol import GenerationRequest, SampledCompletion, SamplingSettings, TextEngine
from align.engines.weight_transfer import CONSEQUENCE_SECONDS, WeightSender
from align.runtime.gpus import GPU_VARIABLE, sampling_gpus
from align.runtime.local_ranks import LOOPBACK, talking_over
from align.runtime.spread import EngineDevices

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DIFFERS = -1
"""In place of a checksum that engines do not agree on; it is none."""


class SeparateEngines:
    """A text engine that consists of several, in the first process of a training."""

    def __init__(self, open_engine: Callable[[], TextEngine], devices: EngineDevices, device: torch.device) -> None:
        """Start the engines, all at the same time, and connect them with this process.

        Args:
            open_engine: picklable, and of a module. What it opens has `join_training` and `take_weights`, see `VllmEngine`.
            devices: where they run.
            device: of the weights that they will get.
        Raises:
            StageError: if an engine ends, or does not come.
        """
        self._engines: list[EngineApart] = []
        self._is_broken = True
        try:
            with talking_over(LOOPBACK):
                self._start(open_engine, devices)
                self._sender = WeightSender([devices.tensor_parallel] * devices.engines, device)
                for engine, place in zip(self._engines, self._sender.places, strict=True):
                    engine.begin("join_training", place)
                self._sender.join(self._look_after)
                self._answers()
        except BaseException:
            self.close()
            raise
        self._is_broken = False
        self.name, self.version = self._engines[0].name, self._engines[0].version

    def _start(self, open_engine: Callable[[], TextEngine], devices: EngineDevices) -> None:
        number, each, gpus = devices.engines, devices.tensor_parallel, sampling_gpus()
        for index in range(number):
            own = ",".join(gpus[index * each : (index + 1) * each])
            environment = {GPU_VARIABLE: own} if devices.gpus else {}
            title = "the sampling engine" if number == 1 else f"sampling engine {index + 1} of {number}"
            self._engines.append(EngineApart(open_engine, title=title, environment=environment, waits=False))
        for engine in self._engines:
            engine.wait_until_open()

    def generate(self, requests: Sequence[GenerationRequest], settings: SamplingSettings) -> list[list[SampledCompletion]]:
        size = -(-len(requests) // len(self._engines)) or 1
        shares = [list(requests[start : start + size]) for start in range(0, len(requests), size)]
        used = self._engines[: len(shares)]
        for engine, share in zip(used, shares, strict=True):
            engine.begin("generate", share, settings)
        return [completions for engine in used for completions in engine.answer()]

    def load_weights(self, model_folder: Any) -> None:
        self._all("load_weights", model_folder)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        self._is_broken = True  # until it is done: an engine that waits for the rest does not hear us
        for engine in self._engines:
            engine.begin("take_weights", version)
        self._sender.send(weights, self._look_after)
        self._answers()
        self._sender.forget()
        self._is_broken = False

    def weight_checksums(self) -> WeightChecksums:
        first, *others = self._all("weight_checksums")
        parts = {
            part: value if all(other.parts.get(part) == value for other in others) else DIFFERS
            for part, value in first.parts.items()
        }
        return WeightChecksums(parts, first.dtype, first.has_tied_head)

    def sleep(self) -> None:
        """Its memory is of use to nobody else."""

    def wake_up(self) -> None:
        """It is awake."""

    def close(self) -> None:
        for engine in self._engines:
            engine.close(at_once=self._is_broken)

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        for engine in self._engines:
            engine.begin(method, *arguments)
        return self._answers()

    def _answers(self) -> list[Any]:
        return [engine.answer() for engine in self._engines]

    def _look_after(self) -> None:
        """Raise the error of an engine that answers before it can be done, or is gone; of one that is gone first."""
        if any(engine.has_answered() for engine in self._engines):
            if len(self._engines) > 1:  # the end of another may be the cause
                time.sleep(CONSEQUENCE_SECONDS)
            for engine in sorted(self._engines, key=EngineApart.is_alive):
                if engine.has_answered():
                    engine.answer()
