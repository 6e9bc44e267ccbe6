"""What a stage has of the machine while others run beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from align.runtime.gpus import GPU_VARIABLE, visible_gpus


@dataclass(frozen=True)
class Share:
    """A part of a machine: of the threads that compute on its CPU, and of its GPUs."""

    parts: int = 1
    """The stage has one of so many equal parts of the threads."""
    gpus: tuple[int, ...] | None = None
    """Places among the visible GPUs; None: all of them."""

    def __str__(self) -> str:
        if self.gpus is not None:
            return f"GPU{'' if len(self.gpus) == 1 else 's'} {', '.join(map(str, self.gpus))}"
        return "all" if self.parts == 1 else f"1/{self.parts} of the threads"

    @property
    def environment(self) -> Mapping[str, str]:
        """Of the process of a stage that sees its GPUs only."""
        if self.gpus is None:
            return {}
        names = visible_gpus()
        return {GPU_VARIABLE: ",".join(names[place] for place in self.gpus)}

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Compute with a part of torch's threads inside. Their number decides the order of sums, and so the last bits."""
        if self.parts == 1:
            yield
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(max(1, before // self.parts))
        try:
            yield
        finally:
            torch.set_num_threads(before)


WHOLE = Share()
"""All of the machine."""
