"""Shares of rows among processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from align.training.sharding import own_share


@given(count=st.integers(0, 200), size=st.integers(1, 16))
def test_every_row_is_in_one_share_and_shares_are_equal_to_a_row(count: int, size: int) -> None:
    shares = [list(own_share(count, rank, size)) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert max(map(len, shares)) == -(-count // size)
