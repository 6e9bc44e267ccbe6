"""The policy's weights on their way from the first process of a training to engines on devices of their own.

Sender and receivers form a process group of torch beside all others: NCCL between GPUs, gloo between CPUs. Member 0 sends; every
process of every engine is a member that receives. What a tensor is called, its type and its shape stand in the group's store; its
numbers are broadcast. Nothing waits for ever: the sender looks after the engines while it waits, and every wait ends after
`PATIENCE_SECONDS`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from align.errors import StageError
from align.models.stream import with_tied_head
from align.runtime.local_ranks import LOOPBACK, Meeting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PATIENCE_SECONDS = 300.0
"""How long one tensor may take, or the others to join."""
POLL_SECONDS = 0.0005
LOOK_SECONDS = 0.1
CONSEQUENCE_SECONDS = 3.0
"""How much later than the error that it causes the end of an engine may be known."""
HEAD = "head/"
"""Before the number of a tensor, in keys of the store."""
SENDER = 0
"""Member of the group that has the weights."""


@dataclass(frozen=True)
class TransferPlace:
    """Where an engine joins the group."""

    address: str
    port: int
    size: int
    """Members: the sender, and the processes of all engines."""
    first: int
    """Number of the engine's first process."""


class WeightSender:
    """Hands weights to all receivers at once."""

    def __init__(self, sizes: list[int], device: torch.device) -> None:
        """Open the store of a group; `join` makes it one.

        Args:
            sizes: processes of each engine.
            device: of the weights.
        """
        meeting = Meeting.opened(LOOPBACK)
        self._store, self._device, self._group = meeting.store, device, None
        size = 1 + sum(sizes)
        firsts = [1 + sum(sizes[:number]) for number in range(len(sizes))]
        self.places = [TransferPlace(LOOPBACK, meeting.port, size, first) for first in firsts]
        """Of the engines."""
        self._sent = self._forgotten = 0

    def join(self, look_after: Callable[[], None]) -> None:
        """Wait for the receivers, which join at the same time.

        Args:
            look_after: called while it waits; raises if a receiver is gone.
        Raises:
            StageError: if they do not come.
        """
        found: list[Any] = []

        def enter() -> None:  # no function of torch that waits here can be interrupted
            try:
                found.append(_joined_group(self._store, SENDER, self.places[0].size, self._device))
            except RuntimeError as error:
                found.append(error)

        threading.Thread(target=enter, name="join-engines", daemon=True).start()
        _wait(lambda: bool(found), look_after, "join the training")
        (self._group,) = found
        if isinstance(self._group, RuntimeError):
            raise _failed(self._group, look_after)

    def send(self, weights: Iterable[tuple[str, Tensor]], look_after: Callable[[], None]) -> None:
        """Hand over all weights, each once the one before has arrived.

        Args:
            look_after: see `join`.
        Raises:
            StageError: if a receiver does not take them.
        """
        for name, tensor in weights:
            ready = tensor.detach().to(self._device).contiguous()
            self._tell([name, str(ready.dtype).removeprefix("torch."), list(ready.shape)])
            if ready.numel():
                _broadcast(self._group, ready, look_after)
        self._tell(None)

    def forget(self) -> None:
        """Delete what stands in the store of tensors that were sent. To be called once all receivers have them all."""
        for number in range(self._forgotten, self._sent):
            self._store.delete_key(f"{HEAD}{number}")
        self._forgotten = self._sent

    def _tell(self, head: list[Any] | None) -> None:
        self._store.set(f"{HEAD}{self._sent}", json.dumps(head))
        self._sent += 1


