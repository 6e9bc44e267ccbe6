"""Samples show exactly what training would see: the same tokens, and the loss on exactly the completion's."""

from __future__ import annotations

import pytest
from dataset_rows import instruction, pair

from align.data.encoding import encode_instructions, encode_preferences
from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.records import Prompt, TextRow
from align.report.dataset.tokens import TrainingView
from align.rows import INSTRUCTIONS, PREFERENCES, PROMPTS, TEXT

KOREAN = "안녕 👩‍👩‍👧  뷁\n\tworld "


def test_pieces_give_the_rendered_text_back(training: TrainingView, chat_format: ChatFormat) -> None:
    row = instruction(1, completion=KOREAN, prompt=KOREAN)
    (sequence,) = training.sequences(INSTRUCTIONS, row)
    prompt = "".join(piece.text for piece in sequence.pieces if not piece.trained)
    completion = "".join(piece.text for piece in sequence.pieces if piece.trained)
    assert prompt == chat_format.prompt_text(row.prompt)
    assert completion == KOREAN + chat_format.closing


def test_the_loss_is_shown_on_the_tokens_that_training_takes_it_on(training: TrainingView, chat_format: ChatFormat) -> None:
    row = instruction(1, completion=KOREAN)
    encoded = encode_instructions([row], chat_format, max_tokens=1000, on_invalid="error", where=str).rows[0]
    (sequence,) = training.sequences(INSTRUCTIONS, row)
    assert sequence.trained_tokens == len(encoded.completion_token_ids)
    assert sequence.tokens == len(encoded.prompt_token_ids) + len(encoded.completion_token_ids)


def test_both_sides_of_a_pair_are_shown_behind_the_same_prompt(training: TrainingView, chat_format: ChatFormat) -> None:
    row = pair(1, chosen="the answer is 뷁", rejected="no")
    encoded = encode_preferences([row], chat_format, max_tokens=1000, on_invalid="error", where=str).rows[0]
    chosen, rejected = training.sequences(PREFERENCES, row)
    assert [chosen.name, rejected.name] == ["chosen", "rejected"]
    assert [chosen.trained_tokens, rejected.trained_tokens] == [len(encoded.chosen_token_ids), len(encoded.rejected_token_ids)]
    assert [piece for piece in chosen.pieces if not piece.trained] == [piece for piece in rejected.pieces if not piece.trained]


def test_bytes_of_one_letter_are_one_piece_of_several_tokens(training: TrainingView) -> None:
    (sequence,) = training.sequences(INSTRUCTIONS, instruction(1, completion="뷁"))
    letter = next(piece for piece in sequence.pieces if piece.text == "뷁")
    assert (letter.tokens, letter.trained, letter.special) == (3, True, False)


def test_control_tokens_are_marked_and_the_last_one_is_trained_on(training: TrainingView) -> None:
    (sequence,) = training.sequences(INSTRUCTIONS, instruction(1))
    special = [(piece.text, piece.trained) for piece in sequence.pieces if piece.special]
    assert special == [("<|im_start|>", False), ("<|im_end|>", False), ("<|im_start|>", False), ("<|im_end|>", True)]


def test_prompts_and_texts_are_shown_without_a_trained_token(training: TrainingView) -> None:
    (prompt,) = training.sequences(PROMPTS, Prompt(id="1", prompt=pair(1).prompt))
    (text,) = training.sequences(TEXT, TextRow(id="1", text="a b"))
    assert (prompt.name, prompt.trained_tokens, text.name, text.trained_tokens) == ("prompt", 0, "text", 0)
    assert "".join(piece.text for piece in text.pieces) == "a b"


def test_lengths_are_those_of_training_and_the_longer_side_counts(training: TrainingView, chat_format: ChatFormat) -> None:
    rows = [pair(1, chosen="the answer is yes", rejected="no"), pair(2, chosen="x", rejected="y" * 60)]
    facts = training.lengths(PREFERENCES, rows)
    encoded = encode_preferences(rows, chat_format, max_tokens=1000, on_invalid="error", where=str).rows
    whole = [len(row.prompt_token_ids) + max(len(row.chosen_token_ids), len(row.rejected_token_ids)) for row in encoded]
    assert sorted(facts.rows.counts.elements()) == sorted(whole)
    assert facts.over_limit == sum(tokens > 40 for tokens in whole) == 1


def test_rows_that_the_template_refuses_are_counted_by_reason(training: TrainingView) -> None:
    bad = instruction(1, completion="stop <|im_end|> here")
    facts = training.lengths(INSTRUCTIONS, [bad, instruction(2)])
    assert (facts.refused, facts.rows.rows, facts.sampled) == ({"contains_eos": 1}, 1, 2)
    with pytest.raises(TemplateProblem, match="end-of-sequence"):
        training.sequences(INSTRUCTIONS, bad)
