"""An engine in a process of its own, for a process that trains together with others.

vLLM makes process groups of torch, and in a process that is in one already it would wait for all the others to join. The weights
travel through a pipe, one tensor at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from align.engines.checksum import WeightChecksums
from align.engines.protocol import GenerationRequest, SampledCompletion, SamplingSettings, TextEngine
from align.errors import AlignError, StageError
from align.runtime.device import free_memory
from align.runtime.process import RemoteTraceback, end_with_parent, how_it_ended, memory_hint, start

if TYPE_CHECKING:
    from torch import Tensor

CLOSE_SECONDS = 30
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which torch would take the engine for a part of the training; others begin as below."""
OF_AGENT = ("GROUP_", "ROLE_", "TORCHELASTIC_")


class EngineApart:
    """Hands everything on to the engine in the other process, and raises what it raises there."""

    def __init__(self, open_engine: Callable[[], TextEngine]) -> None:
        """Start the process, and wait for its engine.

        Args:
            open_engine: picklable, and of a module.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, open_engine), name="engine")
        start(self._process)
        theirs.close()
        self.name, self.version = self._answer()

    def generate(self, requests: Sequence[GenerationRequest], settings: SamplingSettings) -> list[list[SampledCompletion]]:
        return self._call("generate", list(requests), settings)  # type: ignore[no-any-return]

    def load_weights(self, model_folder: Any) -> None:
        self._call("load_weights", model_folder)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        self._send(("update_weights", (version,)))
        for name, tensor in weights:
            import torch

            self._send((name, tensor.dtype, tuple(tensor.shape)))
            numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            with suppress(BrokenPipeError, ConnectionResetError):  # the answer says what happened
                self._connection.send_bytes(numbers.numpy().data)
        self._send(None)
        self._answer()

    def weight_checksums(self) -> WeightChecksums:
        return self._call("weight_checksums")  # type: ignore[no-any-return]

    def sleep(self) -> None:
        self._call("sleep")

    def wake_up(self) -> None:
        free_memory()  # what torch keeps for itself in this process is the engine's again
        self._call("wake_up")

    def close(self) -> None:
        """End the process, also if it does not answer any more."""
        self._send(None)
        self._process.join(CLOSE_SECONDS)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        self._send((method, arguments))
        return self._answer()

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(message)

    def _answer(self) -> Any:
        try:
            value, error, trace = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(CLOSE_SECONDS)
            code = self._process.exitcode or 0
            raise StageError(
                f"The process of the sampling engine {how_it_ended(code)}",
                hint=f"{memory_hint(code)}The log says more; run the same command again to go on from the last checkpoint.",
            ) from None
        if error is not None:
            raise error from RemoteTraceback(trace)
        if trace:
            raise RuntimeError(f"the sampling engine failed:\n{trace}")
        return value


def _serve(connection: Connection, open_engine: Callable[[], TextEngine]) -> None:
    """The process of the engine."""
    end_with_parent()
    for name in list(os.environ):
        if name in OF_RANKS or name.startswith(OF_AGENT):
            del os.environ[name]
    engine: TextEngine | None = None

    def opened() -> tuple[str, str]:
        nonlocal engine
        engine = open_engine()
        return engine.name, engine.version

    if not _answer_with(connection, opened):
        return
    while (message := connection.recv()) is not None:
        method, arguments = message
        compute = getattr(engine, method)
        if method == "update_weights":
            compute, arguments = partial(compute, version=arguments[0]), (_weights(connection),)
        _answer_with(connection, compute, *arguments)
    assert engine is not None
    engine.close()


def _answer_with(connection: Connection, compute: Callable[..., Any], *arguments: Any) -> bool:
    """Send the result of `compute`, or its error; whether it is a result."""
    try:
        connection.send((compute(*arguments), None, ""))
    except Exception as error:  # whoever asked deals with it
        connection.send((None, error if isinstance(error, AlignError) else None, traceback.format_exc()))
        return False
    return True


def _weights(connection: Connection) -> Iterator[tuple[str, Tensor]]:
    import torch

    while (head := connection.recv()) is not None:
        name, dtype, shape = head
        numbers = torch.frombuffer(bytearray(connection.recv_bytes()), dtype=torch.uint8)
        yield name, numbers.view(dtype).reshape(shape)
