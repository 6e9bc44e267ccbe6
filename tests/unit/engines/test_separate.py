"""Engines on devices of their own do what one in this process does, and none can make the training wait for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from align.engines import weight_transfer
from align.engines.protocol import GenerationRequest, SamplingSettings
from align.engines.separate import SeparateEngines
from align.engines.transformers_engine import TransformersEngine
from align.engines.weight_transfer import TransferPlace, WeightReceiver
from align.errors import StageError
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.runtime.gpus import SAMPLING_VARIABLE
from align.runtime.spread import EngineDevices
from align.testing import tiny_causal_lm

REQUESTS = [GenerationRequest([5, 6, 7], 1), GenerationRequest([8, 9, 4], 2), GenerationRequest([8, 6, 4], 3)]
SETTINGS = SamplingSettings(1.0, 1.0, None, 6, 2, (2,), with_logps=True)
CPU = torch.device("cpu")

pytestmark = pytest.mark.slow


class Receiving(TransformersEngine):
    """Takes weights as vLLM's engine does."""

    def join_training(self, place: TransferPlace) -> None:
        self._receiver = WeightReceiver(place, 0, CPU)

    def take_weights(self, version: int) -> None:
        self.update_weights(self._receiver.weights(), version=version)


def receiving(folder: ModelFolder) -> Any:
    return Receiving(folder, dtype="float32", max_model_tokens=32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFolder, ModelFolder]:
    work = tmp_path_factory.mktemp("models")
    return tuple(ModelFolder(tiny_causal_lm(work / str(seed), seed=seed)) for seed in (1, 2))  # type: ignore[return-value]


def opened(folder: ModelFolder, devices: EngineDevices) -> Iterator[SeparateEngines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SAMPLING_VARIABLE, "4,7")
        engines = SeparateEngines(partial(receiving, folder), devices, CPU)
    processes = pids(engines)
    yield engines
    engines.close()
    assert {child.pid for child in multiprocessing.active_children()}.isdisjoint(processes)


@pytest.fixture(scope="module")
def pair(folders: tuple[ModelFolder, ModelFolder]) -> Iterator[SeparateEngines]:
    """As on two GPUs."""
    yield from opened(folders[0], EngineDevices((4, 7)))


@pytest.fixture
def single(folders: tuple[ModelFolder, ModelFolder]) -> Iterator[SeparateEngines]:
    yield from opened(folders[0], EngineDevices())


def pids(engines: SeparateEngines) -> list[int]:
    return [engine._process.pid or 0 for engine in engines._engines]


def test_they_sample_what_one_samples_before_and_after_new_weights(
    folders: tuple[ModelFolder, ModelFolder], pair: SeparateEngines
) -> None:
    here = receiving(folders[0])
    assert (pair.name, pair.version) == (here.name, here.version)

    def sampled(engine: Any) -> list[list[list[int]]]:
        # Log-probabilities of another number of rows are rounded otherwise.
        return [[completion.token_ids for completion in group] for group in engine.generate(REQUESTS, SETTINGS)]

    first = sampled(here)
    assert sampled(pair) == first
    for version, folder in enumerate(reversed(folders), start=3):
        here.update_weights(load_causal_lm(folder).named_parameters(), version=version)
        pair.update_weights(load_causal_lm(folder).named_parameters(), version=version)
        assert sampled(pair) == sampled(here)
        assert {group[0].weights_version for group in pair.generate(REQUESTS, SETTINGS)} == {version}
        assert pair.weight_checksums() == here.weight_checksums()
    assert sampled(pair) == first
    # An engine that is not like the other is found, whichever it is.
    pair._engines[1].load_weights(folders[1])
    found = pair.weight_checksums().parts
    assert found["token table"] == found["layer 0"] == -1


def test_a_killed_engine_is_named_at_once(folders: tuple[ModelFolder, ModelFolder], pair: SeparateEngines) -> None:
    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, parameter) in enumerate(load_causal_lm(folders[1]).named_parameters()):
            if number == 2:
                os.kill(pids(pair)[1], signal.SIGKILL)
            yield name, parameter

    with pytest.raises(StageError, match=r"sampling engine 2 of 2 was killed by signal 9 \(SIGKILL\)"):
        pair.update_weights(weights(), version=1)


def test_a_frozen_engine_ends_the_training(
    folders: tuple[ModelFolder, ModelFolder], single: SeparateEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_transfer, "PATIENCE_SECONDS", 1.5)
    os.kill(pids(single)[0], signal.SIGSTOP)
    with pytest.raises(StageError, match=r"did not take the weights within 1.5 seconds"):
        single.update_weights(load_causal_lm(folders[1]).named_parameters(), version=1)


def test_an_error_in_an_engine_is_that_of_the_training(single: SeparateEngines) -> None:
    with pytest.raises(RuntimeError, match="the sampling engine failed"):
        single.update_weights([("no.such.weight", torch.zeros(3, 2)), ("nor.this", torch.zeros(0))], version=1)
