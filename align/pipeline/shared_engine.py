"""The engine that the stages of a run share: which of them use it, and when it has to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from align.config.sections import EngineChoice, GenerationEngine
from align.engines.open import has_vllm
from align.runtime.gpus import visible_gpus
from align.runtime.pool import Pool
from align.runtime.spread import ALONE, Spread


class SharedEngine:
    """Starts an engine for the first stage that samples, if another one samples later, and keeps it until the run ends."""

    def __init__(self, configs: Sequence[Any], log: Path, environment: Mapping[str, str]) -> None:
        """Nothing is started yet.

        Args:
            configs: of the stages that will run.
            log, environment: see `EngineHost`.
        """
        from align.engines.host import EngineHost

        self._host = EngineHost(log, environment) if sum(map(_can_share, configs)) > 1 else None

    def lend(self, config: Any, pool: Pool, spread: Spread) -> Connection | None:
        """Where a stage reaches the engine; None if it has one of its own, or several, or needs none."""
        if self._host is None or not _can_share(config) or spread != ALONE or pool.kind != "processes":
            return None
        return self._host.lend() if getattr(config, "num_workers", 1) == 1 else None

    def make_room(self) -> bool:
        """End the engine, because a stage needs the memory; whether there was one."""
        if self._host is None or not self._host.is_running:
            return False
        self._host.end()
        return True

    def end(self, *, at_once: bool = False) -> None:
        """See `EngineHost.end`."""
        if self._host is not None:
            self._host.end(at_once=at_once)


def _can_share(config: Any) -> bool:
    """Whether the configuration is of a stage that samples with vLLM, and may do so with an engine of another process."""
    if not isinstance(config, EngineChoice) or config.engine == "transformers" or not has_vllm():
        return False
    # A training hands its weights to the engine all the time. Those of a GPU would go through the computer's memory.
    return isinstance(config, GenerationEngine) or not visible_gpus()
