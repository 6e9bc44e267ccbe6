"""The loss on every assistant turn: each turn's context is exactly the prompt that it would be sampled behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from align.config.chat import ChatSettings
from align.data.encoding import EncodedInstruction, encode_instructions
from align.data.template import ChatFormat
from align.errors import DataError
from align.losses.logps import IGNORED_LABEL
from align.records import Instruction, Message
from align.testing.tiny import tiny_tokenizer
from align.training.label_guard import spans_of
from align.training.packing import TrainingSample, build_row

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# Earlier turns lose the block that the last one has: their tokens are not those that were trained on.
THINKS = TURNS.replace(
    "{{ m.content }}", "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
)
TALK = Instruction(
    id="r",
    prompt=[
        Message(role="system", content="s"),
        *(Message(role=role, content=text) for role, text in (("user", "하나"), ("assistant", "둘"), ("user", "three"))),  # type: ignore[arg-type]
    ],
    completion="four",
)


def chat_format(template: str, **settings: Any) -> ChatFormat:
    tokenizer = tiny_tokenizer(vocabulary=300)
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, settings=ChatSettings(**settings))


def encode(form: ChatFormat, records: list[Instruction], **changes: Any) -> Sequence[EncodedInstruction]:
    options: dict[str, Any] = {"max_tokens": 200, "on_invalid": "error", "every_turn": True, **changes}
    return encode_instructions(records, form, where=lambda line: "rows", **options).rows


def labels_of(row: EncodedInstruction) -> tuple[list[int], list[list[int]]]:
    built = build_row([TrainingSample(row.prompt_token_ids, row.completion_token_ids, row.earlier)])
    return built["input_ids"], spans_of(built["labels"])


def test_turns_share_a_row_and_every_label_is_an_assistant_s(tmp_path: object) -> None:
    form = chat_format(TURNS + ASK)
    (row,) = encode(form, [TALK])
    ids, spans = labels_of(row)
    assert row.turns == (2, 4)
    # The row is the conversation as the template writes it, up to the last token that is trained on.
    whole = [*TALK.prompt, Message(role="assistant", content="four")]
    assert ids == form.tokenize([form._render(whole, add_generation_prompt=False).rstrip("\n")])[0]
    assert [form.decode_completion(span) for span in spans] == ["둘<|im_end|>", "four<|im_end|>"]


def test_each_turn_is_trained_behind_the_prompt_that_it_is_sampled_behind() -> None:
    form = chat_format(TURNS + ASK)
    (row,) = encode(form, [TALK])
    built = build_row([TrainingSample(row.prompt_token_ids, row.completion_token_ids, row.earlier)])
    starts = [n for n, label in enumerate(built["labels"]) if label != IGNORED_LABEL and built["labels"][n - 1] == IGNORED_LABEL]
    assert [built["input_ids"][:start] for start in starts] == [
        form.encode_prompt(TALK.prompt[:2]),
        form.encode_prompt(TALK.prompt),
    ]


def test_a_template_that_shows_earlier_turns_otherwise_gives_each_a_row() -> None:
    form = chat_format(THINKS + ASK)
    first, second = encode(form, [TALK])
    assert (first.id, first.turns, first.earlier, second.turns) == ("r", (2,), (), (4,))
    assert first.prompt_token_ids == form.encode_prompt(TALK.prompt[:2])
    assert second.prompt_token_ids == form.encode_prompt(TALK.prompt)


def test_one_turn_is_as_without() -> None:
    form = chat_format(TURNS + ASK)
    one = Instruction(id="a", prompt=[Message(role="user", content="하나")], completion="둘")
    (row,) = encode(form, [one])
    (plain,) = encode(form, [one], every_turn=False)
    assert (row.prompt_token_ids, row.completion_token_ids, row.earlier) == (
        plain.prompt_token_ids,
        plain.completion_token_ids,
        (),
    )


def test_an_encoder_reads_every_prompt_by_itself() -> None:
    assert [row.earlier for row in encode(chat_format(TURNS + ASK), [TALK], max_side_tokens=200)] == [(), ()]


def test_a_conversation_that_is_too_long_leaves_no_turn_behind() -> None:
    form = chat_format(THINKS + ASK)
    short = Instruction(id="a", prompt=[Message(role="user", content="하나")], completion="둘")
    limit = len(form.encode_prompt(TALK.prompt))  # room for its first turn
    assert [row.id for row in encode(form, [TALK, short], max_tokens=limit, on_invalid="drop")] == ["a"]
    with pytest.raises(DataError, match="r: prompt and completion: "):
        encode(form, [TALK, short], max_tokens=limit)
