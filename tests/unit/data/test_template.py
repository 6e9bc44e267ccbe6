"""The model is shown exactly what the rows say, and the loss is taken on exactly the completion and its end."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import pytest

from align.data import template_problems as template_module
from align.data.template import ChatFormat
from align.data.template_problems import FormatError, TemplateProblem
from align.errors import RecipeError
from align.records import Message
from align.testing.tiny import CHAT_TEMPLATE

MakeTokenizer = Callable[..., Any]
HELLO = [Message(role="user", content="Hello, 세상")]


@pytest.fixture
def chat_format(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer, where="models/tiny")


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


class TestEncoding:
    def test_prompt(self, chat_format: ChatFormat, tokenizer: Any) -> None:
        ids = chat_format.encode_prompt(HELLO)
        assert _decode(tokenizer, ids) == "<|im_start|>user\nHello, 세상<|im_end|>\n<|im_start|>assistant\n"

    def test_there_is_no_second_beginning_of_sequence(self, make_tokenizer: MakeTokenizer) -> None:
        tokenizer = make_tokenizer("{{ bos_token }}" + CHAT_TEMPLATE)
        assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        assert ChatFormat(tokenizer).encode_prompt(HELLO).count(tokenizer.bos_token_id) == 1

    @pytest.mark.parametrize("completion", ["Hi", " two  spaces ", "\n", "끝\n\n", "a<pad>b"])
    def test_a_completion_ends_with_one_end_of_sequence(self, chat_format: ChatFormat, tokenizer: Any, completion: str) -> None:
        ids = chat_format.encode_completion(HELLO, completion)
        assert _decode(tokenizer, ids) == completion + "<|im_end|>"
        assert ids.count(tokenizer.eos_token_id) == 1

    def test_prompt_and_completion_together_are_the_template_s_own_rendering(
        self, chat_format: ChatFormat, tokenizer: Any
    ) -> None:
        messages = [Message(role="system", content="s"), *HELLO]
        whole = tokenizer.apply_chat_template(
            [*(message.model_dump() for message in messages), {"role": "assistant", "content": "Hi"}], tokenize=False
        )
        assert chat_format.prompt_text(messages) + chat_format.completion_text(messages, "Hi") == whole.removesuffix("\n")

    @pytest.mark.parametrize(("closing", "trained"), [("", "<|im_end|>"), ("\n", "<|im_end|>"), (" <|im_end|>x", " <|im_end|>")])
    def test_what_follows_the_completion(self, make_tokenizer: MakeTokenizer, closing: str, trained: str) -> None:
        source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + closing + "{% endfor %}"
        source += "{% if add_generation_prompt %}[assistant]{% endif %}"
        chat_format = ChatFormat(make_tokenizer(source))
        assert chat_format.closing == trained
        assert chat_format.completion_text(HELLO, "Hi") == "Hi" + trained

    def test_a_completion_that_contains_the_end(self, chat_format: ChatFormat) -> None:
        with pytest.raises(TemplateProblem) as caught:
            chat_format.encode_completion(HELLO, "stop<|im_end|>go on")
        assert caught.value.reason == "contains_eos"

    @pytest.mark.parametrize("completion", [" Hi", "Hi\n"])
    def test_a_template_that_strips(self, make_tokenizer: MakeTokenizer, completion: str) -> None:
        chat_format = ChatFormat(make_tokenizer(CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")))
        assert chat_format.completion_text(HELLO, "Hi") == "Hi<|im_end|>"
        with pytest.raises(TemplateProblem, match="strips outer white space") as caught:
            chat_format.completion_text(HELLO, completion)
        assert caught.value.reason == "template_rewrites"

    def test_a_template_that_shows_the_prompt_otherwise_later(self, make_tokenizer: MakeTokenizer) -> None:
        source = CHAT_TEMPLATE.replace(
            "message['content'] }}", "message['content'] }}{% if loop.first and messages|length > 3 %}!{% endif %}"
        )
        messages = [*HELLO, Message(role="assistant", content="a"), *HELLO]
        with pytest.raises(TemplateProblem, match="shows the prompt otherwise"):
            ChatFormat(make_tokenizer(source)).completion_text(messages, "b")

    def test_a_conversation_that_the_template_refuses(self, make_tokenizer: MakeTokenizer) -> None:
        source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}" + CHAT_TEMPLATE
        with pytest.raises(TemplateProblem, match="no system, please") as caught:
            ChatFormat(make_tokenizer(source)).encode_prompt([Message(role="system", content="x"), *HELLO])
        assert caught.value.reason == "template_error"

    def test_a_template_that_writes_half_a_character(self, make_tokenizer: MakeTokenizer) -> None:
        source = CHAT_TEMPLATE.replace("{% if add_generation_prompt %}", "{{ '\\ud800' }}{% if add_generation_prompt %}")
        assert source != CHAT_TEMPLATE
        with pytest.raises(FormatError, match="surrogates not allowed"):
            ChatFormat(make_tokenizer(source))


SILENT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
"""A template that ends no turn."""


class TestRefusedTokenizers:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"template": None}, "no chat template"),
            ({"template": SILENT, "eos": None}, "writes no token that a model can stop at"),
            ({"template": SILENT.replace("content }}", "content }}###")}, "ends a completion with '###', which is no token"),
            ({"template": CHAT_TEMPLATE + " " * 70_000}, "64 KiB"),
            ({"template": "{{ messages[0].content }"}, "cannot show"),
            (
                {"template": CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")},
                "right after the generation prompt",
            ),
        ],
    )
    def test_the_model_and_the_fault_are_named(self, make_tokenizer: MakeTokenizer, options: dict[str, Any], told: str) -> None:
        with pytest.raises(RecipeError) as caught:
            ChatFormat(make_tokenizer(**options), where="models/tiny")
        assert str(caught.value).startswith("models/tiny: ")
        assert told in str(caught.value)

    def test_a_template_cannot_leave_jinja_s_sandbox(self, make_tokenizer: MakeTokenizer) -> None:
        """That transformers renders in the immutable sandbox is what makes a stranger's template safe."""
        for attack in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages.__init__.__globals__ }}"):
            with pytest.raises(RecipeError, match=r"(?i)unsafe|safely"):
                ChatFormat(make_tokenizer(attack + "{{ '' }}" + CHAT_TEMPLATE))

    def test_a_template_without_end_is_stopped(self, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(template_module, "RENDER_SECONDS", 0.2)
        loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        with pytest.raises(RecipeError, match="seconds for a conversation"):
            ChatFormat(make_tokenizer(loops + CHAT_TEMPLATE))

    @pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
    @pytest.mark.parametrize(
        "bomb",
        [
            "{{ 'a' * 10**11 }}",
            "{% set n = messages | length * 10**11 %}{{ 'a' * n }}",
            "{{ '%100000000000d' % 1 }}",
            "{{ 'a' | center(10**11) }}",
            "{% set ns = namespace(x='a') %}{% for _ in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        ],
    )
    def test_a_template_takes_no_more_memory_than_it_may(self, make_tokenizer: MakeTokenizer, bomb: str) -> None:
        limits = resource.getrlimit(resource.RLIMIT_AS)
        with pytest.raises(RecipeError, match="MemoryError|too large|Overflow"):
            ChatFormat(make_tokenizer(bomb + CHAT_TEMPLATE))
        assert resource.getrlimit(resource.RLIMIT_AS) == limits

    def test_a_text_longer_than_any_conversation_is_refused(
        self, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("align.data.template.MAX_RENDERED_CHARACTERS", 10_000)
        with pytest.raises(RecipeError, match=r"it writes 10,\d\d\d characters"):
            ChatFormat(make_tokenizer("{{ 'a' * 10000 }}" + CHAT_TEMPLATE))
