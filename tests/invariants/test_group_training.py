"""Training on groups: what must not change its result, which completions it learns from, and that it learns."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import online_workshop
import pytest
import torch
from online_workshop import SMALL, TEXTS, assert_same, gradients

from align.config.online import GroupTraining
from align.engines.transformers_engine import TransformersEngine
from align.errors import Interrupted
from align.testing import tiny_causal_lm
from align.training.online.advantage import GroupAdvantage

pytestmark = pytest.mark.slow


class Grouped(GroupAdvantage, GroupTraining):
    """The settings of a training on groups, without those of its stage."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("groups") / "base", texts=TEXTS, seed=2)


class HalfEnd(TransformersEngine):
    """Says of every second completion that it ended by itself, as a random model's hardly ever does."""

    def generate(self, requests: Any, settings: Any) -> Any:
        groups = super().generate(requests, settings)
        for group in groups:
            for completion in group[::2]:
                object.__setattr__(completion, "finish_reason", "stop")
        return groups


class Training(online_workshop.Training):
    """A training on groups that can be stopped and started again."""

    def __init__(self, base: Path, work: Path, **changes: Any) -> None:
        super().__init__(base, work, Grouped(**{**SMALL, "group_size": 4, "truncated": "score", **changes}))


# Of two completions, both often score the same.
EVERYTHING: dict[str, Any] = {
    "group_size": 2, "kl_coef": 0.05, "refill_limit": 1, "truncated": "mask", "ratio_level": "sequence"
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    training = Training(base, tmp_path_factory.mktemp("undisturbed"), **EVERYTHING)
    training.engine = HalfEnd
    return training, training.run(3)


@pytest.mark.parametrize("updates", [2, 3])
def test_a_resumed_training_gives_the_same_bytes(
    base: Path, tmp_path: Path, undisturbed: Any, updates: int, updates_made: list[bool]
) -> None:
    """Also where prompts were replaced before the stop, and between two updates of a rollout batch."""
    training = Training(base, tmp_path, **EVERYTHING)
    training.engine = HalfEnd
    with pytest.raises(Interrupted):
        training.run(3, stop=lambda done: signal.SIGINT if len(updates_made) >= updates else None)
    assert len(updates_made) == updates
    result = training.run(3)
    assert_same(training.weights(), undisturbed[0].weights())
    assert result.history.rows == undisturbed[1].history.rows
    without_clocks = {"seconds", "sync_share", "episodes_per_second"}
    assert {k: v for k, v in result.metrics.items() if k not in without_clocks} == {
        k: v for k, v in undisturbed[1].metrics.items() if k not in without_clocks
    }


def test_what_is_counted(undisturbed: Any) -> None:
    metrics, rows = undisturbed[1].metrics, undisturbed[1].history.rows
    assert metrics["replaced_groups"] > 0
    assert metrics["scored_completions"] == 3 * 16 + 2 * metrics["replaced_groups"]
    # Every second completion was cut, and is not learned from.
    assert [row["rollout/truncated_masked"] for row in rows] == [0.5] * 3
    assert 0 < metrics["truncated_completions"] <= 24
    assert metrics["tokens"] < metrics["scored_tokens"]
    assert all({"loss/kl_avg", "objective/kl"} <= row.keys() for row in rows)
    assert rows[0]["objective/kl"] == rows[0]["loss/kl_avg"] * 0 and rows[2]["objective/kl"] != 0
    assert all(0 < row["zero_variance_groups"] < 1 for row in rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_aggregation": "sequences", "ratio_level": "sequence", "kl_coef": 0.05},
        {"loss_aggregation": "constant", "advantage_baseline": "leave_one_out", "kl_in": "reward", "kl_coef": 0.05},
    ],
    ids=["sequences", "constant"],
)
def test_accumulated_gradients_are_those_of_one_large_batch(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = gradients(Training(base, tmp_path / "whole", micro_batch_tokens=100_000, mini_batch_size=16, **changes))
    cut = gradients(Training(base, tmp_path / "cut", micro_batch_tokens=60, mini_batch_size=16, **changes))
    largest = max(float(grad.abs().max()) for grad in whole.values())
    assert largest > 1e-4
    for name, grad in whole.items():
        assert float((grad - cut[name]).abs().max()) < 2e-6 * max(largest, 1), name


def test_equal_scores_teach_nothing_and_are_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = {"type": "length", "name": "any", "max_characters": 10_000}
    monkeypatch.setattr(online_workshop, "RULES", {"rules": [rule]})
    for number, limit in enumerate((0, 2)):
        training = Training(base, tmp_path / str(number), refill_limit=limit)
        before = {name: value.clone() for name, value in training.parts(1)[0].policy.named_parameters()}
        result = training.run(1)
        (row,) = result.history.rows
        assert (row["zero_variance_groups"], row["policy/grad_norm"]) == (1.0, 0.0)
        assert result.metrics["scored_completions"] == 16 * (1 + limit)
        assert_same(training.weights(), {f"policy.{name}": value for name, value in before.items()})
        assert [note.partition(" is ")[0] for note in training.notes] == ["zero_variance_groups"]


def test_nothing_is_learned_where_all_completions_are_cut(base: Path, tmp_path: Path) -> None:
    training = Training(base, tmp_path, truncated="mask", max_completion_tokens=2)
    (row,) = training.run(1).history.rows
    assert (row["rollout/truncated_masked"], row["updates"]) == (1.0, 0)
    assert training.notes[-1].startswith("rollout/truncated_masked is 1 of the completions in rollout batch 1, above 0.5")
    training.config = training.config.model_copy(update={"truncated": "score"})
    training.work = tmp_path / "scored"
    (row,) = training.run(1).history.rows
    assert row["updates"] == 4 and "rollout/truncated_masked" not in row


def test_a_reference_is_in_memory_only_where_the_kl_is_measured(base: Path, tmp_path: Path) -> None:
    for changes, measured in (({}, False), ({"kl_coef": 0.1}, True), ({"kl_limit": 5.0}, True)):
        training = Training(base, tmp_path / str(changes), **changes)
        assert training.config.needs_reference is measured
        models, _ = training.parts(1)
        assert (models.reference is not None) is measured and models.value is None
    training = Training(base, tmp_path / "none")
    (row,) = training.run(1).history.rows
    assert not {"objective/kl", "objective/kl_coef", "objective/rlhf_reward", "loss/kl_avg"} & row.keys()


def test_it_learns_what_is_rewarded(base: Path, tmp_path: Path) -> None:
    rows = Training(base, tmp_path, rollout_batch_size=32).run(12).history.rows
    scores = [row["objective/scores"] for row in rows]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.3


def test_a_completion_with_another_probability_in_the_engine_is_left_out(base: Path, tmp_path: Path) -> None:
    class Wrong(TransformersEngine):
        """Reports the first completion of a prompt as far less likely than it is."""

        def generate(self, requests: Any, settings: Any) -> Any:
            groups = super().generate(requests, settings)
            for group in groups:
                object.__setattr__(group[0], "logps", [logp - 1.0 for logp in group[0].logps or []])
            return groups

    training = Training(base, tmp_path)
    training.engine = Wrong
    (row,) = training.run(1).history.rows
    assert 0 < row["rollout/importance_masked"] <= 0.5
    assert torch.isfinite(torch.tensor(row["policy/grad_norm"]))
