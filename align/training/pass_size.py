"""How much goes through the models of a training at once, and what happens when that was too much.

An out-of-memory error costs one optimizer batch: what it accumulated is thrown away, and it is computed again in passes of half
the size. No step and no row is lost, and the result is the same to rounding. accelerate's `find_executable_batch_size` would
start the whole training again.

work/memory.json    what the passes came to, for an attempt that goes on after an interruption
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from align.errors import StageError
from align.runtime.context import RunContext
from align.runtime.device import free_memory, out_of_memory
from align.store.atomic import write_json

RECORD_NAME = "memory.json"
SIZE_KEY = "pass_size"

ADVICE = (
    "Set gradient_checkpointing: true, lower max_tokens (max_completion_tokens in online methods), choose an 8-bit optimizer, or "
    "train an adapter (peft). align plan --memory compares them."
)

T = TypeVar("T")


class PassSize:
    """The largest number of rows, pairs or tokens in a forward pass. It only falls."""

    def __init__(self, size: int, unit: str) -> None:
        """Start with `size`.

        Args:
            unit: what is counted, in the plural.
        """
        self.size = size
        self._unit = unit
        self._context: RunContext | None = None

    def keep_in(self, context: RunContext) -> None:
        """Write down and report every change from now on; begin with what an interrupted attempt of the stage came to."""
        self._context = context
        record = context.work / RECORD_NAME
        if record.exists():
            self.size = min(self.size, int(json.loads(record.read_bytes())[SIZE_KEY]))

    def retry(self, compute: Callable[[], T], *, used: Callable[[], int], smallest: Callable[[], int] = lambda: 1) -> T:
        """What `compute` returns. After an out-of-memory error it is called again, with at most half of what it used.

        Args:
            compute: reads `size`; may be called several times, and starts from the beginning each time.
            used: the number in the largest pass of the failed attempt, which may be less than `size`.
            smallest: the number in the smallest pass that is possible.
        Raises:
            StageError: if the smallest pass does not fit either.
        """
        while True:
            try:
                return compute()
            except Exception as error:
                problem = out_of_memory(error)
                if problem is None:
                    raise
            # Not in the handler: the error holds the frames of the pass, and they its tensors.
            free_memory()
            self._halve(used(), smallest(), problem)

    def _halve(self, used: int, smallest: int, problem: str) -> None:
        name = "training" if self._context is None else self._context.name
        if used <= smallest:
            raise StageError(
                f"{name}: out of memory with the smallest forward pass, {used:,} {self._unit}: {problem}",
                hint=ADVICE,
            )
        self.size = max(used // 2, smallest)
        if self._context is not None:
            write_json(self._context.work / RECORD_NAME, {SIZE_KEY: self.size})
            passes = f"{used:,} {self._unit} in a forward pass"
            self._context.note(f"out of memory with {passes}; computed again with {self.size:,} ({problem})")
