"""The passes of a training that may need the most memory."""

from __future__ import annotations

from typing import Any

import pytest

from align.config.sections import Optimization, PairwiseOptimization
from align.runtime.device import Device
from align.training.needs import SAMPLED_ROWS, Batch, RowLength, Setting, pair_passes, sample_passes


def tokens(lengths: list[RowLength] | None) -> int:
    config = Optimization(learning_rate=1e-3, batch_size=8)
    (found,) = sample_passes(config, Setting(lengths, 4096, 0, "cpu"), max_tokens=100, packing=True)
    return found.tokens


def test_a_pass_has_no_more_packed_rows_than_there_are() -> None:
    short = RowLength(10, (20,))
    assert tokens(None) == tokens([short] * SAMPLED_ROWS) == 800
    # 150 tokens make three rows of 100 at most, one sample a single row.
    assert tokens([short] * 5) == 300
    assert tokens([short]) == 100
    assert tokens([RowLength(10, (90,))] * 20) == 800


def of_pairs(lengths: list[RowLength] | None, device: Device = "cpu", **settings: Any) -> list[Batch]:
    config = PairwiseOptimization(learning_rate=1e-3, max_tokens=1000, **settings)
    return list(pair_passes(config, Setting(lengths, 4096, 0, device)))


def pair(total: int) -> RowLength:
    """A third each of prompt, chosen and rejected."""
    return RowLength(total // 3, (total // 3, total // 3))


def test_a_pass_over_pairs_counts_their_own_lengths_where_all_are_known() -> None:
    (one,) = of_pairs([pair(300), pair(600)], batch_size=2)
    # No mask of pairs of tokens at this length, so no padding; each prompt is computed again for the rejected side.
    assert (one.tokens, one.row_tokens, one.is_masked, one.is_split) == (900, 600, False, True)
    assert one.copied_share == pytest.approx(2 / 3)
    assert one.targets == 600
    # On a GPU without FlashAttention these rows have a mask, and padding: both pairs share one of 1,024 tokens.
    (masked,) = of_pairs([pair(300), pair(600)], "cuda", batch_size=2)
    assert (masked.tokens, masked.is_masked, masked.is_split, masked.copied_share) == (1024, True, False, 0.0)
    # Of more rows than are known, some are as long as the longest.
    (sampled,) = of_pairs([pair(300), pair(600)] * (SAMPLED_ROWS // 2), batch_size=3)
    assert sampled.tokens == 3 * 600
    # Rows that are not there yet may be all completion.
    (unknown,) = of_pairs(None, batch_size=2)
    assert (unknown.tokens, unknown.targets) == (2 * 2000, 2 * 2000)


def test_the_longest_pass_meets_no_gradients_and_in_a_short_training_no_moments() -> None:
    lengths = [pair(300 + 3 * number) for number in range(8)]

    def state(**settings: Any) -> list[tuple[int, bool, bool]]:
        return [(batch.tokens, batch.accumulates, batch.has_moments) for batch in of_pairs(lengths, **settings)]

    # Two optimizer batches of two passes each, the longest first.
    two = [(639, False, False), (627, True, False), (615, False, True), (603, True, True)]
    assert state(batch_size=4, micro_batch_size=2) == two
    # In a second epoch, and among more batches, the longest pairs come after the first step.
    later = [(tokens, accumulates, True) for tokens, accumulates, _ in two]
    assert state(batch_size=4, micro_batch_size=2, num_epochs=2) == later
    assert all(has_moments for _, _, has_moments in state(batch_size=2))
    # A single step.
    assert state(batch_size=8) == [(sum(row.total for row in lengths), False, False)]
