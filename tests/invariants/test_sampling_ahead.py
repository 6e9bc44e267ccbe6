"""Rollout batches that are sampled ahead: a fixed schedule of versions, whatever is faster, and whenever it is interrupted."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from online_workshop import SMALL, TEXTS, Training, assert_same, assert_tokens_count_once

from align.config.online import GroupTraining, RewardTraining, ValueOptimization
from align.engines.apart import EngineApart
from align.engines.transformers_engine import TransformersEngine
from align.errors import Interrupted, StageError
from align.runtime.events import Sample
from align.testing import tiny_causal_lm
from align.training.online.advantage import Gae, GroupAdvantage
from align.training.online.learner import PolicyLearner
from align.training.online.noted import unusual

pytestmark = pytest.mark.slow


class Ppo(RewardTraining, Gae, ValueOptimization):
    """The settings of a PPO training, without those of its stage."""


class Grpo(GroupAdvantage, GroupTraining):
    """The settings of a GRPO training."""


AHEAD = {**SMALL, "rollouts_ahead": 1}
GROUPS = {**AHEAD, "group_size": 4, "truncated": "score", "importance": "token_truncate"}
CONFIGS: dict[str, Any] = {"ppo": Ppo(**AHEAD), "grpo": Grpo(**GROUPS)}
Undisturbed = tuple[dict[str, torch.Tensor], list[dict[str, float]]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("ahead") / "base", texts=TEXTS, seed=2)


@pytest.fixture(scope="module", params=CONFIGS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory, method: str) -> Undisturbed:
    training = Training(base, tmp_path_factory.mktemp("undisturbed"), CONFIGS[method])
    rows = training.run(4).history.rows
    return training.weights(), rows


def test_every_batch_but_the_first_is_one_version_old(base: Path, tmp_path: Path, method: str, undisturbed: Undisturbed) -> None:
    weights, rows = undisturbed
    assert [row["rollout/weights_version"] for row in rows] == [0, 0, 1, 2]
    # Rollout batches 0 and 1 are those of the start, whose log-probabilities the engine and the trainer agree on only at first.
    assert rows[0]["rollout/sampler_gap"] < 1e-4 < min(row["rollout/sampler_gap"] for row in rows[1:])
    in_turns = Training(base, tmp_path, CONFIGS[method].model_copy(update={"rollouts_ahead": 0}))
    other_rows = in_turns.run(4).history.rows
    assert other_rows[0] == rows[0]
    assert [row["rollout/weights_version"] for row in other_rows] == [0, 1, 2, 3]
    assert any(not torch.equal(weights[name], value) for name, value in in_turns.weights().items())


def test_it_samples_while_the_models_learn_and_the_order_changes_nothing(
    base: Path, tmp_path: Path, method: str, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning, update = threading.Event(), PolicyLearner.update

    class WaitingEngine(TransformersEngine):
        """Samples what is sampled ahead only once the models have begun to learn."""

        calls = 0

        def generate(self, *arguments: Any) -> Any:
            self.calls += 1
            assert self.calls == 1 or learning.wait(120)
            return super().generate(*arguments)

    def learn(self: PolicyLearner, *arguments: Any, **options: Any) -> Any:
        learning.set()
        done = update(self, *arguments, **options)
        learning.clear()
        return done

    monkeypatch.setattr(PolicyLearner, "update", learn)
    training = Training(base, tmp_path, CONFIGS[method])
    training.engine = WaitingEngine
    rows = training.run(4).history.rows
    assert rows == undisturbed[1]
    assert_same(training.weights(), undisturbed[0])


def test_an_engine_in_a_process_of_its_own_gives_the_same_bytes(
    base: Path, tmp_path: Path, method: str, undisturbed: Undisturbed
) -> None:
    training = Training(base, tmp_path, CONFIGS[method].model_copy(update={"check_weights": True}))
    training.engine = lambda folder, **options: EngineApart(partial(TransformersEngine, folder, **options))  # type: ignore[assignment]
    assert training.run(4).history.rows == undisturbed[1]
    assert_same(training.weights(), undisturbed[0])


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_resumed_training_gives_the_same_bytes(
    base: Path, tmp_path: Path, method: str, undisturbed: Undisturbed, stopped_after: int
) -> None:
    training = Training(base, tmp_path, CONFIGS[method])
    with pytest.raises(Interrupted, match=f"Stopped after {stopped_after} of 4"):
        training.run(4, stop=lambda done: signal.SIGINT if done == stopped_after else None)
    result = training.run(4)
    assert result.history.rows == undisturbed[1]
    assert_same(training.weights(), undisturbed[0])


@pytest.mark.parametrize("call", [2, 6])
def test_a_training_that_dies_or_stops_between_updates_too(
    base: Path, tmp_path: Path, method: str, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    training, asked = Training(base, tmp_path, CONFIGS[method]), []
    apply = PolicyLearner._apply

    def counted(self: PolicyLearner, learn_policy: bool) -> Any:
        asked.append(1)
        return apply(self, learn_policy)

    monkeypatch.setattr(PolicyLearner, "_apply", counted)
    with pytest.raises(Interrupted, match="updates from the next"):
        training.run(4, stop=lambda done: signal.SIGINT if len(asked) == call - 1 else None)
    monkeypatch.setattr(PolicyLearner, "_apply", _burn)
    with pytest.raises(StageError, match="on fire"):
        training.run(4)
    monkeypatch.setattr(PolicyLearner, "_apply", apply)
    result = training.run(4)
    assert result.history.rows == undisturbed[1]
    assert_same(training.weights(), undisturbed[0])
    assert_tokens_count_once(result, training)


def _burn(*_: Any) -> None:
    raise StageError("the machine is on fire")


def test_the_kl_of_the_last_updates_is_measured_on_their_own_completions(base: Path, tmp_path: Path) -> None:
    training = Training(base, tmp_path, Ppo(**AHEAD, kl_limit=1e6))
    training.run(3)
    samples = [{text.weights_version for text in event.completions} for event in training.of(Sample)]
    assert samples == [{0}, {0}, {1}, {3}]


def test_completions_of_other_weights_are_refused(base: Path, tmp_path: Path) -> None:
    class StaleEngine(TransformersEngine):
        def update_weights(self, weights: Any, *, version: int) -> None:
            super().update_weights(weights, version=min(version, 1))

    training = Training(base, tmp_path, CONFIGS["ppo"])
    training.engine = StaleEngine
    with pytest.raises(StageError, match="version 1 in place of 2"):
        training.run(5)


def test_an_error_of_sampling_is_that_of_the_training(base: Path, tmp_path: Path) -> None:
    class FailingEngine(TransformersEngine):
        calls = 0

        def generate(self, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls == 3:
                _burn()
            return super().generate(*arguments)

    training = Training(base, tmp_path, CONFIGS["grpo"])
    training.engine = FailingEngine
    with pytest.raises(StageError, match="on fire"):
        training.run(4)


def test_replacing_prompts_does_not_go_together_with_it() -> None:
    with pytest.raises(ValueError, match="not together with rollouts_ahead"):
        Grpo(**GROUPS, refill_limit=2)


def test_a_gap_is_explained_by_the_age_of_the_weights() -> None:
    assert (
        "sampled this batch ahead"
        in unusual({"rollout/sampler_gap": 1.0, "rollout/weights_version": 2}, 4)["rollout/sampler_gap"]
    )
    assert "different models" in unusual({"rollout/sampler_gap": 1.0, "rollout/weights_version": 3}, 4)["rollout/sampler_gap"]