class WeightReceiver:
    """Takes weights in a process of an engine."""

    def __init__(self, place: TransferPlace, number: int, device: torch.device) -> None:
        """Join the group.

        Args:
            number: of this process within its engine.
            device: where the weights are wanted.
        """
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._store = TCPStore(
            place.address, place.port, wait_for_workers=False, timeout=timedelta(seconds=PATIENCE_SECONDS)
        )  # torch's own wait for a key has this limit too
        self._device = device
        self._group = _joined_group(self._store, place.first + number, place.size, device)
        self._received = 0

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that are sent next, one at a time."""
        import torch

        while (head := self._next_head()) is not None:
            name, dtype, shape = head
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)
            if tensor.numel():
                _broadcast(self._group, tensor)
            yield name, tensor

    def _next_head(self) -> list[Any] | None:
        head: list[Any] | None = json.loads(self._store.get(f"{HEAD}{self._received}"))
        self._received += 1
        return head


class ReceivingWorker:
    """What an engine's worker needs to take weights from a training; see `EngineWorker`."""

    rank: int
    device: torch.device
    reload_weights: Callable[..., None]

    def join_training(self, place: TransferPlace) -> None:
        """Join the group of `place`."""
        self._receiver = WeightReceiver(place, self.rank, self.device)

    def take_weights(self, has_tied_head: bool) -> None:
        """Replace the weights by those that are sent next.

        Args:
            has_tied_head: whether the head is a copy of the token table, which is sent once.
        """
        weights = self._receiver.weights()
        self.reload_weights(weights_iterator=with_tied_head(weights) if has_tied_head else weights)


def _joined_group(store: Any, number: int, size: int, device: torch.device) -> Any:
    """A process group that is no part of torch's default group, which the members do not share."""
    import torch
    import torch.distributed as dist

    # Longer than anybody waits here: torch ends a process whose NCCL message is late, without our words.
    limit = timedelta(seconds=2 * PATIENCE_SECONDS)
    group: Any
    store = dist.PrefixStore("group", store)  # type: ignore[attr-defined] # NCCL calls its keys 0, 1, …
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()  # type: ignore[attr-defined]
        options._timeout = limit
        group = dist.ProcessGroupNCCL(store, number, size, options)  # type: ignore[attr-defined]
    else:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices, options._timeout = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)], limit  # type: ignore[attr-defined]
        group = dist.ProcessGroupGloo(store, number, size, options)  # type: ignore[attr-defined]
    # The first message makes NCCL's connections, in a call that nothing can interrupt.
    _broadcast(group, torch.zeros(1, device=device))
    return group


def _broadcast(group: Any, tensor: Tensor, look_after: Callable[[], None] | None = None) -> None:
    """Send a contiguous tensor from the sender, or receive it; returns when it is there.

    Args:
        look_after: of the sender, see `WeightSender.join`.
    """
    import torch
    import torch.distributed as dist

    options = dist.BroadcastOptions()  # type: ignore[attr-defined]
    options.rootRank = SENDER
    numbers = tensor.view(-1).view(torch.uint8)  # of every type there are bytes
    try:
        work = group.broadcast([numbers], options)
        if look_after is not None:
            _wait(work.is_completed, look_after, "take the weights")
        # With a limit, this waits for NCCL too, and not only lets its stream wait.
        work.wait(timedelta(seconds=PATIENCE_SECONDS))
    except RuntimeError as error:
        if look_after is None or isinstance(error, StageError):
            raise
        raise _failed(error, look_after) from error


def _wait(is_done: Callable[[], bool], look_after: Callable[[], None], what: str) -> None:
    started, looked = time.monotonic(), 0.0
    while not is_done():
        now = time.monotonic()
        if now - looked > LOOK_SECONDS:
            look_after()
            looked = now
        if now - started > PATIENCE_SECONDS:
            raise StageError(
                f"The sampling engine did not {what} within {PATIENCE_SECONDS:g} seconds",
                hint="The log says more; run the same command again to go on from the last checkpoint.",
            )
        time.sleep(POLL_SECONDS)


def _failed(error: RuntimeError, look_after: Callable[[], None]) -> StageError:
    """The error of a transfer that failed; raises that of a receiver that is gone, which may be known a little later."""
    until = time.monotonic() + CONSEQUENCE_SECONDS
    while time.monotonic() < until:
        look_after()
        time.sleep(LOOK_SECONDS)
    return StageError(
        f"The weights could not be handed to the sampling engine: {str(error).splitlines()[0]}",
        hint="The log says more; run the same command again to go on from the last checkpoint.",
    )
