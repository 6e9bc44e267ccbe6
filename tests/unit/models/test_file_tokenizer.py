"""The tokenizer of the files renders and tokenizes as transformers' does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.config.chat import ChatSettings
from align.data.chat_templates import CONTROL_TOKENS, shipped_templates
from align.data.template import ChatFormat
from align.models.chat_format import load_format
from align.models.file_tokenizer import FileTokenizer, read_format
from align.models.folder import ModelFolder
from align.models.tokenizer import PROBES
from align.records import Message
from align.testing.tiny import CHAT_TEMPLATE, tiny_causal_lm, tiny_seq2seq_lm

TALK = [
    Message(role="system", content="Be kind."),
    Message(role="user", content="안녕? <b>&'"),
    Message(role="assistant", content="네."),
    Message(role="user", content="그래?\n"),
]
RICH = (
    "{{ bos_token or strftime_now('%Y') }}{% for m in messages %}{%- if loop.index0 > 9 %}{% break %}{% endif %}\n"
    "<|im_start|>{{ m.role }}{% if m.role == 'user' %} {{ m | tojson }} {{ m | tojson(indent=1) }}{% endif %}{{ '\\n' }}"
    "    {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant"
    "{{ '\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("models") / "m", texts=PROBES)


def seen(chat_format: ChatFormat) -> dict[str, object]:
    """Everything that a check can see of a format."""
    tokenizer = chat_format.tokenizer
    texts = [message.content for message in TALK] + list(PROBES)
    names = ("bos", "eos", "pad", "unk")
    return {
        "prompt": chat_format.prompt_text(TALK[1:]),
        "completion": chat_format.completion_text(TALK[1:2], "Of course."),
        "tokens": chat_format.encode_prompt(TALK[1:]),
        "ends": (chat_format.end_token, chat_format.stop_token_ids, chat_format.pad_token_id, chat_format.closing),
        "ids": [chat_format.tokenize([text]) for text in texts],
        "with special": tokenizer(texts, add_special_tokens=True)["input_ids"],
        "back": [chat_format.decode_completion(chat_format.tokenize([text])[0]) for text in texts],
        "vocabulary": tokenizer.get_vocab(),
        "special": set(tokenizer.all_special_tokens),  # type: ignore[attr-defined]
        "named": [getattr(tokenizer, f"{name}_token{end}") for name in names if name != "pad" for end in ("", "_id")],
        "added": {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()},
    }


@pytest.mark.parametrize("template", [None, "rich", *shipped_templates()])
def test_it_renders_and_tokenizes_as_transformers_does(folder: Path, template: str | None) -> None:
    text = None if template is None else RICH if template == "rich" else shipped_templates()[template].read_text()
    tokens = list(CONTROL_TOKENS.get(template or "", ())) or None
    settings = ChatSettings(template=text, add_tokens=tokens)
    assert seen(read_format(ModelFolder(folder, settings))) == seen(load_format(ModelFolder(folder, settings)))


def test_plain_formats_agree_too(tmp_path: Path) -> None:
    folder = tiny_seq2seq_lm(tmp_path / "t5", texts=PROBES)
    assert seen(read_format(ModelFolder(folder))) == seen(load_format(ModelFolder(folder)))


def test_a_token_that_only_its_configuration_names_is_added(folder: Path, tmp_path: Path) -> None:
    model = tiny_causal_lm(tmp_path / "m", texts=PROBES)
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "pad_token": "[PAD]", "bos_token": {"content": "[BOS]", "__type": "AddedToken"}}))
    ours, theirs = FileTokenizer(ModelFolder(model)), ModelFolder(model).tokenizer
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.pad_token, ours.pad_token_id, ours.bos_token) == (theirs.pad_token, theirs.pad_token_id, theirs.bos_token)


def test_truncation_and_padding_of_the_file_do_not_count(tmp_path: Path) -> None:
    model = tiny_causal_lm(tmp_path / "m", texts=PROBES)
    backend = ModelFolder(model).tokenizer.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(model / "tokenizer.json"))
    assert seen(read_format(ModelFolder(model))) == seen(load_format(ModelFolder(model)))


def test_templates_of_older_versions(folder: Path, tmp_path: Path) -> None:
    model = tiny_causal_lm(tmp_path / "m", texts=PROBES)
    (model / "chat_template.jinja").unlink()
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text())
    assert FileTokenizer(ModelFolder(model)).chat_template is None
    named = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "other", "template": "x"}]
    for template in (CHAT_TEMPLATE, named):
        file.write_text(json.dumps({**config, "chat_template": template}))
        assert FileTokenizer(ModelFolder(model)).chat_template == ModelFolder(model).tokenizer.chat_template
        assert seen(read_format(ModelFolder(model))) == seen(load_format(ModelFolder(model)))
