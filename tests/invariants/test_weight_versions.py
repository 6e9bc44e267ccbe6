"""Online training learns from completions of the weights that are meant, and finds an exchange that went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from online_workshop import SMALL, TEXTS, Training, assert_same

from align.config.online import GroupTraining, RewardTraining, ValueOptimization
from align.engines.transformers_engine import TransformersEngine
from align.errors import StageError
from align.runtime.events import Sample
from align.testing import tiny_causal_lm
from align.training.online.advantage import Gae, GroupAdvantage

pytestmark = pytest.mark.slow


class Ppo(RewardTraining, Gae, ValueOptimization):
    """The settings of a PPO training, without those of its stage."""


class Grpo(GroupAdvantage, GroupTraining):
    """The settings of a GRPO training."""


CONFIGS: dict[str, Any] = {"ppo": Ppo(**SMALL), "grpo": Grpo(**SMALL, group_size=4, truncated="score")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("versions") / "base", texts=TEXTS, seed=2)


@pytest.mark.parametrize("method", CONFIGS)
def test_rows_and_completions_name_the_version_that_sampled_them(base: Path, tmp_path: Path, method: str) -> None:
    training = Training(base, tmp_path / "plain", CONFIGS[method])
    rows = training.run(3).history.rows
    assert [row["rollout/weights_version"] for row in rows] == [0, 1, 2]
    samples = [{text.weights_version for text in event.completions} for event in training.of(Sample)]
    assert samples == [{0}, {1}, {2}]
    # Comparing checksums changes nothing.
    checked = Training(base, tmp_path / "checked", CONFIGS[method].model_copy(update={"check_weights": True}))
    assert checked.run(3).history.rows == rows
    assert_same(checked.weights(), training.weights())


class StaleEngine(TransformersEngine):
    """Forgets the second exchange."""

    def update_weights(self, weights: Any, *, version: int) -> None:
        if version != 2:
            super().update_weights(weights, version=version)


def test_nothing_is_learned_from_completions_of_other_weights(base: Path, tmp_path: Path) -> None:
    training = Training(base, tmp_path, CONFIGS["grpo"])
    training.engine = StaleEngine
    with pytest.raises(StageError, match=r"sampled with weights of version 1 in place of 2"):
        training.run(4)
    # The checkpoint is that of the last batch that was learned from.
    training.engine = TransformersEngine
    undisturbed = Training(base, tmp_path / "undisturbed", CONFIGS["grpo"])
    assert training.run(4).history.rows == undisturbed.run(4).history.rows
    assert_same(training.weights(), undisturbed.weights())


class BrokenEngine(TransformersEngine):
    """Says that it has the new weights, but keeps a layer of the old ones."""

    broken: ClassVar[int] = 2

    def update_weights(self, weights: Any, *, version: int) -> None:
        old = {name: value.clone() for name, value in self._model.named_parameters()}
        mixed = ((name, old[name] if version == self.broken and ".1.mlp.up" in name else value) for name, value in weights)
        super().update_weights(mixed, version=version)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_layer_that_was_not_exchanged_is_found_when_checksums_are_asked_for(base: Path, tmp_path: Path, method: str) -> None:
    training = Training(base, tmp_path / "checked", CONFIGS[method].model_copy(update={"check_weights": True}))
    training.engine = BrokenEngine
    with pytest.raises(StageError, match=r"check_weights: .* are not the policy's of version 2 in layer 1"):
        training.run(4)
    unchecked = Training(base, tmp_path / "plain", CONFIGS[method])
    unchecked.engine = BrokenEngine
    assert unchecked.run(3).metrics["rollouts"] == 3
