"""Chat templates and token spans: the text that a model reads, and the tokens that the loss is taken on.

A prompt is rendered as text and tokenized without special tokens: a template may write its own BOS, and must not get a second
one. Prompt and completion are tokenized separately, because a sampler sees the prompt's ids alone. Training and sampling
therefore use the same ids.

Duck-typed on a transformers tokenizer; loads neither torch nor transformers. transformers renders templates in Jinja's immutable
sandbox (`ImmutableSandboxedEnvironment`, checked for 5.19 by tests/unit/data/test_template.py); size and time are limited here.
"""

from __future__ import annotations

import contextlib
import json
import os.path
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from align.data.time_limit import TimeLimitExceeded, time_limit
from align.errors import RecipeError
from align.records import Message

MAX_TEMPLATE_BYTES = 64 * 1024
RENDER_SECONDS = 10.0
SECONDS_PER_CONVERSATION = 0.02
"""Time limit for rendering: a fixed part, and a part per conversation. An untrusted template could loop for ever."""

MAX_CACHED_PROMPTS = 50_000
"""Rendered prompts are cached, since several completions follow each; the bound keeps memory from growing with the data."""

Aspect = Literal["template", "end_of_sequence", "padding", "prompt_prefix", "end_of_turn"]

_PROBE = "Probe"


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that this module uses."""

    chat_template: Any
    eos_token: Any
    eos_token_id: Any
    pad_token_id: Any

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any: ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> Any: ...


class FormatError(RecipeError):
    """No conversation can be rendered for the model. `aspect` names the cause.

    Every argument but the message has a default: errors cross processes by their message, the other attributes are set later.
    """

    def __init__(self, message: str, *, aspect: Aspect = "template", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.aspect = aspect


class TemplateProblem(ValueError):
    """One conversation cannot be rendered or trained on as it is.

    `reason` is the row's `drop_reason`; `field` is `prompt`, or the completion's name where `texts_of` knows it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = ""


