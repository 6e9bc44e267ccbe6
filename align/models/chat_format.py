"""The chat format of a model folder: read with its tokenizer, and written so that other programs render the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from align.config.chat import ChatSettings
from align.data.plain import PlainFormat, format_of
from align.data.template import ChatFormat
from align.data.template_problems import FormatError, TemplateProblem
from align.data.turns import PROBE, added_tokens
from align.errors import StageError
from align.models.files import CHAT_NAME, GENERATION_CONFIG_NAME, TOOL_TEMPLATE
from align.models.folder import ModelFolder
from align.models.tokenizer import add_special_tokens
from align.records import Message
from align.store.atomic import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Tokens: TypeAlias = "ChatFormat | PreTrainedTokenizerBase"
"""What is saved beside weights: a chat format with its tokenizer, or a tokenizer alone, such as a base model's."""
PROBE_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": "probe", "description": "A probe.", "parameters": {"type": "object", "properties": {}}},
    }
]
"""Tools of a conversation by which a template for tools is compared."""


def load_format(folder: ModelFolder, where: str | None = None) -> ChatFormat:
    """The chat format of a model, with its tokenizer, whose template and padding token are set to those of the format.

    Args:
        where: the model's name in messages; its folder where None.
    Raises:
        RecipeError: if the model's template or tokens cannot be used; see `ChatFormat`.
    """
    tokenizer, settings = tokenizer_of(folder), folder.chat_settings
    chat_format = format_of(
        tokenizer,
        folder.encoder_decoder,
        where or str(folder.path),
        settings=settings,
        stop_token_ids=folder.stop_token_ids,
    )
    pad = tokenizer.convert_ids_to_tokens(chat_format.pad_token_id)
    # A token of the learnt vocabulary is not set: as a special token, texts that spell it would change.
    if tokenizer.pad_token_id != chat_format.pad_token_id and pad in added_tokens(tokenizer):
        tokenizer.pad_token = pad
    return chat_format


def tokenizer_of(folder: ModelFolder) -> PreTrainedTokenizerBase:
    """The tokenizer with the template and the tokens that the chat settings give it.

    A model that is trained or sampled has the tokens already; rows can be checked before there is one.
    """
    tokenizer, settings = folder.tokenizer, folder.chat_settings
    if settings.add_tokens:
        add_special_tokens(tokenizer, settings.add_tokens)
    if settings.template is not None:
        tokenizer.chat_template = settings.template
    return tokenizer


def load_tokens(folder: ModelFolder) -> Tokens:
    """The chat format of a model, or its tokenizer alone where it has no usable template, as base models."""
    try:
        return load_format(folder)
    except FormatError:
        return folder.tokenizer


def save_tokens(tokens: Tokens, folder: Path) -> None:
    """Write the tokenizer, and of a chat format what `save_format` does, into a folder."""
    if isinstance(tokens, ChatFormat):
        save_format(tokens, folder)
    else:
        tokens.save_pretrained(str(folder), push_to_hub=False)


def save_format(chat_format: ChatFormat, folder: Path) -> None:
    """Write tokenizer, template, stop tokens and chat settings into the folder of a saved model.

    The template is written with everything that align renders with, so that vLLM and transformers show the model the text that
    it was trained on: variables of the template, the date if the recipe sets one, and what follows the generation prompt.

    Raises:
        StageError: if the template, so written, renders another text.
    """
    tokenizer: PreTrainedTokenizerBase = chat_format.tokenizer  # type: ignore[assignment]
    settings, template = chat_format.settings, tokenizer.chat_template
    if isinstance(chat_format, PlainFormat):
        tokenizer.save_pretrained(str(folder), push_to_hub=False)
    else:
        if isinstance(template, str):
            complete: str | dict[str, str] = _complete(template, chat_format)
        else:
            # Those of other names are never rendered here.
            tools = {"default": None, TOOL_TEMPLATE: PROBE_TOOLS}
            own = {name: _complete(template[name], chat_format, probe) for name, probe in tools.items() if name in template}
            complete = {**template, **own}
        try:
            tokenizer.chat_template = complete
            tokenizer.save_pretrained(str(folder), push_to_hub=False)
        finally:
            tokenizer.chat_template = template
    saved = ModelFolder(folder)
    if not saved.is_reward_model:  # those write no text
        stops = list(chat_format.stop_token_ids)
        ends = {"eos_token_id": stops[0] if len(stops) == 1 else stops, "pad_token_id": chat_format.pad_token_id}
        write_json(folder / GENERATION_CONFIG_NAME, {**saved.generation_config, **ends})
    # What the template and the tokenizer hold now is not said again.
    kept = settings.model_copy(update={"template": None, "template_kwargs": {}, "date": None, "add_tokens": None})
    if kept != ChatSettings():
        write_json(folder / CHAT_NAME, kept.model_dump(mode="json", exclude_defaults=True))


def _complete(template: str, chat_format: ChatFormat, tools: list[dict[str, Any]] | None = None) -> str:
    """A template with the settings, checked to show prompts as `chat_format` does; `tools`: prompts with these."""
    try:
        chat_format.prompt_text([Message(role="user", content=PROBE, tools=tools or [])])  # asks for the dates that are written
    except TemplateProblem:  # it does not show tools, so no model has learnt from it
        return _with_settings(template, chat_format)
    complete = _with_settings(template, chat_format)
    if not chat_format.renders_alike(complete, tools):
        name = f"chat template {TOOL_TEMPLATE!r}" if tools else "chat template"
        raise StageError(f"{chat_format.where}: its {name} cannot be saved with the settings that were used")
    return complete


def _with_settings(template: str, chat_format: ChatFormat) -> str:
    """The template with what it is rendered with written into it."""
    before = "".join(
        f"{{%- if {name} is not defined -%}}{{%- set {name} = {_literal(value)} -%}}{{%- endif -%}}"
        for name, value in chat_format.settings.template_kwargs.items()
    )
    if chat_format.settings.date is not None and chat_format.printed_dates:
        cases = "".join(
            f"{{%- {'elif' if number else 'if'} form == {json.dumps(form)} -%}}{day}"
            for number, (form, day) in enumerate(chat_format.printed_dates.items())
        )
        before += f"{{%- macro strftime_now(form) -%}}{cases}{{%- endif -%}}{{%- endmacro -%}}"
    if before:
        before += '{{ "" }}'  # white space at the template's beginning stays: it follows an expression, not a block
    # Jinja drops one line end at the end of a template, which is not the end any more.
    after = f"{{%+ if add_generation_prompt %}}{{{{ {json.dumps(chat_format.opening)} }}}}{{%+ endif %}}"
    return before + (template.removesuffix("\n") + after if chat_format.opening else template)


def _literal(value: bool | int | float | str | None) -> str:
    return "none" if value is None else json.dumps(value)
