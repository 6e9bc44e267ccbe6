"""How a conversation becomes the text of an encoder and of a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.data.encoding import encode_instructions
from align.data.plain import PlainFormat, format_of
from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.errors import DataError, RecipeError
from align.models.folder import ModelFolder
from align.records import Instruction, Message
from align.testing import CHAT_TEMPLATE, tiny_causal_lm, tiny_seq2seq_lm

END = "<|im_end|>"
TALK = [
    Message(role="system", content="Be kind."),
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello"),
    Message(role="user", content="I lost my keys"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_seq2seq_lm(tmp_path_factory.mktemp("t5") / "base", texts=["I lost my keys"])


@pytest.fixture
def plain(base: Path) -> ChatFormat:
    return format_of(ModelFolder(base).tokenizer, ModelFolder(base).encoder_decoder, "base")


def test_turns_are_joined_by_line_ends_and_the_tokenizers_own_tokens_stand_around_them(plain: ChatFormat, base: Path) -> None:
    assert isinstance(plain, PlainFormat)
    assert plain.prompt_text(TALK) == f"Be kind.\nHi\nHello\nI lost my keys{END}"
    assert plain.prompt_text(TALK[-1:]) == f"I lost my keys{END}"
    assert plain.encode_prompt(TALK[-1:]) == ModelFolder(base).tokenizer("I lost my keys")["input_ids"]


def test_a_completion_ends_with_one_end_of_sequence_token(plain: ChatFormat) -> None:
    ids = plain.encode_completion(TALK, "Oh no.")
    assert ids.count(plain.end_token_id) == 1
    assert ids[-1] == plain.end_token_id
    assert plain.completion_text(TALK, "Oh no.") == f"Oh no.{END}"


def test_a_tokenizer_that_adds_nothing_or_something_in_front(base: Path) -> None:
    from tokenizers import processors

    tokenizer = ModelFolder(base).tokenizer
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    assert PlainFormat(tokenizer).prompt_text(TALK[-1:]) == "I lost my keys"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<|im_start|> $A {END}", special_tokens=[("<|im_start|>", 1), (END, 2)]
    )
    assert PlainFormat(tokenizer).prompt_text(TALK[-1:]) == f"<|im_start|>I lost my keys{END}"


@pytest.mark.parametrize(("messages", "completion"), [(TALK, f"a{END}b"), ([Message(role="user", content=END)], "a")])
def test_an_end_of_sequence_token_inside_a_text_is_refused(plain: ChatFormat, messages: list[Message], completion: str) -> None:
    with pytest.raises(TemplateProblem) as caught:
        plain.completion_text(messages, completion)
    assert caught.value.reason == "contains_eos"


def t5_like_tokenizer() -> Any:
    """Unigram with T5's normalizer and marks for spaces: line ends, outer and double spaces are lost, full-width forms too."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz.A"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(left=True, right=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def t5s_own_tokenizer() -> Any:
    """The class that loads T5's files, on a vocabulary of letters."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz.A"]
    return T5Tokenizer(vocab=pieces, extra_ids=2)


def test_full_width_forms_come_back_plain() -> None:
    plain = PlainFormat(t5_like_tokenizer())
    assert plain.encode_completion(TALK, "\uff21") == plain.encode_completion(TALK, "A")


@pytest.mark.parametrize("make", [t5_like_tokenizer, t5s_own_tokenizer])
def test_what_a_t5_tokenizer_cannot_write_is_named_and_never_trained_on(make: Any) -> None:
    plain = PlainFormat(make())
    assert plain.encode_completion(TALK, "oh no.")[-1] == 1
    assert plain.encode_prompt([Message(role="user", content="a b")]) == make()("a b")["input_ids"]
    for lost in ("two\nlines", "two  spaces", "end ", "curly {"):
        with pytest.raises(TemplateProblem) as caught:
            plain.completion_text(TALK, lost)
        assert caught.value.reason == "not_representable", lost


def test_such_rows_are_an_error_or_a_counted_drop() -> None:
    plain = PlainFormat(t5_like_tokenizer())
    rows = [Instruction(id=f"r{n}", prompt=TALK, completion=text) for n, text in enumerate(("fine.", "two\nlines"))]
    options: dict[str, Any] = {"max_tokens": 100, "where": lambda line: "rows.jsonl"}
    with pytest.raises(DataError, match="not_representable 1"):
        encode_instructions(rows, plain, on_invalid="error", **options)
    encoded = encode_instructions(rows, plain, on_invalid="drop", **options)
    assert [row.id for row in encoded.rows] == ["r0"]
    assert encoded.dropped() == {"not_representable": 1}


def test_a_side_that_is_longer_than_the_model_sees_is_refused(plain: ChatFormat) -> None:
    rows = [Instruction(id=f"r{n}", prompt=TALK[-1:], completion="no" * n) for n in (1, 30)]
    options: dict[str, Any] = {"max_tokens": 1000, "on_invalid": "drop", "where": lambda line: "rows.jsonl"}
    encoded = encode_instructions(rows, plain, max_side_tokens=16, **options)
    assert [row.id for row in encoded.rows] == ["r1"]
    assert encoded.dropped() == {"too_long": 1}
    assert len(encode_instructions(rows, plain, **options).rows) == 2


def test_a_chat_template_is_used_where_there_is_one(tmp_path: Path) -> None:
    folder = tiny_seq2seq_lm(tmp_path / "t5", chat_template=CHAT_TEMPLATE)
    chat_format = format_of(ModelFolder(folder).tokenizer, ModelFolder(folder).encoder_decoder, "t5")
    assert not isinstance(chat_format, PlainFormat)
    assert chat_format.prompt_text(TALK[-1:]).endswith("<|im_start|>assistant\n")


def test_a_causal_model_without_a_template_is_refused_as_before(tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path / "causal")
    tokenizer = ModelFolder(folder).tokenizer
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="has no chat template"):
        format_of(tokenizer, ModelFolder(folder).encoder_decoder, "causal")
