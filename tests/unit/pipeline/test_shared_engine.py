"""Which stages of a run share an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.config.sections import Generation
from align.pipeline import shared_engine
from align.pipeline.shared_engine import SharedEngine
from align.runtime.pool import LOCAL, Pool
from align.runtime.spread import ALONE, Spread
from align.stages.ppo import Config as Ppo
from align.stages.score import Config as Score

SAMPLES = Generation()
PPO = Ppo.model_validate({"model": "base", "prompts": "prompts", "scorers": {"rm": "reward"}})
SCORES = Score.model_validate({"candidates": "sampled", "scorers": {"rm": "reward"}})


class Host:
    """Takes the place of `EngineHost`, and starts nothing."""

    is_running = False

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        pass

    def lend(self) -> str:
        self.is_running = True
        return "the pipe"

    def end(self, *, at_once: bool = False) -> None:
        self.is_running = False


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.engines.host.EngineHost", Host)
    monkeypatch.setattr(shared_engine, "has_vllm", lambda: True)
    monkeypatch.setattr(shared_engine, "visible_gpus", list)


def lent(configs: list[Any], config: Any, pool: Pool = LOCAL, spread: Spread = ALONE) -> Any:
    return SharedEngine(configs, Path("run.log"), {}).lend(config, pool, spread)


def test_an_engine_is_shared_if_two_stages_sample_with_one() -> None:
    assert lent([SAMPLES, SCORES, PPO], SAMPLES) == lent([SAMPLES, PPO], PPO) == "the pipe"
    assert lent([SAMPLES, SCORES, PPO], SCORES) is None
    assert lent([SAMPLES, SCORES], SAMPLES) is None  # its own is quicker: there is one process less
    by_transformers = Generation(engine="transformers")
    assert lent([SAMPLES, by_transformers], SAMPLES) is None
    assert lent([SAMPLES, SAMPLES, by_transformers], by_transformers) is None


def test_several_engines_and_processes_have_their_own() -> None:
    both = [SAMPLES, SAMPLES, PPO]
    assert lent(both, SAMPLES.model_copy(update={"num_workers": 2})) is None
    assert lent(both, SAMPLES, Pool(kind="ray")) is None
    assert lent(both, PPO, LOCAL, Spread(2, "ddp")) is None


def test_a_training_on_a_gpu_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_engine, "visible_gpus", lambda: ["0"])
    assert lent([SAMPLES, SAMPLES, PPO], PPO) is None
    assert lent([SAMPLES, SAMPLES, PPO], SAMPLES) == "the pipe"


def test_it_makes_room_once() -> None:
    engine = SharedEngine([SAMPLES, SAMPLES], Path("run.log"), {})
    assert not engine.make_room()
    engine.lend(SAMPLES, LOCAL, ALONE)
    assert engine.make_room()
    assert not engine.make_room()
