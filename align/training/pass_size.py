"""What a training does so that its passes fit into memory, and what it does when one did not.

An out-of-memory error costs one optimizer batch: what it accumulated is thrown away, and it is computed again in passes of half
the size. No step and no row is lost, and the result is the same to rounding. accelerate's `find_executable_batch_size` would
start the whole training again. Where the smallest pass is too much, layers are computed again from there on, if the stage may.
Ranks cannot compute a batch again, as the others wait for the one that failed in the middle of a pass: the training ends, and the
next attempt begins with the smaller size.

work/memory.json    what the passes came to, for an attempt that goes on after an interruption
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from align.errors import StageError
from align.runtime.context import RunContext
from align.runtime.device import free_memory, out_of_memory
from align.store.seal import read_work, write_work
from align.training.optimizer import recompute_layers

RECORD_NAME = "memory.json"
SIZE_KEY, RECOMPUTE_KEY = "pass_size", "gradient_checkpointing"

T = TypeVar("T")


class PassSize:
    """The largest number of rows, pairs or tokens in a forward pass, which only falls, and whether layers are computed again."""

    def __init__(self, size: int, unit: str) -> None:
        """Start with `size`.

        Args:
            unit: what is counted, in the plural.
        """
        self.size = size
        self._unit = unit
        self.recomputes = False
        """Whether gradient checkpointing is on."""
        self._may_recompute = False
        self._models: Sequence[Any] = ()
        self._context: RunContext | None = None

    def keep_in(
        self, context: RunContext, models: Sequence[Any], *, gradient_checkpointing: Literal["auto"] | bool = False
    ) -> None:
        """Begin with what was chosen for the stage, or an interrupted attempt came to; report and write down every change.

        Args:
            models: those that learn.
            gradient_checkpointing: as in the recipe.
        Raises:
            RecipeError: if gradient checkpointing is wanted by name and a model cannot do it.
        """
        self._context, self._models = context, models
        kept = read_work(context.work / RECORD_NAME, on_damage=context.note) or {}
        self.size = min(self.size, kept.get(SIZE_KEY, self.size))
        is_auto = gradient_checkpointing == "auto" and all(model.supports_gradient_checkpointing for model in models)
        chosen = context.memory.gradient_checkpointing or kept.get(RECOMPUTE_KEY, False)
        self._may_recompute = is_auto
        if gradient_checkpointing is True or (is_auto and chosen):
            self._recompute()

    def _recompute(self) -> None:
        self.recomputes, self._may_recompute = True, False
        for model in self._models:
            recompute_layers(model, self._name)

    @property
    def _name(self) -> str:
        return "training" if self._context is None else self._context.name

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
            passes = f"{used():,} {self._unit} in a forward pass"
            change = self._shrink(used(), smallest(), problem)
            if self._context is not None:
                self._context.note(f"out of memory with {passes}; computed again {change} ({problem})")

    def only_try(self, compute: Callable[[], T], *, used: Callable[[], int]) -> T:
        """What `compute` returns, in one of several ranks. After an out-of-memory error the next attempt takes half of `used`.

        Args:
            compute, used: as of `retry`; `used` is equal in all ranks.
        Raises:
            StageError: if there was not enough memory.
        """
        try:
            return compute()
        except Exception as error:
            problem = out_of_memory(error)
            if problem is None:
                raise
        rank = 0 if self._context is None else self._context.rank
        message = f"{self._name}: rank {rank} was out of memory with {used():,} {self._unit} in a forward pass: {problem}"
        change = self._shrink(used(), 1, problem)
        raise StageError(
            message,
            hint=f"Run the same command again: it goes on from the last checkpoint {change}. Or use fsdp2, or more processes.",
        )

    def _shrink(self, used: int, smallest: int, problem: str) -> str:
        """Halve the size, or else compute layers again; in words, with what. It is written down."""
        if used > smallest:
            self.size = max(used // 2, smallest)
            change = f"with {self.size:,}"
        elif self._may_recompute:
            self._recompute()
            change = "with gradient_checkpointing"
        else:
            passes = f"{used:,} {self._unit} in a forward pass"
            raise StageError(f"{self._name}: out of memory with {passes}, the fewest: {problem}", hint=self._advice())
        if self._context is not None:
            write_work(self._context.work / RECORD_NAME, {SIZE_KEY: self.size, RECOMPUTE_KEY: self.recomputes})
        return change

    def _advice(self) -> str:
        first = "Lower" if self.recomputes else "Set gradient_checkpointing: true, lower"
        return (
            f"{first} max_tokens (max_completion_tokens in online methods), choose an 8-bit optimizer, or train an adapter "
            "(peft). align plan --memory compares them."
        )
