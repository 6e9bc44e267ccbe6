"""PPO: what must not change its result, and that it does what it is for."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, ClassVar

import online_workshop
import pytest
import torch
from online_workshop import SMALL, TEXTS, assert_same, assert_tokens_count_once, gradients

from align.config.online import RewardTraining, ValueOptimization
from align.engines.transformers_engine import TransformersEngine
from align.errors import Interrupted, StageError
from align.runtime.events import Saving
from align.testing import tiny_causal_lm
from align.training.online import experience as experience_module
from align.training.online import learner as learner_module
from align.training.online.advantage import Gae
from align.training.online.learner import PolicyLearner
from align.training.online.models import policy_logps

pytestmark = pytest.mark.slow


class Ppo(RewardTraining, Gae, ValueOptimization):
    """The settings of a PPO training, without those of its stage."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("ppo") / "base", texts=TEXTS, seed=2)


class Training(online_workshop.Training):
    """A PPO training that can be stopped and started again."""

    def __init__(self, base: Path, work: Path, *, precision: str = "float32", **changes: Any) -> None:
        super().__init__(base, work, Ppo(**{**SMALL, "value_learning_rate": 1e-2, **changes}), precision=precision)


def test_checkpoints_by_time_but_none_after_the_last_batch(base: Path, tmp_path: Path) -> None:
    for minutes, expected in ((1e-9, ["checkpoint-1", "checkpoint-2"]), (10, [])):
        training = Training(base, tmp_path / str(minutes), checkpoint_steps=None, checkpoint_minutes=minutes)
        training.run(3)
        assert sorted(path.name for path in training.work.glob("checkpoints/*")) == expected
        assert [event.seconds is None for event in training.of(Saving)] == [True, False] * len(expected)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(
    base: Path, tmp_path_factory: pytest.TempPathFactory, precision: str
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    training = Training(base, tmp_path_factory.mktemp("undisturbed"), precision=precision)
    result = training.run(4)
    return training.weights(), result.history.rows


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_resume_is_bit_identical(base: Path, tmp_path: Path, undisturbed: Any, precision: str, stopped_after: int) -> None:
    weights, rows = undisturbed
    training = Training(base, tmp_path, precision=precision)
    with pytest.raises(Interrupted, match=f"Stopped after {stopped_after} of 4 rollout batches"):
        training.run(4, stop=lambda done: signal.SIGINT if done == stopped_after else None)
    result = training.run(4)
    assert training.notes == [f"resuming after rollout batch {stopped_after}"]
    assert_same(training.weights(), weights)
    assert result.history.rows == rows
    assert_tokens_count_once(result, training)


@pytest.mark.parametrize(("updates", "rollouts", "rest"), [(3, 0, 3), (6, 1, 2)])
def test_a_stop_between_two_updates_is_bit_identical_too(
    base: Path, tmp_path: Path, undisturbed: Any, precision: str, updates: int, rollouts: int, rest: int, updates_made: list[bool]
) -> None:
    training = Training(base, tmp_path, precision=precision)
    with pytest.raises(Interrupted, match=f"Stopped after {rollouts} of 4 rollout batches and {rest} updates from the next"):
        training.run(4, stop=lambda done: signal.SIGINT if len(updates_made) >= updates else None)
    assert len(updates_made) == updates
    training.engine = SleepingEngine
    result = training.run(4)
    assert training.notes == [f"resuming after rollout batch {rollouts} and {rest} updates"]
    assert len(updates_made) == 16
    assert_same(training.weights(), undisturbed[0])
    assert result.history.rows == undisturbed[1]
    assert_tokens_count_once(result, training)


def test_a_damaged_checkpoint_is_named_and_not_used(base: Path, tmp_path: Path, undisturbed: Any, precision: str) -> None:
    training = Training(base, tmp_path, precision=precision)
    with pytest.raises(Interrupted):
        training.run(4, stop=lambda done: signal.SIGTERM if done == 3 else None)
    moments = tmp_path / "checkpoints" / "checkpoint-3" / "policy-optimizer.safetensors"
    content = bytearray(moments.read_bytes())
    content[-5] ^= 1
    moments.write_bytes(bytes(content))
    training.run(4)
    assert "checkpoint-3 is not used" in training.notes[0]
    assert training.notes[1] == "resuming after rollout batch 2"
    assert_same(training.weights(), undisturbed[0])


def test_the_same_seed_gives_the_same_bytes(base: Path, tmp_path: Path, undisturbed: Any, precision: str) -> None:
    again = Training(base, tmp_path, precision=precision, checkpoint_steps=100)
    again.run(4)
    assert_same(again.weights(), undisturbed[0])


class SleepingEngine(TransformersEngine):
    """Loses its weights while it sleeps, as vLLM on a GPU does."""

    happened: ClassVar[list[str]] = []
    asleep = False

    def sleep(self) -> None:
        self.happened.append("sleep")
        self.asleep = True
        for parameter in self._model.parameters():
            parameter.data.fill_(torch.nan)

    def wake_up(self) -> None:
        self.happened.append("wake")
        self.asleep = False

    def update_weights(self, weights: Any, *, version: int) -> None:
        assert not self.asleep
        self.happened.append("weights")
        super().update_weights(weights, version=version)

    def generate(self, requests: Any, settings: Any) -> Any:
        assert not self.asleep
        self.happened.append("sample")
        return super().generate(requests, settings)


def test_the_engine_sleeps_while_the_policy_learns(
    base: Path, tmp_path: Path, undisturbed: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened, update = SleepingEngine.happened, PolicyLearner.update
    happened.clear()

    def learn(self: PolicyLearner, *args: Any, **kwargs: Any) -> Any:
        happened.append("learn")
        if happened.count("learn") == 3:
            raise StageError("the machine is on fire")
        return update(self, *args, **kwargs)

    monkeypatch.setattr(PolicyLearner, "update", learn)
    training = Training(base, tmp_path, precision=precision)
    training.engine = SleepingEngine
    first, next_one = ["sample", "sleep", "learn"], ["wake", "weights", "sample", "sleep", "learn"]
    with pytest.raises(StageError, match="on fire"):
        training.run(4)
    assert happened == [*first, *next_one, *next_one]
    # The engine of the next attempt is awake; it needs the weights of the checkpoint.
    training.run(4)
    assert happened == [*first, *next_one, *next_one, "weights", *first, *next_one]
    assert_same(training.weights(), undisturbed[0])


@pytest.mark.parametrize("micro_batch_tokens", [1, 60, 150])
def test_accumulated_gradients_are_those_of_one_large_batch(base: Path, tmp_path: Path, micro_batch_tokens: int) -> None:
    whole = gradients(Training(base, tmp_path / "whole", micro_batch_tokens=100_000, mini_batch_size=16))
    cut = gradients(Training(base, tmp_path / "cut", micro_batch_tokens=micro_batch_tokens, mini_batch_size=16))
    assert whole.keys() == cut.keys()
    largest = max(float(grad.abs().max()) for grad in whole.values())
    assert largest > 1e-4
    for name, grad in whole.items():
        assert float((grad - cut[name]).abs().max()) < 2e-6 * max(largest, 1), name


def test_out_of_memory_halves_the_passes_and_changes_nothing_but_rounding(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halved = Training(base, tmp_path / "whole"), Training(base, tmp_path / "halved")
    rows = whole.run(1).history.rows
    expected, failed = whole.weights(), []

    def fail_above(tokens: int, compute: Any) -> Any:
        def fail_or_compute(model: Any, batch: Any, settings: Any) -> Any:
            result = compute(model, batch, settings)
            if batch.input_ids.numel() > tokens:
                failed.append(batch.input_ids.numel())
                raise torch.OutOfMemoryError("CUDA out of memory")
            return result

        return fail_or_compute

    # Of the learner's policy, whose pass comes after the value model's; and of the pass before the updates.
    monkeypatch.setattr(learner_module, "policy_logps", fail_above(100, policy_logps))
    monkeypatch.setattr(experience_module, "policy_logps", fail_above(300, policy_logps))
    found = halved.run(1).history.rows
    assert len(failed) >= 2
    assert halved.pass_size.size <= 100
    differences = torch.cat([(halved.weights()[name] - value).abs().flatten() for name, value in expected.items()])
    # Adam divides tiny gradients by tiny roots: a step is 3e-3, and only the mean shows that it is rounding.
    assert differences.mean() < 1e-5
    for row, other in zip(rows, found, strict=True):
        assert other == pytest.approx(row, rel=1e-3, abs=1e-4)
    monkeypatch.setattr(learner_module, "policy_logps", fail_above(0, policy_logps))
    with pytest.raises(StageError, match="tokens in a forward pass, the fewest"):
        Training(base, tmp_path / "none").run(1)


def test_at_the_start_policy_and_reference_are_one(undisturbed: Any, precision: str) -> None:
    first = undisturbed[1][0]
    assert first["objective/kl"] == 0.0
    # Sampler and trainer compute the same log-probabilities, one with a cache and padding on the left, the other packed. The
    # sampler computes in float32, so that a trainer in bfloat16 differs by its rounding: 2^-8 of logits up to 4.
    low, high = {"float32": (0, 1e-4), "bfloat16": (1e-4, 0.05)}[precision]
    assert low <= first["rollout/sampler_gap_max"] < high


def test_it_learns_what_is_rewarded_and_the_kl_penalty_holds_it_back(base: Path, tmp_path: Path) -> None:
    free = Training(base, tmp_path / "free", rollout_batch_size=32, kl_coef=0.0)
    scores = [row["objective/scores"] for row in free.run(15).history.rows]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.3
    held = Training(base, tmp_path / "held", rollout_batch_size=32, kl_coef=1.0)
    rows = held.run(15).history.rows
    assert rows[-1]["objective/kl"] < 0.5 * free.run(15).history.rows[-1]["objective/kl"]


def test_the_critic_warms_up_alone(base: Path, tmp_path: Path) -> None:
    training = Training(base, tmp_path, critic_warmup_batches=2)
    rows = training.run(3).history.rows
    assert [row["objective/kl"] for row in rows] == [0.0, 0.0, 0.0]  # the third was sampled before the policy's first update
    assert "lr" not in rows[1] and rows[2]["lr"] > 0
    assert all(row["loss/value_avg"] > 0 for row in rows)


def rising_kl(base: Path, work: Path) -> tuple[int, float]:
    """A number of updates after which the KL is higher than ever before, and a limit just below it."""
    kl = [row["objective/kl"] for row in Training(base, work, kl_coef=0.0).run(7).history.rows]
    updates = next(index for index in range(2, 7) if kl[index] > 1.01 * max(kl[:index]))
    return updates, (kl[updates] + max(kl[:updates])) / 2


def test_the_kl_limit_keeps_the_policy_from_before(base: Path, tmp_path: Path) -> None:
    updates, limit = rising_kl(base, tmp_path / "free")
    limited = Training(base, tmp_path / "limited", kl_coef=0.0, kl_limit=limit)
    result = limited.run(7)
    assert result.metrics["stopped_by_kl_limit"] and result.metrics["rollouts"] == updates
    assert "is above kl_limit" in limited.notes[-1]
    before = Training(base, tmp_path / "before", kl_coef=0.0)
    before.run(updates - 1)
    policy = {name: value for name, value in before.weights().items() if name.startswith("policy")}
    assert_same({name: value for name, value in limited.weights().items() if name.startswith("policy")}, policy)


def test_the_last_updates_are_measured_too(base: Path, tmp_path: Path) -> None:
    updates, limit = rising_kl(base, tmp_path / "free")
    limited = Training(base, tmp_path / "limited", kl_coef=0.0, kl_limit=limit)
    assert limited.run(updates).metrics["stopped_by_kl_limit"]  # it was the last round of updates that led over it


def test_a_limit_below_the_noise_is_an_error(base: Path, tmp_path: Path) -> None:
    training = Training(base, tmp_path)
    training.config = training.config.model_copy(update={"kl_limit": -1.0})
    with pytest.raises(StageError, match="before the first update, above kl_limit"):
        training.run(2)


def test_updates_end_early_when_the_policy_moved_far(base: Path, tmp_path: Path) -> None:
    rows = Training(base, tmp_path, update_kl_limit=1e-7, ppo_epochs=4).run(2).history.rows
    assert rows[0]["updates"] < 8


def test_a_policy_that_moves_too_far_at_once_is_noted_once(base: Path, tmp_path: Path) -> None:
    training = Training(base, tmp_path, learning_rate=3e-2, ppo_epochs=4)
    result = training.run(2)
    largest = max(row["policy/approxkl_avg"] for row in result.history.rows)
    assert result.metrics["policy/approxkl_max"] == largest > 0.1
    assert sum(note.startswith("policy/approxkl_avg is") for note in training.notes) == 1
