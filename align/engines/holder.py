"""One engine for several models."""

from __future__ import annotations

from functools import partial
from multiprocessing.connection import Connection

from align.config.sections import EngineChoice
from align.engines.borrowed import BorrowedEngine
from align.engines.open import architecture_of, engine_for_model, open_engine
from align.engines.protocol import TextEngine
from align.engines.remote import ConnectionEnded
from align.engines.vllm_engine import VllmEngine, batched_tokens
from align.models.folder import ModelFolder
from align.runtime.device import device_name


class EngineHolder:
    """Keeps one engine for several models. For models of one architecture it only replaces the weights, since a start is slow.

    A pickled holder carries no engine; in another process it starts its own.
    """

    def __init__(
        self,
        config: EngineChoice,
        num_gpus: int = 1,
        *,
        memory_share: float | None = None,
        host: Connection | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            num_gpus, memory_share: of an engine; see `VllmEngine`.
            host: where the run's own engine is reached, which is used for the models that vLLM serves; see `EngineHost.lend`.
        """
        self._config = config
        self._num_gpus = num_gpus
        self._memory_share = memory_share
        self._borrowed = None if host is None else BorrowedEngine(host, dtype=config.dtype, num_gpus=num_gpus)
        self._engine: TextEngine | None = None
        self._architecture = ""
        self._model_folder: ModelFolder | None = None
        self._max_model_tokens = 0
        self._sleeps = False

    def engine_for(self, model_folder: ModelFolder, max_model_tokens: int) -> TextEngine:
        """An engine with the model's weights, for prompts and completions of so many tokens together."""
        if self._borrowed is not None and engine_for_model(self._config.engine, model_folder) == "vllm":
            own = partial(self._own_engine_for, model_folder, max_model_tokens)
            try:
                return self._borrowed.show(model_folder, max_model_tokens, open_own=own)
            except ConnectionEnded:
                self._borrowed = None
        return self._own_engine_for(model_folder, max_model_tokens)

    def _own_engine_for(self, model_folder: ModelFolder, max_model_tokens: int) -> TextEngine:
        if self._engine is not None and not self._fits(model_folder, max_model_tokens):
            # Before the next one starts: vLLM takes most of a GPU's memory. An engine's context is fixed at its start.
            self._close_own()
        if self._engine is None:
            self._engine = open_engine(
                self._config.engine,
                model_folder,
                dtype=self._config.dtype,
                max_model_tokens=max_model_tokens,
                memory_share=self._memory_share,
                num_gpus=self._num_gpus,
            )
            self._architecture, self._max_model_tokens = architecture_of(model_folder), max_model_tokens
        elif self._model_folder != model_folder:
            if self._sleeps:
                self._engine.wake_up()
            self._engine.load_weights(model_folder)
        self._model_folder, self._sleeps = model_folder, False
        return self._engine

    def _fits(self, model_folder: ModelFolder, max_model_tokens: int) -> bool:
        """Whether the running engine can take the model, and computes as one that was started for it."""
        return (
            self._architecture == architecture_of(model_folder)
            and self._max_model_tokens >= max_model_tokens
            and batched_tokens(self._max_model_tokens) == batched_tokens(max_model_tokens)
        )

    def forget_model(self) -> None:
        """Load the next model's weights in any case."""
        self._model_folder = None

    def rest(self) -> None:
        """Lend the memory of a GPU to others: the engine sleeps, or ends if it cannot sleep. On a CPU it stays as it is."""
        if self._engine is None or device_name() != "cuda":
            return
        if isinstance(self._engine, VllmEngine) and self._engine.can_sleep:
            self._engine.sleep()
            self._sleeps = True
            self.forget_model()
        else:
            self._close_own()

    def close(self) -> None:
        """End the engine, or hand it back to the host."""
        if self._borrowed is not None:
            self._borrowed.close()
        self._close_own()

    def _close_own(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self._model_folder = None

    def __reduce__(self) -> tuple[type[EngineHolder], tuple[EngineChoice, int]]:
        return EngineHolder, (self._config, self._num_gpus)
