"""The engine of a run's host, in the process of a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NoReturn

from align.config.sections import Dtype
from align.engines.checksum import WeightChecksums
from align.engines.protocol import GenerationRequest, SampledCompletion, SamplingSettings, TextEngine
from align.engines.remote import ConnectionEnded, RemoteEngine
from align.errors import StageError
from align.models.folder import ModelFolder
from align.runtime.profile import phase

if TYPE_CHECKING:
    from torch import Tensor

DIED = "The process of the run's engine ended; this stage starts an engine of its own."


class BorrowedEngine(RemoteEngine):
    """Samples with the host's engine. If its process dies, an engine of the stage's own samples the same again."""

    def __init__(self, connection: Connection, *, dtype: Dtype, num_gpus: int) -> None:
        """`connection` is what `EngineHost.lend` returns; `dtype` and `num_gpus` are those of `open_engine`."""
        super().__init__(connection)
        self._options = (dtype, num_gpus)
        self._is_new = True
        self._open_own: Callable[[], TextEngine] | None = None

    @phase("engine")
    def show(self, model_folder: ModelFolder, max_model_tokens: int, *, open_own: Callable[[], TextEngine]) -> BorrowedEngine:
        """See to it that the engine has the weights of a model.

        Args:
            open_own: starts an engine in this process with that model.
        Raises:
            ConnectionEnded: if the host's process is dead. RecipeError and others: see `open_engine`.
        """
        # What the stage before has left is never taken for this model, even if the folder has the same name.
        self.name, self.version = self._call("show", *self._options, model_folder, max_model_tokens, self._is_new)
        self._is_new, self._open_own = False, open_own
        return self

    @phase("sample")
    def generate(self, requests: Sequence[GenerationRequest], settings: SamplingSettings) -> list[list[SampledCompletion]]:
        try:
            return super().generate(requests, settings)
        except ConnectionEnded:
            if self._open_own is None:
                _raise_death()
            print(DIED, flush=True)
            return self._open_own().generate(requests, settings)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        self._open_own = None  # it would have other weights
        try:
            super().update_weights(weights, version=version)
        except ConnectionEnded:
            _raise_death()

    def weight_checksums(self) -> WeightChecksums:
        try:
            return super().weight_checksums()
        except ConnectionEnded:
            _raise_death()

    def sleep(self) -> None:
        """It keeps its memory: see `EngineHost`."""

    def wake_up(self) -> None:
        """It does not sleep."""

    def close(self) -> None:
        """Hand the engine back."""
        try:
            self._call("rest")
        except ConnectionEnded:
            return


def _raise_death() -> NoReturn:
    raise StageError(
        "The process of the run's engine ended",
        hint="The log says more; run the same command again to go on from the last checkpoint.",
    ) from None
