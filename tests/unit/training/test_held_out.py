"""Splitting pairs by prompt, and what lengths alone would have guessed."""

from __future__ import annotations

import random

from align.data.encoding import EncodedPreference
from align.records import Message, Preference
from align.training.pairwise.held_out import length_only_accuracy
from align.training.pairwise.split import Split, split_by_prompt


def pair(number: int, prompt: str) -> tuple[Preference, EncodedPreference]:
    row = Preference(id=f"r{number}", prompt=[Message(role="user", content=prompt)], chosen="a", rejected="b")
    return row, EncodedPreference(f"r{number}", [1], [2], [3])


def test_a_prompt_is_on_one_side_whatever_the_order() -> None:
    rows = [pair(number, f"prompt {number % 50}") for number in range(300)]
    split = split_by_prompt([r for r, _ in rows], [e for _, e in rows], share=0.3, seed=1)
    prompt_of = {record.id: record.prompt[0].content for record, _ in rows}
    train, held_out = ({prompt_of[row.id] for row in side} for side in (split.train, split.held_out))
    assert not train & held_out
    assert 5 <= len(held_out) <= 25
    assert len(split.train) + len(split.held_out) == 300
    random.Random(0).shuffle(rows)
    again = split_by_prompt([r for r, _ in rows], [e for _, e in rows], share=0.3, seed=1)
    assert {row.id for row in again.held_out} == {row.id for row in split.held_out}
    other = split_by_prompt([r for r, _ in rows], [e for _, e in rows], share=0.3, seed=2)
    assert {row.id for row in other.held_out} != {row.id for row in split.held_out}


def lengths(*pairs: tuple[int, int]) -> list[EncodedPreference]:
    return [EncodedPreference(str(i), [1], [2] * chosen, [3] * rejected) for i, (chosen, rejected) in enumerate(pairs)]


def test_length_only_takes_the_direction_of_the_training_pairs() -> None:
    # Training: the longer side was chosen in 2 of 3. Held out: in 1 of 4, and one tie: (1 + 0.5) / 4.
    held_out = lengths((5, 1), (1, 5), (2, 5), (3, 3))
    assert length_only_accuracy(Split(lengths((9, 1), (8, 1), (1, 2)), held_out)) == 0.375
    # Training: the shorter side was chosen in 2 of 3, so the opposite rule: 1 - 0.375.
    assert length_only_accuracy(Split(lengths((1, 9), (1, 8), (2, 1)), held_out)) == 0.625
