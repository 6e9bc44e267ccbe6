"""A saved model shows other programs the text that it was trained on, and stops where it was trained to stop."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from align.config.chat import ChatSettings
from align.data.template import ChatFormat
from align.errors import EnvironmentProblem
from align.models.chat_format import load_format, save_format
from align.models.file_tokenizer import read_format
from align.models.files import CHAT_NAME
from align.models.folder import ModelFolder
from align.records import Message
from align.testing.tiny import tiny_causal_lm

TEMPLATE = (
    "{% if tone is defined and tone %}({{ tone }}) {% endif %}"
    "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y') }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}\n"
)
TALK = [Message(role=role, content=text) for role, text in (("user", "안녕?"), ("assistant", "네."), ("user", "그래?"))]  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_causal_lm(tmp_path / "m")


def save(folder: Path, to: Path, template: str | dict[str, str] = TEMPLATE, **settings: Any) -> ChatFormat:
    """Saves the format of a folder, with its weights, and returns it."""
    model = ModelFolder(folder)
    model.tokenizer.chat_template = template
    chat_format = ChatFormat(
        model.tokenizer,
        settings=ChatSettings(template_kwargs={"tone": "kind"}, **settings),  # it changes every prompt
        stop_token_ids=(2, 1),
    )
    to.mkdir()
    for file in folder.glob("*.*"):
        (to / file.name).write_bytes(file.read_bytes())
    save_format(chat_format, to)
    return chat_format


def test_transformers_alone_renders_what_was_trained(folder: Path, tmp_path: Path) -> None:
    trained = save(folder, tmp_path / "saved", date="2026-03-09")
    alone = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for messages in (TALK[:1], TALK):
        text = alone.apply_chat_template([m.model_dump() for m in messages], tokenize=False, add_generation_prompt=True)
        assert text == trained.prompt_text(messages)
        assert text.startswith("(kind) 09 Mar 2026 2026\n") and text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_template_that_lost_its_date_is_not_saved(folder: Path) -> None:
    """With the date in it, it must print it by itself: other programs have today's."""
    trained = save(folder, folder.parent / "saved", date="2026-03-09")
    assert trained.renders_alike((folder.parent / "saved" / "chat_template.jinja").read_text())
    assert not trained.renders_alike(TEMPLATE.replace("tone is defined and tone", "true").replace("{{ tone }}", "kind"))


def test_a_date_that_the_recipe_does_not_set_is_that_of_the_day_on_which_a_model_is_used(folder: Path, tmp_path: Path) -> None:
    trained = save(folder, tmp_path / "saved")
    assert trained.prompt_text(TALK).startswith("(kind) 01 Jan 2025 2025\n")
    assert load_format(ModelFolder(tmp_path / "saved")).prompt_text(TALK) == trained.prompt_text(TALK)
    alone = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = alone.apply_chat_template([TALK[0].model_dump()], tokenize=False, add_generation_prompt=True)
    assert text.startswith(f"(kind) {datetime.now(UTC).astimezone():%d %b %Y} ")


def test_a_user_can_still_set_a_variable_of_the_template(folder: Path, tmp_path: Path) -> None:
    save(folder, tmp_path / "saved")
    alone = AutoTokenizer.from_pretrained(tmp_path / "saved")
    conversation = [TALK[0].model_dump()]
    assert "(rude)" in alone.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, tone="rude")


def test_a_template_for_tools_keeps_the_settings_too(folder: Path, tmp_path: Path) -> None:
    """As Command R and Hermes have: transformers and vLLM take it for conversations with tools."""
    shown = "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{{ strftime_now('%B') }}\n"
    templates = {"default": TEMPLATE, "tool_use": shown + TEMPLATE, "rag": "{{ documents }}" + TEMPLATE}
    tools = [{"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": {}}}]
    trained = save(folder, tmp_path / "saved", template=templates, date="2026-03-09")
    question = Message(role="user", content="안녕?", tools=tools)
    saved = tmp_path / "saved"
    alone, conversation = AutoTokenizer.from_pretrained(saved), [{"role": "user", "content": "안녕?"}]
    text = alone.apply_chat_template(conversation, tools=tools, tokenize=False, add_generation_prompt=True)
    assert text == trained.prompt_text([question])
    assert "get_weather" in text and "\nMarch\n(kind) 09 Mar 2026 2026\n" in text and text.endswith("</think>\n\n")
    assert alone.chat_template["rag"] == templates["rag"]
    again = load_format(ModelFolder(saved))
    assert again.prompt_text([question]) == read_format(ModelFolder(saved)).prompt_text([question]) == text
    assert again.prompt_text(TALK) == trained.prompt_text(TALK)
    save_format(again, saved)
    assert AutoTokenizer.from_pretrained(saved).chat_template == alone.chat_template


def test_a_template_for_tools_that_shows_none_is_saved_with_the_settings(folder: Path, tmp_path: Path) -> None:
    save(folder, tmp_path / "saved", template={"default": TEMPLATE, "tool_use": TEMPLATE})
    assert "set tone" in AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template["tool_use"]


def test_it_is_read_again_as_it_was_and_saved_again_without_change(folder: Path, tmp_path: Path) -> None:
    trained = save(folder, tmp_path / "saved", system="drop", thinking="strip", date="2026-03-09")
    again = load_format(ModelFolder(tmp_path / "saved"))
    assert (again.settings.system, again.settings.thinking) == ("drop", "strip")
    assert again.prompt_text(TALK) == trained.prompt_text(TALK)
    assert again.encode_completion(TALK, "네.") == trained.encode_completion(TALK, "네.")
    template = (tmp_path / "saved" / "chat_template.jinja").read_text()
    save_format(again, tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == template
    assert (again.stop_token_ids, again.pad_token_id) == (trained.stop_token_ids, trained.pad_token_id)


def test_servers_find_every_stop_token(folder: Path, tmp_path: Path) -> None:
    save(folder, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (written["eos_token_id"], written["pad_token_id"]) == ([2, 1], 0)


def test_padding_is_set_where_the_tokenizer_has_none(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": None}))
    chat_format = load_format(ModelFolder(folder))
    assert chat_format.tokenizer.pad_token_id == chat_format.pad_token_id == 0
    save_format(chat_format, folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token == "<|pad|>"


@pytest.mark.parametrize("content", ['{"thinking": "perhaps"}', '{"colour": 1}', "[]", "{"])
def test_damaged_settings_are_named(folder: Path, content: str) -> None:
    (folder / CHAT_NAME).write_text(content)
    with pytest.raises(EnvironmentProblem, match=CHAT_NAME):
        load_format(ModelFolder(folder))
