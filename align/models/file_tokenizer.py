"""A model's tokenizer as its files describe it, for checks that must be quick: transformers takes seconds to import.

What is sampled and trained uses transformers' tokenizer (`align.models.tokenizer`). The two agree but for classes that change
what their files say, so a problem that is found here is looked at again with transformers' before a model is refused.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from align.data.plain import format_of
from align.data.template import ChatFormat
from align.models.files import ADDITIONAL_TEMPLATES_NAME, TOKENIZER_NAME, TOOL_TEMPLATE, read_json_object
from align.models.folder import ModelFolder
from align.models.tokenizer import PROBES, usable

TEMPLATE_NAME = "chat_template.jinja"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What transformers hands to templates by name."""
NO_LIMIT = 10**30
"""transformers' length limit of a tokenizer that names none."""


class FileTokenizer:
    """The part of a transformers tokenizer that chat formats and checks of a model use; see `align.data.tokens.Tokenizer`.

    Args:
        folder: a checked one; its chat settings decide the template and what tokens are added, as in `tokenizer_of`.
    Raises:
        EnvironmentProblem: if the files make no tokenizer that can be used.
    """

    def __init__(self, folder: ModelFolder) -> None:
        with usable(folder.path):
            self._read(folder)

    def _read(self, folder: ModelFolder) -> None:
        from tokenizers import AddedToken, Tokenizer

        path, settings = folder.path, folder.chat_settings
        self.backend_tokenizer = Tokenizer.from_file(str(path / TOKENIZER_NAME))
        # Some files hold what a server was set to; transformers decides both at each call.
        self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        config = folder.tokenizer_config
        declared = config.get("added_tokens_decoder")
        if not declared and (path / SPECIAL_TOKENS_NAME).exists():  # as older versions saved it
            config = {**config, **read_json_object(path, SPECIAL_TOKENS_NAME)}
        self.special_tokens_map = {role: text for role in ROLES if (text := _text(config.get(role)))}
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
        self._extra = [text for token in (extra.values() if isinstance(extra, dict) else extra) if (text := _text(token))]
        named = [*map(_text, (declared or {}).values()), *self.special_tokens_map.values(), *self._extra]
        # Those that tokenizer.json lacks get the next ids, as transformers gives them.
        missing = [token for token in named if token and self.backend_tokenizer.token_to_id(token) is None]
        added = [AddedToken(token, special=True, normalized=False) for token in [*missing, *(settings.add_tokens or ())]]
        self.backend_tokenizer.add_special_tokens(added)
        limit = config.get("model_max_length")
        self.model_max_length = int(limit) if isinstance(limit, (int, float)) else NO_LIMIT
        self.chat_template = settings.template if settings.template is not None else _template_of(folder, config)
        for found in self.backend_tokenizer.encode_batch_fast(list(PROBES), add_special_tokens=False):
            self.backend_tokenizer.decode(found.ids)

    def __getattr__(self, name: str) -> Any:
        """`eos_token`, `pad_token_id` and their like; None where the files name none."""
        if name in ROLES:
            return self.special_tokens_map.get(name)
        if name.removesuffix("_id") in ROLES:
            token = self.special_tokens_map.get(name.removesuffix("_id"))
            return None if token is None else self.backend_tokenizer.token_to_id(token)
        raise AttributeError(name)

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def added_tokens_decoder(self) -> Any:
        return self.backend_tokenizer.get_added_tokens_decoder()

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def __len__(self) -> int:
        return len(self._vocabulary)

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        found = self.backend_tokenizer.encode_batch_fast(text, add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in found]}

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces  # nothing here asks for it, and `tokenizers` does not do it
        return str(self.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        chat_template: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        assert not tokenize
        template = chat_template or self.chat_template
        if isinstance(template, dict):
            template = template[TOOL_TEMPLATE if tools and TOOL_TEMPLATE in template else "default"]
        compiled = _compiled(template)
        named = {**self.special_tokens_map, **variables}
        return str(
            compiled.render(
                messages=conversation, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **named
            )
        )


def read_format(folder: ModelFolder) -> ChatFormat:
    """The chat format as `load_format` makes it, with the tokenizer of the files.

    Raises:
        FormatError: if the model's template or tokens cannot be used; see `ChatFormat`.
    """
    return format_of(
        FileTokenizer(folder),  # type: ignore[arg-type]  # its attributes come from __getattr__
        folder.encoder_decoder,
        str(folder.path),
        settings=folder.chat_settings,
        stop_token_ids=folder.stop_token_ids,
    )


def _text(token: Any) -> str:
    """A token as the files write it: a text, or an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _template_of(folder: ModelFolder, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The template, or several by name."""
    files = {file.stem: file for file in sorted((folder.path / ADDITIONAL_TEMPLATES_NAME).glob("*.jinja"))}
    if (folder.path / TEMPLATE_NAME).exists():
        files["default"] = folder.path / TEMPLATE_NAME
    if files:
        found = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
        return found["default"] if found.keys() == {"default"} else found
    named = config.get("chat_template")
    return {str(one["name"]): str(one["template"]) for one in named} if isinstance(named, list) else named


@lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    """The template in the environment that transformers renders it in; tests/unit/models/test_file_tokenizer.py compares them."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant wrote; here its text is all that counts."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    # Jinja's own filter escapes HTML.
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)  # noqa: DTZ005  # as transformers
    return environment.from_string(template)
