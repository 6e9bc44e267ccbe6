"""What the processes of one training tell each other. Every function is called by all of them, in the same order.

A process that trains alone has no group; then each function returns what it was given.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

T = TypeVar("T")


def group_size() -> int:
    """How many processes train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def from_first(value: T) -> T:
    """What rank 0 passed. Values must be picklable.

    Only its value travels: a rollout batch has millions of tokens, and there may be hundreds of ranks.
    """
    if group_size() == 1:
        return value
    import torch.distributed as dist

    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def any_of(flag: bool) -> bool:
    """Whether any process passed True, so that all of them take the same way."""
    return any(_gathered_on_all(flag))


def all_of(value: T) -> list[T]:
    """What every process passed, in the order of ranks. Values must be picklable."""
    return _gathered_on_all(value)


def to_first(value: T) -> list[T]:
    """What every process passed, in the order of ranks, in rank 0; nothing in the others. Values must be picklable."""
    if group_size() == 1:
        return [value]
    import torch.distributed as dist

    is_first = dist.get_rank() == 0
    found: list[Any] = [None] * group_size() if is_first else []
    dist.gather_object(value, found if is_first else None, dst=0)
    return found


def wait_for_all() -> None:
    """Return once every process has come here."""
    _gathered_on_all(None)


def _gathered_on_all(value: T) -> list[T]:
    if group_size() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * group_size()
    dist.all_gather_object(found, value)
    return cast(list[T], found)
