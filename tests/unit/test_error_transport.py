"""Errors of a stage's process reach the runner whole: what to do is in their attributes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

import align.data.template_problems
import align.engines.open
from align.errors import AlignError, Interrupted


def _all(base: type[AlignError]) -> Iterator[type[AlignError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _all(kind)


@pytest.mark.parametrize("kind", sorted(set(_all(AlignError)), key=str))
def test_an_error_is_the_same_on_the_other_side(kind: type[AlignError]) -> None:
    error = kind("a.jsonl:3: wrong") if kind is Interrupted else kind("a.jsonl:3: wrong", hint="Fix it.")
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is kind
    assert (there.render(), vars(there)) == (error.render(), vars(error))


def test_what_is_wrong_with_a_model_is_kept() -> None:
    error = align.data.template_problems.FormatError("wrong", aspect="padding", hint="Fix it.")
    assert pickle.loads(pickle.dumps(error)).aspect == "padding"
