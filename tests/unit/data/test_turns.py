"""What a template writes around a completion is found for every kind of public chat template, or refused with a way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from align.config.chat import ChatSettings
from align.data.template import ChatFormat
from align.data.template_problems import FormatError, TemplateProblem
from align.data.turns import choose_padding
from align.records import Message
from align.testing.tiny import tiny_tokenizer

MakeFormat = Callable[..., ChatFormat]
QUESTION = [Message(role="user", content="안녕?")]
SYSTEM = Message(role="system", content="Be kind.")

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# An empty thinking block in front of every last answer that has none, as Qwen3 writes it.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last and '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The generation prompt opens a thinking block, and a finished turn does not show it, as R1 and QwQ have it.
OPENS = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
# Gemma: another token than eos ends a turn, there is no system role, and contents are trimmed.
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
# Mistral and Llama 2: no text of its own opens an answer, and a space stands before it, and before the end.
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} <|im_end|>{% endif %}{% endfor %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + TURNS + ASK


@pytest.fixture
def make_format() -> MakeFormat:
    def make(template: str, *, added: tuple[str, ...] = (), stops: tuple[int, ...] = (), **settings: Any) -> ChatFormat:
        tokenizer = tiny_tokenizer(vocabulary=300)
        tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
        tokenizer.chat_template = template
        return ChatFormat(tokenizer, where="models/m", settings=ChatSettings(**settings), stop_token_ids=stops)

    return make


def shown(chat_format: ChatFormat, completion: str, messages: list[Message] = QUESTION) -> tuple[str, str]:
    return chat_format.prompt_text(messages), chat_format.completion_text(messages, completion)


class TestThinking:
    def test_an_empty_block_belongs_to_the_prompt(self, make_format: MakeFormat) -> None:
        chat_format = make_format(THINKS)
        assert shown(chat_format, "네.") == (
            "<|im_start|>user\n안녕?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "네.<|im_end|>",
        )
        # It is the text that the template itself writes when thinking is off.
        off = make_format(THINKS, template_kwargs={"enable_thinking": False})
        assert (off.opening, shown(off, "네.")) == ("", shown(chat_format, "네."))

    def test_rows_with_reasoning_are_refused_with_both_ways_out(self, make_format: MakeFormat) -> None:
        with pytest.raises(TemplateProblem, match=r"thinking: keep.*thinking: strip") as caught:
            make_format(THINKS).completion_text(QUESTION, "<think>\nHm.\n</think>\n\n네.")
        assert caught.value.reason == "contains_thinking"

    def test_reasoning_is_removed_on_purpose(self, make_format: MakeFormat) -> None:
        chat_format = make_format(THINKS, thinking="strip")
        assert shown(chat_format, "<think>\nHm.\n</think>\n\n네.") == shown(chat_format, "네.")
        # Only at the beginning: elsewhere it is what the completion talks about.
        assert shown(make_format(TURNS + ASK, thinking="strip"), "a <think>b</think>")[1] == "a <think>b</think><|im_end|>"

    def test_reasoning_is_trained_on_on_purpose(self, make_format: MakeFormat) -> None:
        chat_format = make_format(THINKS, thinking="keep")
        prompt = "<|im_start|>user\n안녕?<|im_end|>\n<|im_start|>assistant\n"
        assert shown(chat_format, "<think>\nHm.\n</think>\n\n네.") == (prompt, "<think>\nHm.\n</think>\n\n네.<|im_end|>")
        # A row without reasoning teaches the empty block that the template writes.
        assert shown(chat_format, "네.") == (prompt, "<think>\n\n</think>\n\n네.<|im_end|>")

    def test_a_space_before_an_answer_is_scored_as_it_is_trained_on(self, make_format: MakeFormat) -> None:
        kept = make_format(SPACED, thinking="keep")
        assert kept.continuation("네.", ended=True) == kept.completion_text(QUESTION, "네.") == " 네. <|im_end|>"

    def test_a_prompt_that_opens_a_block_needs_a_decision(self, make_format: MakeFormat) -> None:
        with pytest.raises(FormatError, match="right after the generation prompt") as caught:
            make_format(OPENS)
        assert "thinking: keep" in str(caught.value.hint)
        kept = make_format(OPENS, thinking="keep")
        assert shown(kept, "Hm.\n</think>\n\n네.") == (
            "<|im_start|>user\n안녕?<|im_end|>\n<|im_start|>assistant\n<think>\n",
            "Hm.\n</think>\n\n네.<|im_end|>",
        )


class TestEnds:
    def test_the_template_s_token_ends_a_turn_whatever_eos_is(self, make_format: MakeFormat) -> None:
        chat_format = make_format(GEMMA, added=("<start_of_turn>", "<end_of_turn>"), stops=(2, 1))
        assert chat_format.closing == "<end_of_turn>"
        end = chat_format.tokenizer.get_vocab()["<end_of_turn>"]
        assert chat_format.stop_token_ids == (end, 2, 1)  # of the template, the tokenizer, generation_config.json
        assert chat_format.encode_completion(QUESTION, "네.")[-1] == end

    @pytest.mark.parametrize("end", [0, 1, 2])
    def test_any_stop_token_ends_a_sampled_text(self, make_format: MakeFormat, end: int) -> None:
        chat_format = make_format(TURNS + ASK, stops=(2, 1, 0))
        ids = chat_format.encode_completion(QUESTION, "네, 그래요.")
        assert chat_format.sampled_text([*ids[:-1], end]) == "네, 그래요."
        assert chat_format.sampled_text(ids[:-1]) == "네, 그래요."  # cut at the limit

    def test_white_space_around_a_completion_is_trained_on_and_not_part_of_its_text(self, make_format: MakeFormat) -> None:
        chat_format = make_format(SPACED)
        assert shown(chat_format, "네.") == ("[INST] 안녕? [/INST]", " 네. <|im_end|>")
        ids = chat_format.encode_completion(QUESTION, "네.")
        assert chat_format.encode_prompt(QUESTION) + ids == chat_format.tokenize(["[INST] 안녕? [/INST] 네. <|im_end|>"])[0]
        assert chat_format.decode_completion(ids) == " 네. <|im_end|>"
        assert chat_format.sampled_text(ids) == "네."

    def test_a_named_end(self, make_format: MakeFormat) -> None:
        template = TURNS.replace("<|im_end|>", "[END]") + ASK
        with pytest.raises(FormatError, match=r"ends a completion with '\[END\]', which is no token") as caught:
            make_format(template)
        assert "end_of_turn" in str(caught.value.hint)
        assert make_format(template, added=("[END]",)).end_token == "[END]"
        with pytest.raises(FormatError, match="'<none>' is not a token of its vocabulary"):
            make_format("{% for m in messages %}{{ m.content }}{% endfor %}", end_of_turn="<none>")


class TestSystem:
    def test_the_template_refuses_it(self, make_format: MakeFormat) -> None:
        with pytest.raises(TemplateProblem, match="System role not supported"):
            make_format(GEMMA, added=("<end_of_turn>",)).prompt_text([SYSTEM, *QUESTION])

    @pytest.mark.parametrize(("policy", "content"), [("first_user", "Be kind.\n\n안녕?"), ("drop", "안녕?")])
    def test_it_is_put_elsewhere(self, make_format: MakeFormat, policy: str, content: str) -> None:
        chat_format = make_format(GEMMA, added=("<end_of_turn>",), system=policy)
        assert content + "<end_of_turn>" in chat_format.prompt_text([SYSTEM, *QUESTION])
        assert chat_format.completion_text([SYSTEM, *QUESTION], "네.") == "네.<end_of_turn>"


def test_a_template_s_date_is_the_same_on_every_day(make_format: MakeFormat) -> None:
    assert make_format(DATED).prompt_text(QUESTION).startswith("01 Jan 2025\n")
    other = make_format(DATED, date="2026-03-09")
    assert other.prompt_text(QUESTION).startswith("09 Mar 2026\n")
    assert other.printed_dates == {"%d %b %Y": "09 Mar 2026"}


@pytest.mark.parametrize(
    ("pad", "added", "chosen"),
    [
        ("<|pad|>", (), "<|pad|>"),
        (None, (), "<|pad|>"),  # it is in the vocabulary, though tokenizer_config.json does not name it
        ("<|im_end|>", ("<|reserved_7|>",), "<|pad|>"),
        (None, ("<|reserved_7|>", "<|image_pad|>"), "<|pad|>"),
    ],
)
def test_padding_is_never_the_token_that_ends_a_completion(pad: str | None, added: tuple[str, ...], chosen: str) -> None:
    tokenizer = tiny_tokenizer(vocabulary=300)
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.pad_token = pad
    assert ChatFormat(tokenizer).pad_token_id == tokenizer.convert_tokens_to_ids(chosen)


@pytest.mark.parametrize(
    ("added", "chosen"),
    [
        ({"<|im_end|>": 2, "<|image_pad|>": 7, "<fim_pad>": 9}, 9),  # features of pictures take the place of the other
        ({"<|im_end|>": 2, "<|x|>": 5, "<|reserved_1|>": 8}, 8),
        ({"<|im_end|>": 2, "<|im_start|>": 1, "<|x|>": 5}, 5),  # not one that the template writes
        ({"<|im_end|>": 2, "<|im_start|>": 1}, None),
        ({"<|im_end|>": 2, "<|eot|>": 6}, None),  # a stop token
    ],
)
def test_which_token_fills_rows(added: dict[str, int], chosen: int | None) -> None:
    class Vocabulary:
        get_vocab = added.copy
        pad_token_id = 2
        added_tokens_decoder = {number: token for token, number in added.items()}

    assert choose_padding(Vocabulary(), end=2, stops=(2, 6), used=TURNS + ASK) == chosen


@pytest.mark.parametrize(("pad", "told"), [("<none>", "not a token of its vocabulary"), ("<|im_end|>", "ends a completion, too")])
def test_padding_that_a_recipe_names_wrongly(make_format: MakeFormat, pad: str, told: str) -> None:
    with pytest.raises(FormatError, match=told):
        make_format(TURNS + ASK, pad_token=pad)