class ChatFormat:
    """Renders and tokenizes conversations for one model.

    Args:
        tokenizer: a transformers tokenizer, or anything shaped like one.
        where: the model's name in messages, usually its folder.
    Raises:
        FormatError: if the tokenizer lacks a chat template, an end-of-sequence or a padding token, if padding and
            end-of-sequence are the same token, or if the template does not end a completion with the end-of-sequence token.
    """

    unicode_form: Literal["NFC", "NFKC"] = "NFC"
    """Two texts that are equal in this form count as the same: tokenizers normalise at least this much."""

    def __init__(self, tokenizer: Tokenizer, where: str = "the model") -> None:
        self.tokenizer = tokenizer
        self.where = where
        self._check_template()
        self._check_tokens()
        self.eos_token = str(tokenizer.eos_token)
        self.eos_token_id = int(tokenizer.eos_token_id)
        self.pad_token_id = int(tokenizer.pad_token_id)
        self._prompt_texts: dict[tuple[tuple[str, str], ...], str] = {}
        self._limited = False
        # A first value: `_find_closing` sets it.
        self.template_closes = True
        """Whether the template writes the end-of-sequence token; otherwise align appends it to every completion."""
        # Last, because it renders a conversation, for which everything above is needed.
        self.closing = self._find_closing()
        """The text after every completion, which is trained on too: the end-of-sequence token, perhaps after white space."""

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt as the model reads it, up to where its completion begins.

        Raises:
            TemplateProblem: if the template refuses the conversation.
        """
        key = tuple((message.role, message.content) for message in messages)
        if key not in self._prompt_texts:
            if len(self._prompt_texts) >= MAX_CACHED_PROMPTS:
                # Clearing all is simpler than tracking use, and costs one more rendering of each prompt that comes again.
                self._prompt_texts.clear()
            try:
                self._prompt_texts[key] = self._render(messages, add_generation_prompt=True)
            except TemplateProblem as problem:
                problem.field = "prompt"
                raise
        return self._prompt_texts[key]

    def completion_text(self, messages: Sequence[Message], completion: str) -> str:
        """The completion and the text that closes it, including the end-of-sequence token.

        Raises:
            TemplateProblem: if the template refuses the conversation, or changes the completion.
        """
        # The tokenizer would make the real token of it, and the model would learn to write on after its end.
        if self.eos_token in completion:
            raise TemplateProblem("contains_eos", f"the completion contains the end-of-sequence token {self.eos_token!r}")
        prompt = self.prompt_text(messages)
        whole = self._render([*messages, Message(role="assistant", content=completion)], add_generation_prompt=False)
        # Some templates change earlier turns once an answer follows. Sampling would then see another prompt than training.
        if not whole.startswith(prompt):
            raise TemplateProblem(
                "template_rewrites",
                f"the chat template shows the prompt otherwise once a completion follows: {difference(prompt, whole)}",
            )
        tail = whole[len(prompt) :]
        rest = tail.removeprefix(completion)
        # What the template writes after the end-of-sequence token is left out: the sampler stops at that token.
        closed = rest.startswith(self.closing) if self.template_closes else not rest.strip()
        if not tail.startswith(completion) or not closed:
            cause = " (it strips outer white space)" if tail.startswith(completion.strip()) else ""
            found = difference(completion + self.closing, tail)
            raise TemplateProblem("template_rewrites", f"the chat template does not show the completion as it is{cause}: {found}")
        return completion + self.closing

    def texts_of(self, messages: Sequence[Message], completions: Mapping[str, str]) -> list[str]:
        """The prompt's text, then every completion's, as `prompt_text` and `completion_text` give them.

        Args:
            completions: by the name of their field.
        Raises:
            TemplateProblem: see there; it names the field.
        """
        texts = []
        for field, completion in completions.items():
            try:
                texts.append(self.completion_text(messages, completion))
            except TemplateProblem as problem:
                problem.field = problem.field or field
                raise
        return [self.prompt_text(messages), *texts]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt. Give a sampler these ids, never the text, which it would tokenize in its own way."""
        return self.tokenize([self.prompt_text(messages)])[0]

    def encode_completion(self, messages: Sequence[Message], completion: str) -> list[int]:
        """Token ids of the completion, to follow those of `encode_prompt`; the last is the end-of-sequence token."""
        return self.tokenize([self.completion_text(messages, completion)])[0]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of rendered texts, without added special tokens."""
        if not texts:
            return []
        return [list(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def ids_by_text(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Token ids of each different text: one call of the tokenizer is faster than many, and equal texts are tokenized once."""
        unique = list(dict.fromkeys(texts))
        return dict(zip(unique, self.tokenize(unique), strict=True))

    def same_text(self, first: str, second: str) -> bool:
        """Whether two texts are equal apart from what the tokenizer may normalise."""
        return unicodedata.normalize(self.unicode_form, first) == unicodedata.normalize(self.unicode_form, second)

    @contextlib.contextmanager
    def time_limit(self, *, conversations: int) -> Iterator[None]:
        """Limit the time for rendering this many conversations. An inner limit does nothing, which makes it cheap.

        Raises:
            FormatError: when the time is over.
        """
        if self._limited:
            yield
            return
        seconds = RENDER_SECONDS + conversations * SECONDS_PER_CONVERSATION
        self._limited = True
        try:
            with time_limit(seconds):
                yield
        except TimeLimitExceeded:
            what = "a conversation" if conversations == 1 else f"{conversations:,} conversations"
            raise FormatError(
                f"{self.where}: its chat template took more than {seconds:.0f} seconds for {what}",
                hint="Look at chat_template.jinja of that model; it may not end.",
            ) from None
        finally:
            self._limited = False

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        if not self._limited:
            with self.time_limit(conversations=1):
                return self._render(messages, add_generation_prompt=add_generation_prompt)
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add_generation_prompt)
        except Exception as error:
            # A template may fail in any way (jinja2's errors, its own raise_exception, a TypeError): it concerns this row only.
            reason = str(error) or type(error).__name__
            raise TemplateProblem("template_error", f"the chat template refuses this conversation: {reason}") from error
        return str(text)

    def _check_template(self) -> None:
        template = self.tokenizer.chat_template
        if not template:
            raise FormatError(
                f"{self.where}: the tokenizer has no chat template",
                hint="Add chat_template.jinja to that folder, or start from an instruction-tuned model.",
            )
        # A tokenizer may hold several templates by name; the limit is on all of them.
        text = template if isinstance(template, str) else json.dumps(template)
        if len(text.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
            raise FormatError(
                f"{self.where}: the chat template is larger than {MAX_TEMPLATE_BYTES // 1024} KiB; no honest one is",
                hint="Look at chat_template.jinja of that model.",
            )

    def _check_tokens(self) -> None:
        for name in ("eos", "pad"):
            if getattr(self.tokenizer, f"{name}_token_id") is None:
                raise FormatError(
                    f"{self.where}: the tokenizer has no {name} token",
                    aspect="end_of_sequence" if name == "eos" else "padding",
                    hint=f"Set {name}_token in tokenizer_config.json of that folder.",
                )
        if self.tokenizer.eos_token_id == self.tokenizer.pad_token_id:
            raise FormatError(
                f"{self.where}: padding and end of sequence are the same token, {self.tokenizer.eos_token!r}: "
                "a model trained so never learns to stop",
                aspect="padding",
                hint="Set pad_token in tokenizer_config.json to another token of the vocabulary.",
            )

    def _find_closing(self) -> str:
        """The text after a completion, up to its end-of-sequence token, as a short conversation shows it."""
        messages = [Message(role="user", content=_PROBE)]
        try:
            prompt = self._render(messages, add_generation_prompt=True)
            whole = self._render([*messages, Message(role="assistant", content=_PROBE)], add_generation_prompt=False)
        except TemplateProblem as problem:
            raise FormatError(f"{self.where}: the chat template cannot show one question and its answer: {problem}") from problem
        begins = whole.startswith(prompt) and whole[len(prompt) :].startswith(_PROBE)
        if not begins:
            raise FormatError(
                f"{self.where}: the chat template does not show a completion right after the generation prompt: "
                f"{difference(prompt + _PROBE, whole)}",
                aspect="prompt_prefix",
                hint="Sampling would differ from training: the generation prompt must end where the completion begins.",
            )
        rest = whole[len(prompt) + len(_PROBE) :]
        # Text between the completion and the end-of-sequence token means that another token ends a turn.
        before, found, _ = rest.partition(self.eos_token)
        if before.strip():
            raise FormatError(
                f"{self.where}: the chat template ends a completion with {rest.strip()!r}, but the end-of-sequence token is "
                f"{self.eos_token!r}: the model would never stop",
                aspect="end_of_turn",
                hint="Set eos_token in tokenizer_config.json to the token that ends a turn.",
            )
        self.template_closes = bool(found)
        return before + self.eos_token if found else self.eos_token


def difference(expected: str, found: str) -> str:
    """The two texts around the first character at which they differ."""
    # In spite of its module, it compares strings character by character.
    index = len(os.path.commonprefix([expected, found]))
    start = max(0, index - 20)
    return f"expected {expected[start : index + 30]!r}, found {found[start : index + 30]!r}"
