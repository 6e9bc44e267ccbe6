"""Advice about a recipe's keys, for somebody who has written options."""

from __future__ import annotations

import pytest

from align.cli.stage import option_words
from align.errors import DataError, StageError
from align.stages.registry import STAGES
from align.written import advise_options, as_options, for_options, rewording

OPTIONS = option_words(STAGES["sft"].config_type)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Lower learning_rate, raise warmup_ratio.", "Lower --learning-rate, raise --warmup-ratio."),
        ("set precision: float32, or look", "set --precision float32, or look"),
        ("Set packing: false.", "Set --no-packing."),
        ("Leave peft out.", "Leave --peft out."),
        ("`chat: {template: chatml}`, which", "`--chat '{template: chatml}'`, which"),
        ("columns: {prompt: Q, completion: A}", "--columns prompt=Q --columns completion=A"),
        ("align stage sft: stages.sft.data: is missing", "align stage sft: --data: is missing"),
        ("--num-epochs 1.5: stages.sft.num_epochs: a number", "--num-epochs 1.5: a number"),
        ("--chat {thinking: never}: inputs.model.chat.thinking: one of", "--chat {thinking: never}: thinking: one of"),
        ("--data x.jsonl: inputs.data.path: there is no file", "--data x.jsonl: there is no file"),
    ],
)
def test_keys_become_options(text: str, told: str) -> None:
    assert as_options(text, OPTIONS) == told


@pytest.mark.parametrize(
    "text",
    [
        "the model and its data: 3 rows",
        "/tmp/max_tokens/rows.jsonl and max_tokens.jsonl",
        "'batch_size' is no column",
        "--max-tokens 64 is too few",
    ],
)
def test_other_words_stay(text: str) -> None:
    assert as_options(text, OPTIONS) == text


def test_errors_of_a_context_are_reworded_and_others_are_not() -> None:
    with pytest.raises(StageError) as raised, advise_options(OPTIONS):
        assert for_options()
        assert rewording()("raise max_tokens") == "raise --max-tokens"
        raise StageError("max_tokens is 64", hint="Raise max_tokens.")
    assert (raised.value.message, raised.value.hint) == ("--max-tokens is 64", "Raise --max-tokens.")
    with pytest.raises(DataError, match="max_tokens") as other:
        raise DataError("max_tokens")
    assert (other.value.hint, for_options(), rewording()("max_tokens")) == (None, False, "max_tokens")
