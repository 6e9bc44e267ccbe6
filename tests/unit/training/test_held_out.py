"""Splitting pairs by prompt, and what lengths alone would have guessed."""

from __future__ import annotations

import random

from align.data.encoding import EncodedPreference
from align.records import Message, Preference
from align.training.pairwise.held_out import length_only_accuracy
from align.training.pairwise.split import Split, held_out_records


def test_a_prompt_is_on_one_side_whatever_the_order() -> None:
    def held_out(numbers: list[int], seed: int) -> set[int]:
        prompts = ([Message(role="user", content=f"prompt {number % 50}")] for number in numbers)
        rows = [Preference(id="r", prompt=prompt, chosen="a", rejected="b") for prompt in prompts]
        return {number for number, is_out in zip(numbers, held_out_records(rows, share=0.3, seed=seed), strict=True) if is_out}

    numbers = list(range(300))
    found = held_out(numbers, seed=1)
    assert not {number % 50 for number in found} & {number % 50 for number in set(numbers) - found}
    assert 5 <= len({number % 50 for number in found}) <= 25
    random.Random(0).shuffle(numbers)
    assert held_out(numbers, seed=1) == found
    assert held_out(numbers, seed=2) != found


def lengths(*pairs: tuple[int, int]) -> list[EncodedPreference]:
    return [EncodedPreference(str(i), [1], [2] * chosen, [3] * rejected) for i, (chosen, rejected) in enumerate(pairs)]


def test_length_only_takes_the_direction_of_the_training_pairs() -> None:
    # Training: the longer side was chosen in 2 of 3. Held out: in 1 of 4, and one tie: (1 + 0.5) / 4.
    held_out = lengths((5, 1), (1, 5), (2, 5), (3, 3))
    assert length_only_accuracy(Split(lengths((9, 1), (8, 1), (1, 2)), held_out)) == 0.375
    # Training: the shorter side was chosen in 2 of 3, so the opposite rule: 1 - 0.375.
    assert length_only_accuracy(Split(lengths((1, 9), (1, 8), (2, 1)), held_out)) == 0.625
