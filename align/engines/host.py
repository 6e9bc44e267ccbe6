"""One engine for the stages of a run: its process lives between them too.

vLLM takes seconds to start on a CPU, and up to minutes on a GPU; new weights take milliseconds. Stages stay apart: each is a
process that can be killed, and talks to the engine through a pipe that the run hands on.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from align.config.sections import Dtype, EngineChoice
from align.engines.holder import EngineHolder
from align.engines.protocol import TextEngine
from align.engines.remote import serve
from align.engines.vllm_engine import GPU_MEMORY_SHARE, import_vllm
from align.models.folder import ModelFolder
from align.runtime.process import end_with_parent, send_output_to, start
from align.runtime.signals import FROM_TERMINAL, ignore

END_SECONDS = 5.0


class EngineHost:
    """The process of a run's engine, in the run's own process. It starts when a stage needs it."""

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        """`log` takes what the process prints; `environment` is set before it imports anything."""
        self._log = log
        self._environment = environment
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a process, which needs memory."""
        return self._process is not None and self._process.is_alive()

    def begin(self) -> None:
        """Start the process, unless it runs. It imports vLLM, and waits."""
        if self.is_running:
            return
        self.end()
        # Spawned: a fork would copy the threads of progress displays.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._log, dict(self._environment)), name="align-engine")
        start(self._process)
        theirs.close()

    def lend(self) -> Connection:
        """The end of the pipe through which the `EngineHolder` of one stage reaches the engine."""
        self.begin()
        assert self._connection is not None
        return self._connection

    def end(self, *, at_once: bool = False) -> None:
        """End the process.

        Args:
            at_once: without asking it. A stage that died may have left it at work, and half a message in the pipe.
        """
        if self._process is None or self._connection is None:
            return
        if not at_once:
            try:
                self._connection.send(None)
                self._process.join(END_SECONDS)
            except OSError:
                pass  # it is dead already
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._process = self._connection = None


class _Desk:
    """What the process answers with."""

    def __init__(self) -> None:
        self._options: tuple[Dtype, int] | None = None
        self._holder: EngineHolder | None = None
        self._engine: TextEngine | None = None

    def method_of(self, name: str) -> Callable[..., Any]:
        own: dict[str, Callable[..., Any]] = {"show": self.show, "rest": self.rest}
        return own[name] if name in own else getattr(self._engine, name)  # type: ignore[no-any-return]

    def show(
        self, dtype: Dtype, num_gpus: int, model_folder: ModelFolder, max_model_tokens: int, is_new: bool
    ) -> tuple[str, str]:
        """Name and version of the engine, which has the model's weights now; `is_new`: for the first time in this stage."""
        if self._holder is None or self._options != (dtype, num_gpus):
            self.end()
            self._options = dtype, num_gpus
            self._holder = EngineHolder(EngineChoice(engine="vllm", dtype=dtype), num_gpus, memory_share=GPU_MEMORY_SHARE)
        if is_new:
            self._holder.forget_model()
        self._engine = self._holder.engine_for(model_folder, max_model_tokens)
        return self._engine.name, self._engine.version

    def rest(self) -> None:
        """Until the next stage, lend the memory of a GPU to others."""
        if self._holder is not None:
            self._holder.rest()

    def end(self) -> None:
        if self._holder is not None:
            self._holder.close()


def _serve(connection: Connection, log: Path, environment: Mapping[str, str]) -> None:
    """The process of the engine."""
    end_with_parent()
    ignore((*FROM_TERMINAL, signal.SIGTERM))  # they are sent to every process of the group, and the run decides
    os.environ.update(environment)
    send_output_to(log)
    import_vllm()
    desk = _Desk()
    serve(connection, desk.method_of)
    desk.end()
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    os._exit(0)  # vLLM and torch may hang in their own exit handlers
