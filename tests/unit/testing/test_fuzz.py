"""A slice of scripts/fuzz.py: hostile inputs are accepted, or refused by a documented error."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from align.errors import DataError
from align.testing.fuzz import TARGETS
from align.testing.fuzz.target import Counts, Finding, input_of, refusal, try_input

INPUTS = 300
SEED = 7
"""Another one than that of the committed figures."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_are_accepted_or_refused(name: str, tmp_path: Path) -> None:
    target, counts = TARGETS[name](tmp_path), Counts()
    found = [try_input(target, input_of(target, name, SEED, number), counts) for number in range(INPUTS)]
    assert [problem for problem in found if problem] == []
    # Inputs that all fail at their first byte would test nothing.
    assert counts.accepted + counts.refused.total() == INPUTS
    assert counts.accepted > 0
    assert counts.refused.total() > 0


class _Breaks:
    def make(self, random: Random) -> bytes:
        return random.randbytes(4)

    def read(self, data: bytes) -> str:
        raise KeyError(data[0])


def test_any_other_exception_is_a_finding() -> None:
    counts = Counts()
    found = try_input(_Breaks(), b"\x05abc", counts)
    assert found is not None
    assert found.startswith("KeyError: '5' at test_fuzz.py:")
    assert counts.inputs == 1


def test_an_input_follows_from_seed_and_number() -> None:
    first, again, other = (input_of(_Breaks(), "breaks", seed, 3) for seed in (1, 1, 2))
    assert first == again != other


def test_an_error_that_is_too_long_is_a_finding() -> None:
    assert refusal(DataError("a row is wrong")) == "DataError"
    with pytest.raises(Finding, match="says nothing"):
        refusal(DataError("  "))
