"""An engine in a process of its own does what it does in this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pipe
from typing import Any

import pytest
import torch

from align.engines import remote
from align.engines.apart import EngineApart
from align.engines.open import open_engine
from align.engines.protocol import GenerationRequest, SamplingSettings
from align.engines.transformers_engine import TransformersEngine
from align.errors import RecipeError, StageError
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.runtime.life import still_working, watched_by
from align.testing import tiny_causal_lm

REQUESTS = [GenerationRequest([5, 6, 7], 1), GenerationRequest([8, 9], 2)]
SETTINGS = SamplingSettings(1.0, 1.0, None, 6, 2, (2,), with_logps=True)


class Telling(TransformersEngine):
    """Refuses to sleep, with what its environment says of ranks."""

    def sleep(self) -> None:
        raise RecipeError(f"RANK is {os.environ.get('RANK')}")

    def wake_up(self) -> None:
        os._exit(7)

    def update_weights(self, weights: Any, *, version: int) -> None:
        if version == 9:
            raise RecipeError(f"no {next(iter(weights))[0]}")
        super().update_weights(weights, version=version)


def telling(folder: ModelFolder) -> Any:
    return Telling(folder, dtype="float32", max_model_tokens=32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFolder, ModelFolder]:
    work = tmp_path_factory.mktemp("models")
    return tuple(ModelFolder(tiny_causal_lm(work / str(seed), seed=seed)) for seed in (1, 2))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def apart(folders: tuple[ModelFolder, ModelFolder]) -> Iterator[EngineApart]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "1")
        engine = EngineApart(partial(telling, folders[0]))
    yield engine
    engine.close()


def test_it_samples_the_same_before_and_after_new_weights(folders: tuple[ModelFolder, ModelFolder], apart: EngineApart) -> None:
    here = open_engine("transformers", folders[0], dtype="float32", max_model_tokens=32)
    assert (apart.name, apart.version) == (here.name, here.version)
    first = here.generate(REQUESTS, SETTINGS)
    assert apart.generate(REQUESTS, SETTINGS) == first
    for engine in (here, apart):
        engine.update_weights(load_causal_lm(folders[1]).named_parameters(), version=3)
    assert apart.generate(REQUESTS, SETTINGS) == here.generate(REQUESTS, SETTINGS) != first
    assert apart.generate(REQUESTS, SETTINGS)[0][0].weights_version == 3
    assert apart.weight_checksums() == here.weight_checksums()
    apart.load_weights(folders[0])
    assert apart.generate(REQUESTS, SETTINGS) == first


def test_signs_of_life_arrive_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LIFE_SECONDS", -1.0)
    ours, theirs = Pipe()

    def work() -> str:
        still_working()
        still_working()
        return "done"

    for _ in range(2):
        assert remote.answer_with(theirs, work)
    engine, signs = remote.RemoteEngine(ours), []
    with watched_by(lambda: signs.append(1)):
        assert engine._answer() == "done"
    assert len(signs) == 2
    assert engine._answer() == "done"  # nobody watches any more
    assert len(signs) == 2


def test_errors_arrive_and_a_dead_process_is_named(apart: EngineApart) -> None:
    """The engine's process knows nothing of the ranks around it."""
    with pytest.raises(RecipeError, match="RANK is None"):
        apart.sleep()
    with pytest.raises(RecipeError, match="no first"):
        apart.update_weights([("first", torch.zeros(3)), ("second", torch.zeros(3))], version=9)
    with pytest.raises(RecipeError, match="RANK is None"):  # what was left of the weights is not taken for a call
        apart.sleep()
    with pytest.raises(StageError, match="The process of the sampling engine ended with code 7"):
        apart.wake_up()
    with pytest.raises(StageError, match="ended with code 7"):
        apart.update_weights([("weight", torch.zeros(3))], version=4)
