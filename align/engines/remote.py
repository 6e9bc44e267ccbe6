"""An engine in another process: calls and answers travel through a pipe, weights one tensor at a time."""

from __future__ import annotations

import collections
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from align.engines.checksum import WeightChecksums
from align.engines.protocol import GenerationRequest, SampledCompletion, SamplingSettings
from align.errors import AlignError, StageError
from align.runtime.device import free_memory, out_of_memory
from align.runtime.life import still_working, watched_by
from align.runtime.process import RemoteTraceback

if TYPE_CHECKING:
    from torch import Tensor


LIFE_SECONDS = 1.0


class ConnectionEnded(Exception):
    """The process at the other end is gone."""


class RemoteEngine:
    """Hands everything on to the engine at the other end, and raises what it raises there."""

    name: str
    version: str
    title = "the sampling engine"
    """What errors call it."""

    def __init__(self, connection: Connection) -> None:
        """`connection` is answered by `serve`, in another process."""
        self._connection = connection

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

    def _call(self, method: str, *arguments: Any) -> Any:
        self._send((method, arguments))
        return self._answer()

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(message)

    def _answer(self) -> Any:
        """The result of what was asked last.

        Raises:
            ConnectionEnded: if the process died. AlignError: what was raised there. RuntimeError: for another error there.
        """
        try:
            while (answer := self._connection.recv()) is None:
                still_working()
        except (EOFError, ConnectionResetError):
            raise ConnectionEnded from None
        value, error, trace = answer
        if error is not None:
            raise error from RemoteTraceback(trace)
        if trace:
            raise RuntimeError(f"{self.title} failed:\n{trace}")
        return value


def serve(connection: Connection, method_of: Callable[[str], Callable[..., Any]]) -> None:
    """Answer calls until None comes, or the other end is gone.

    Args:
        method_of: what to call, by the name that came.
    """
    with suppress(EOFError, ConnectionResetError):
        while (message := connection.recv()) is not None:
            method, arguments = message
            if method != "update_weights":
                answer_with(connection, method_of(method), *arguments)
                continue
            weights = _weights(connection)
            answer_with(connection, partial(method_of(method), version=arguments[0]), weights)
            collections.deque(weights, maxlen=0)  # after an error the rest is still to come, and is no call


def answer_with(connection: Connection, compute: Callable[..., Any], *arguments: Any) -> bool:
    """Send the result of `compute`, or its error; whether it is a result. Signs of life travel meanwhile, one a second."""
    said = time.monotonic()

    def say() -> None:
        nonlocal said
        if (now := time.monotonic()) - said > LIFE_SECONDS:
            said = now
            connection.send(None)

    try:
        with watched_by(say):
            result = compute(*arguments)
        connection.send((result, None, ""))
    except Exception as error:  # whoever asked deals with it
        known = error if isinstance(error, AlignError) else None
        if (problem := out_of_memory(error)) is not None:
            hint = "Lower max_prompt_tokens or max_completion_tokens, or give the engine more GPUs (tensor_parallel)."
            known = StageError(f"the sampling engine is out of memory ({problem})", hint=hint)
        connection.send((None, known, traceback.format_exc()))
        return False
    return True


def _weights(connection: Connection) -> Iterator[tuple[str, Tensor]]:
    import torch

    while (head := connection.recv()) is not None:
        name, dtype, shape = head
        numbers = torch.frombuffer(bytearray(connection.recv_bytes()), dtype=torch.uint8)
        yield name, numbers.view(dtype).reshape(shape)
