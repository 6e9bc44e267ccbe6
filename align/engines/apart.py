"""An engine in a process of its own, for a process that trains together with others.

vLLM makes process groups of torch, and in a process that is in one already it would wait for all the others to join.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from align.engines.protocol import TextEngine
from align.engines.remote import ConnectionEnded, RemoteEngine, answer_with, serve
from align.errors import StageError
from align.runtime.control_group import MemoryKills
from align.runtime.process import end_with_parent, how_it_ended, start

CLOSE_SECONDS = 30
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which torch would take the engine for a part of the training; others begin as below."""
OF_AGENT = ("GROUP_", "ROLE_", "TORCHELASTIC_")


class EngineApart(RemoteEngine):
    """An engine whose process begins and ends with it."""

    def __init__(
        self,
        open_engine: Callable[[], TextEngine],
        *,
        title: str = RemoteEngine.title,
        environment: Mapping[str, str] | None = None,
        waits: bool = True,
    ) -> None:
        """Start the process, and wait for its engine.

        Args:
            open_engine: picklable, and of a module.
            title: what errors call it.
            environment: variables that the process has besides those of this one.
            waits: False where the caller calls `wait_until_open` later.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        super().__init__(ours)
        self.title = title
        self._process = context.Process(target=_serve, args=(theirs, open_engine, dict(environment or {})), name="engine")
        self._kills = MemoryKills()
        start(self._process)
        theirs.close()
        if waits:
            self.wait_until_open()

    def wait_until_open(self) -> None:
        """Return once the engine is there."""
        self.name, self.version = self._answer()

    def begin(self, method: str, *arguments: Any) -> None:
        """Have a method of the engine called; `answer` is next."""
        self._send((method, arguments))

    def answer(self) -> Any:
        """What the method returned that was begun; raises what it raised.

        Raises:
            StageError: if the process has ended.
        """
        return self._answer()

    def has_answered(self) -> bool:
        """Whether `answer` would not wait."""
        return self._connection.poll()

    def is_alive(self) -> bool:
        """Whether its process has not ended."""
        return self._process.is_alive()

    def close(self, *, at_once: bool = False) -> None:
        """End the process, also if it does not answer any more.

        Args:
            at_once: do not let it end by itself.
        """
        if not at_once:
            self._send(None)
            self._process.join(CLOSE_SECONDS)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _answer(self) -> Any:
        try:
            return super()._answer()
        except ConnectionEnded:
            self._process.join(CLOSE_SECONDS)
            code = self._process.exitcode or 0
            raise StageError(
                f"The process of {self.title} {how_it_ended(code)}",
                hint=f"{self._kills.hint(code)}The log says more; run the same command again to go on from the last checkpoint.",
            ) from None


def _serve(connection: Connection, open_engine: Callable[[], TextEngine], environment: Mapping[str, str]) -> None:
    """The process of the engine."""
    end_with_parent()
    for name in list(os.environ):
        if name in OF_RANKS or name.startswith(OF_AGENT):
            del os.environ[name]
    os.environ.update(environment)
    engine: TextEngine | None = None

    def opened() -> tuple[str, str]:
        nonlocal engine
        engine = open_engine()
        return engine.name, engine.version

    if not answer_with(connection, opened):
        return
    assert engine is not None
    serve(connection, lambda method: getattr(engine, method))
    engine.close()
