"""An online training whose engine has devices of its own learns what one beside its engine learns."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from online_workshop import SMALL, TEXTS, Training, assert_same

from align.config.online import RewardTraining, ValueOptimization
from align.engines.apart import EngineApart
from align.engines.separate import SeparateEngines
from align.engines.vllm_engine import VllmEngine
from align.models.folder import ModelFolder
from align.runtime.device import own_device
from align.runtime.spread import EngineDevices
from align.testing import tiny_causal_lm
from align.training.online.advantage import Gae

pytestmark = pytest.mark.slow


class Ppo(RewardTraining, Gae, ValueOptimization):
    """The settings of a PPO training, without those of its stage."""


def test_vllm_learns_the_same_bytes_whichever_way_weights_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a batch ahead, and weights that are compared before it samples. One vLLM serves both trainings: starting is slow."""
    pytest.importorskip("vllm")
    base = tiny_causal_lm(tmp_path / "base", texts=TEXTS, seed=2)
    opened = partial(VllmEngine, ModelFolder(base), dtype="float32", max_model_tokens=128)
    engines = SeparateEngines(opened, EngineDevices(), own_device())
    found = []
    with monkeypatch.context() as patch:
        for kind in (SeparateEngines, EngineApart):
            patch.setattr(kind, "close", lambda self: None)
        for name, engine in (("group", engines), ("pipe", engines._engines[0])):
            engine.load_weights(ModelFolder(base))  # type: ignore[attr-defined]
            training = Training(base, tmp_path / name, Ppo(**SMALL, rollouts_ahead=1, check_weights=True))
            training.engine = lambda *_, engine=engine, **__: engine  # type: ignore[misc]
            found.append((training.run(4).history.rows, training.weights()))
    engines.close()
    (rows, weights), (other_rows, other_weights) = found
    assert [row["rollout/weights_version"] for row in rows] == [0, 0, 1, 2]
    assert other_rows == rows
    assert_same(other_weights, weights)
