"""The engine that the stages of a run share: real vLLM, started twice in this file."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import Pipe

import pytest

from align.config.sections import EngineChoice
from align.engines.borrowed import BorrowedEngine
from align.engines.holder import EngineHolder
from align.engines.host import EngineHost
from align.engines.protocol import GenerationRequest, SamplingSettings
from align.errors import StageError
from align.models.folder import ModelFolder
from align.models.stream import stored_weights
from align.testing import tiny_causal_lm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")]

CONFIG = EngineChoice(engine="vllm", dtype="float32")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    host = EngineHost(tmp_path_factory.mktemp("host") / "run.log", {"OMP_NUM_THREADS": "1"})
    yield host
    host.end()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFolder, ModelFolder]:
    """Two of one architecture."""
    folder = tmp_path_factory.mktemp("models")
    return ModelFolder(tiny_causal_lm(folder / "a", seed=1)), ModelFolder(tiny_causal_lm(folder / "b", seed=2))


def test_every_stage_gets_the_texts_of_an_engine_of_its_own(
    host: EngineHost,
    requests_: Sequence[GenerationRequest],
    settings: SamplingSettings,
    models: tuple[ModelFolder, ModelFolder],
) -> None:
    model, other_model = models
    first = EngineHolder(CONFIG, host=host.lend())
    texts = first.engine_for(model, 64).generate(requests_, settings)
    others = first.engine_for(other_model, 64).generate(requests_, settings)
    assert others != texts
    first.close()
    process = host._process
    assert process is not None
    assert process.pid is not None

    # A training, which hands new weights over.
    second = EngineHolder(CONFIG, host=host.lend())
    engine = second.engine_for(other_model, 64)
    engine.update_weights(stored_weights(model), version=3)
    assert engine.generate(requests_, settings) == [[replace(sampled, weights_version=3) for sampled in group] for group in texts]
    engine.close()

    # The folder of the model that the last stage began with has its own weights again.
    third = EngineHolder(CONFIG, host=host.lend())
    engine = third.engine_for(other_model, 48)
    assert engine.generate(requests_, settings) == others
    assert host._process is process

    # The death of the process costs a stage one start, and nothing else.
    os.kill(process.pid, signal.SIGKILL)
    assert engine.generate(requests_, settings) == others
    assert third.engine_for(model, 48).generate(requests_, settings) == texts
    third.close()
    assert not host.is_running


def test_a_training_that_loses_the_engine_ends_with_an_error(
    settings: SamplingSettings, models: tuple[ModelFolder, ModelFolder]
) -> None:
    """An engine that is started anew would not have the weights that the training has handed over."""
    connection, theirs = Pipe()
    engine = BorrowedEngine(connection, dtype="float32", num_gpus=1)
    theirs.close()
    with pytest.raises(StageError, match="The process of the run's engine ended"):
        engine.update_weights(stored_weights(models[0]), version=1)
    with pytest.raises(StageError, match="The process of the run's engine ended"):
        engine.generate([], settings)
    engine.close()
