"""One engine for several models."""

from __future__ import annotations

from align.config.sections import GenerationEngine
from align.engines.open import architecture_of, open_engine
from align.engines.protocol import TextEngine
from align.models.folder import ModelFolder


class EngineHolder:
    """Keeps one engine for several models. For models of one architecture it only replaces the weights, since a start is slow.

    A pickled holder carries no engine; in another process it starts its own.
    """

    def __init__(self, config: GenerationEngine, num_gpus: int = 1) -> None:
        """`num_gpus` are those of an engine; see `VllmEngine`."""
        self._config = config
        self._num_gpus = num_gpus
        self._engine: TextEngine | None = None
        self._architecture = ""
        self._model_folder: ModelFolder | None = None
        self._max_model_tokens = 0

    def engine_for(self, model_folder: ModelFolder, max_model_tokens: int) -> TextEngine:
        if self._engine is not None and (
            self._architecture != architecture_of(model_folder) or self._max_model_tokens < max_model_tokens
        ):
            # Before the next one starts: vLLM takes most of a GPU's memory. An engine's context is fixed at its start.
            self.close()
        if self._engine is None:
            self._engine = open_engine(
                self._config.engine,
                model_folder,
                dtype=self._config.dtype,
                max_model_tokens=max_model_tokens,
                num_gpus=self._num_gpus,
            )
            self._architecture, self._max_model_tokens = architecture_of(model_folder), max_model_tokens
        elif self._model_folder != model_folder:
            self._engine.load_weights(model_folder)
        self._model_folder = model_folder
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self._model_folder = None

    def __reduce__(self) -> tuple[type[EngineHolder], tuple[GenerationEngine, int]]:
        return EngineHolder, (self._config, self._num_gpus)
