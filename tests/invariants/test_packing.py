"""Packing is exact: the same losses and gradients as every sample alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.losses.logps import IGNORED_LABEL
from align.models.load import load_causal_lm
from align.training.packing import PackedCollator, TrainingSample, build_row, pack_first_fit, pack_rows

SAMPLES = [
    TrainingSample([5, 6, 7], [8, 9, 2]),
    TrainingSample([11], [12, 2]),
    TrainingSample([20, 21, 22, 23], [24, 2]),
    TrainingSample([30, 31], [32, 33, 34, 35, 2]),
    TrainingSample([], [40, 41, 2]),
]


def gradients_of(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed token loss over all batches, and its gradients."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_packed_rows_give_the_losses_and_gradients_of_single_samples(project_template: Path) -> None:
    model = load_causal_lm(project_template / "base").train()
    collate = PackedCollator(pad_token_id=0)
    alone = gradients_of(model, [collate([build_row([sample])]) for sample in SAMPLES])
    rows = pack_first_fit([len(sample) for sample in SAMPLES], 12)
    assert len(rows) < len(SAMPLES)
    packed = gradients_of(model, [collate([build_row([SAMPLES[index] for index in row]) for row in rows])])
    assert packed[0] == pytest.approx(alone[0], rel=1e-6)
    for name, gradient in alone[1].items():
        scale = gradient.abs().max()
        assert (packed[1][name] - gradient).abs().max() <= 1e-5 * scale + 1e-7, name


def test_samples_that_saw_each_other_would_be_noticed(project_template: Path) -> None:
    """The test above can fail: with positions that run on, samples attend to each other and the loss is another."""
    model = load_causal_lm(project_template / "base").train()
    collate = PackedCollator(pad_token_id=0)
    alone, _ = gradients_of(model, [collate([build_row([sample])]) for sample in SAMPLES])
    leaking = collate([build_row(SAMPLES)])
    leaking["position_ids"] = torch.arange(leaking["input_ids"].shape[1])[None]
    assert abs(gradients_of(model, [leaking])[0] - alone) > 1e-2


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120))
@settings(max_examples=200, deadline=None)
def test_every_sample_is_in_exactly_one_row_that_holds_it(lengths: list[int], capacity: int) -> None:
    rows = pack_first_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    # Two rows that would fit into one were not both opened.
    fills = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(fills) < 2 or fills[0] + fills[1] > capacity


def naive_first_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing as its definition says: every row is tried in turn."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fitting = (row for row in rows if sum(lengths[other] for other in row) + lengths[index] <= capacity)
        row = next(fitting, None)
        if row is None:
            rows.append([index])
        else:
            row.append(index)
    return rows


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120))
@settings(max_examples=200, deadline=None)
def test_rows_are_those_of_first_fit_decreasing(lengths: list[int], capacity: int) -> None:
    assert pack_first_fit(lengths, capacity) == naive_first_fit(lengths, capacity)


def test_many_samples_are_packed_in_seconds() -> None:
    """Trying every row for every sample would take many minutes."""
    generator = random.Random(0)
    lengths = [generator.randint(20, 1000) for _ in range(200_000)]
    started = time.process_time()
    rows = pack_first_fit(lengths, 2048)
    assert time.process_time() - started < 20
    assert sum(lengths) / (len(rows) * 2048) > 0.99


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120), st.integers(1, 120))
@settings(max_examples=100, deadline=None)
def test_rows_above_the_limit_hold_one_sample(lengths: list[int], capacity: int, limit: int) -> None:
    rows = pack_rows(lengths, capacity, limit)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= min(capacity, limit) for row in rows if len(row) > 1)
    assert pack_rows(lengths, capacity, None) == pack_first_fit(lengths, capacity)


def test_a_sample_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 1 has 9 tokens, a row holds 8"):
        pack_first_fit([3, 9], 8)


def test_the_first_token_of_a_sample_is_never_a_label() -> None:
    row = build_row([SAMPLES[4], SAMPLES[1]])
    assert row["labels"] == [IGNORED_LABEL, 41, 2, IGNORED_LABEL, 12, 2]
    assert row["position_ids"] == [0, 1, 2, 0, 1, 2]
