"""The largest pass of a training on packed rows."""

from __future__ import annotations

from align.config.sections import Optimization
from align.training.needs import SAMPLED_ROWS, RowLength, Setting, sample_batch


def tokens(lengths: list[RowLength] | None) -> int:
    config = Optimization(learning_rate=1e-3, batch_size=8)
    return sample_batch(config, Setting(lengths, 4096, 0, "cpu"), max_tokens=100, packing=True).tokens


def test_a_pass_has_no_more_packed_rows_than_there_are() -> None:
    short = RowLength(10, (20,))
    assert tokens(None) == tokens([short] * SAMPLED_ROWS) == 800
    # 150 tokens make three rows of 100 at most, one sample a single row.
    assert tokens([short] * 5) == 300
    assert tokens([short]) == 100
    assert tokens([RowLength(10, (90,))] * 20) == 800
