"""Chat templates and token spans: the text that a model reads, and the tokens that the loss is taken on.

A prompt is rendered as text and tokenized without special tokens: a template may write its own BOS, and must not get a second
one. A sampler sees the prompt's ids alone, so prompt and completion are tokenized apart; a completion is tokenized behind the
text that ends every prompt, because many tokenizers put a space in front of a text that stands alone.

Duck-typed on a transformers tokenizer; loads neither torch nor transformers. transformers renders templates in Jinja's immutable
sandbox (`ImmutableSandboxedEnvironment`, checked for 5.19 by tests/unit/data/test_template.py); size and time are limited here.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from align.config.chat import PINNED_DATE, ChatSettings
from align.data.template_problems import (
    MAX_RENDERED_CHARACTERS,
    Aspect,
    FormatError,
    TemplateProblem,
    bytes_for,
    check_template,
    seconds_for,
    too_slow,
)
from align.data.time_limit import TimeLimitExceeded, memory_limit, time_limit
from align.data.tokens import BehindPrompt, Tokenizer, tokenize
from align.data.tool_messages import not_shown, render_with_tools, up_to_end
from align.data.turns import PROBE, added_tokens, choose_padding, difference, find_turns, leading_token, with_system
from align.records import Message

MAX_CACHED_PROMPTS = 50_000
"""Rendered prompts are cached, since several completions follow each; the bound keeps memory from growing with the data."""

THINKING = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
"""A thinking block at the beginning of a completion, as Qwen3, R1, EXAONE 4 and others write it."""


class ChatFormat:
    """Renders and tokenizes conversations for one model.

    Args:
        tokenizer: a transformers tokenizer, or anything shaped like one.
        where: the model's name in messages, usually its folder.
        settings: what a recipe says about the format.
        stop_token_ids: tokens at which the model's own generation_config.json stops, in addition to those found here.
    Raises:
        FormatError: if the tokenizer has no chat template, if no token is found that ends a completion or that can pad rows, or
            if the template does not show a completion as it is, right behind its prompt.
    """

    unicode_form: Literal["NFC", "NFKC"] = "NFC"
    """Two texts that are equal in this form count as the same: tokenizers normalise at least this much."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        where: str = "the model",
        *,
        settings: ChatSettings | None = None,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.where = where
        self.settings = settings or ChatSettings()
        self._prompt_texts: dict[tuple[tuple[str, str], ...], str] = {}  # by role and content, or the whole message with tools
        self._limited = False
        self.printed_dates: dict[str, str] = {}
        """Formats of `strftime` that the template asked for, with the date that it got."""
        self._check_template()
        # First values; what follows renders conversations and sets them.
        self.opening = self.lead = self._anchor = self._after_closing = ""
        """`opening` ends every prompt; `lead` is white space that belongs to a completion's tokens and not to its text."""
        self._shows_prompt = self.template_closes = True
        self.end_token, self.closing = str(tokenizer.eos_token or ""), ""
        self._find_format()
        self.end_token_id = self._id_of(self.end_token, "end_of_sequence")
        ends = [self.end_token_id, *([] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]), *stop_token_ids]
        self.stop_token_ids = tuple(dict.fromkeys(ends))
        """Tokens that end a completion: that of the template first, then the tokenizer's and the model's own."""
        self.pad_token_id = self._find_padding()
        self._behind_prompt = BehindPrompt(tokenizer, self._anchor, self.lead + PROBE)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt as the model reads it, up to where its completion begins.

        Raises:
            TemplateProblem: if the template refuses the conversation.
        """
        key = tuple((one.role, one.model_dump_json() if one.uses_tools else one.content) for one in messages)
        if key not in self._prompt_texts:
            if len(self._prompt_texts) >= MAX_CACHED_PROMPTS:
                # Clearing all is simpler than tracking use, and costs one more rendering of each prompt that comes again.
                self._prompt_texts.clear()
            try:
                self._prompt_texts[key] = self._render(messages, add_generation_prompt=True) + self.opening
            except TemplateProblem as problem:
                problem.field = "prompt"
                raise
        return self._prompt_texts[key]

    def completion_text(self, messages: Sequence[Message], completion: str | Message) -> str:
        """The text behind the prompt: the completion as the template shows it, and the token that ends it.

        Args:
            completion: its text, or a message with tool calls.
        Raises:
            TemplateProblem: if the template refuses the conversation, or changes the completion.
        """
        if isinstance(completion, Message):
            if completion.tool_calls:
                return self._calls_text(messages, completion)
            completion = completion.content
        self._refuse_end(completion)
        completion = self.without_thinking(completion)
        prompt = self.prompt_text(messages)
        if not self._shows_prompt:
            # The prompt opens a thinking block that the finished turn does not show: nothing is there to compare with.
            return completion + self.closing
        whole = self._render([*messages, Message(role="assistant", content=completion)], add_generation_prompt=False)
        tail = self._tail_of(prompt, whole, completion)
        shown = self._with_thinking(completion, tail) if self.settings.thinking == "keep" else self.lead + completion
        rest = tail.removeprefix(shown)
        # What the template writes after the end-of-sequence token is left out: the sampler stops at that token.
        closed = rest.startswith(self.closing) if self.template_closes else not rest.strip()
        if not tail.startswith(shown) or not closed:
            self._refuse_thinking(completion)
            cause = " (it strips outer white space)" if tail.lstrip().startswith(completion.strip()) else ""
            found = difference(shown + self.closing, tail)
            raise TemplateProblem("template_rewrites", f"the chat template does not show the completion as it is{cause}: {found}")
        return shown + self.closing

    def _tail_of(self, prompt: str, whole: str, completion: str) -> str:
        """What a conversation shows behind its prompt."""
        # Some templates change earlier turns once an answer follows. Sampling would then see another prompt than training.
        if not whole.startswith(prompt):
            self._refuse_thinking(completion)
            raise TemplateProblem(
                "template_rewrites",
                f"the chat template shows the prompt otherwise once a completion follows: {difference(prompt, whole)}",
            )
        return whole[len(prompt) :]

    def _calls_text(self, messages: Sequence[Message], answer: Message) -> str:
        """The text behind the prompt for a message with tool calls, whose form only the template knows."""
        self._refuse_end(answer.text)
        answer = answer.model_copy(update={"content": self.without_thinking(answer.content)})
        whole = self._render([*messages, answer], add_generation_prompt=False)
        tail = self._tail_of(self.prompt_text(messages), whole, answer.content)
        if missing := not_shown(tail, [answer]):
            raise TemplateProblem("tools_not_shown", f"the chat template leaves out {missing[0]!r} of the tool calls")
        if not self.template_closes:
            return tail.rstrip() + self.closing
        stops = [token for token, number in added_tokens(self.tokenizer).items() if number in self.stop_token_ids]
        return up_to_end(tail, {self.end_token, *stops}, self._after_closing)

    def without_thinking(self, completion: str) -> str:
        """The completion without its reasoning where the settings strip it: as it is trained on, and stands in later prompts."""
        return THINKING.sub("", completion, count=1) if self.settings.thinking == "strip" else completion

    def continuation(self, completion: str, *, ended: bool) -> str:
        """The text behind the prompt for a completion that a model wrote, without asking the template.

        Args:
            ended: whether the completion ended by itself; the end of any other is not shown, as the policy did not write one.
        Raises:
            TemplateProblem: if the completion contains the token that ends it.
        """
        self._refuse_end(completion)
        return self.lead + completion + (self.closing if ended else "")

    def _refuse_end(self, completion: str) -> None:
        # In a fixed order: the message goes into drops.jsonl, and a set of texts has another order in every process.
        for end in filter(None, (self.end_token, self.tokenizer.eos_token)):
            # The tokenizer would make the real token of it, and the model would learn to write on after its end.
            if str(end) in completion:
                raise TemplateProblem("contains_eos", f"the completion contains the end-of-sequence token {end!r}")

    def texts_of(self, messages: Sequence[Message], completions: Mapping[str, str | Message]) -> list[str]:
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

    def sampled_text(self, token_ids: Sequence[int]) -> str:
        """The completion in sampled tokens, without the token that ended it and what the template writes around it."""
        ended = bool(token_ids) and token_ids[-1] in self.stop_token_ids
        text = self._behind_prompt.decode(token_ids[:-1] if ended else token_ids, skip_special_tokens=True)
        spacing = self.closing.removesuffix(self.end_token) if ended and self.template_closes else ""
        return text.removeprefix(self.lead).removesuffix(spacing)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt. Give a sampler these ids, never the text, which it would tokenize in its own way."""
        return self.tokenize([self.prompt_text(messages)])[0]

    def encode_completion(self, messages: Sequence[Message], completion: str) -> list[int]:
        """Token ids of the completion, to follow those of `encode_prompt`; the last is the token that ends it."""
        return self.token_ids_of([self.texts_of(messages, {"completion": completion})])[0][1]

    def token_ids_of(self, rows: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Token ids of rows of texts, each a prompt's text and those of its completions.

        One call of the tokenizer is faster than many, and equal texts are tokenized once.
        """
        prompts = dict.fromkeys(texts[0] for texts in rows if texts)
        completions = dict.fromkeys(text for texts in rows for text in texts[1:])
        ids = dict(zip(prompts, self.tokenize(list(prompts)), strict=True))
        behind = dict(zip(completions, self._behind_prompt.tokenize(list(completions)), strict=True))
        return [[ids[text] if place == 0 else behind[text] for place, text in enumerate(texts)] for texts in rows]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of rendered texts, without added special tokens."""
        return tokenize(self.tokenizer, texts)

    def decode_completion(self, token_ids: Sequence[int]) -> str:
        """The text of a completion's tokens, special tokens included."""
        return self._behind_prompt.decode(token_ids, skip_special_tokens=False)

    def renders_alike(self, template: str, tools: list[dict[str, Any]] | None = None) -> bool:
        """Whether a template, by itself, gives the prompts of this format: for one question, with tools, and for a second one."""
        question, answer = Message(role="user", content=PROBE, tools=tools or []), Message(role="assistant", content=PROBE)
        # A template that holds its date must print it by itself; any other is compared on the same day.
        given: dict[str, Any] = {} if self.settings.date is not None else {"strftime_now": self._strftime}
        given |= {"tools": tools} if tools else {}
        for messages in ([question], [question, answer, question]):
            conversation = [{"role": message.role, "content": message.content} for message in messages]
            text = self.tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True, chat_template=template, **given
            )
            if text != self._render(messages, add_generation_prompt=True) + self.opening:
                return False
        return True

    def same_text(self, first: str, second: str) -> bool:
        """Whether two texts are equal apart from what the tokenizer may normalise."""
        return unicodedata.normalize(self.unicode_form, first) == unicodedata.normalize(self.unicode_form, second)

    @contextlib.contextmanager
    def time_limit(self, *, conversations: int) -> Iterator[None]:
        """Limit time and memory for rendering this many conversations. An inner limit does nothing, which makes it cheap.

        Raises:
            FormatError: when the time is over.
        """
        if self._limited:
            yield
            return
        self._limited = True
        try:
            with time_limit(seconds_for(conversations)), memory_limit(bytes_for(conversations)):
                yield
        except TimeLimitExceeded:
            raise too_slow(self.where, conversations) from None
        finally:
            self._limited = False

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        if not self._limited:
            with self.time_limit(conversations=1):
                return self._render(messages, add_generation_prompt=add_generation_prompt)
        shown = with_system(messages, self.settings.system)
        if any(message.uses_tools for message in messages):
            return render_with_tools(shown, messages[0].tools, partial(self._apply, add_generation_prompt))
        return self._apply(add_generation_prompt, [{"role": message.role, "content": message.content} for message in shown])

    def _apply(self, add_generation_prompt: bool, conversation: list[dict[str, Any]], tools: Sequence[Any] = ()) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                conversation,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=self._strftime,
                # Some templates ask whether there is a variable `tools` at all.
                **({"tools": list(tools)} if tools else {}),
                **self.settings.template_kwargs,
            )
            if len(text) > MAX_RENDERED_CHARACTERS:
                raise ValueError(f"it writes {len(text):,} characters")
            str(text).encode()  # half a character, which no tokenizer takes, is a UnicodeEncodeError
        except Exception as error:
            # A template may fail in any way (jinja2's errors, its own raise_exception, a TypeError): it concerns this row only.
            reason = str(error) or type(error).__name__
            raise TemplateProblem("template_error", f"the chat template refuses this conversation: {reason}") from error
        return str(text)

    def _check_template(self) -> None:
        check_template(self.tokenizer.chat_template, self.where)

    def _strftime(self, form: str) -> str:
        """Stands in for the template's `strftime_now`: the same tokens on every day."""
        day = datetime.date.fromisoformat(self.settings.date or PINNED_DATE)
        return self.printed_dates.setdefault(form, day.strftime(form))

    def _find_format(self) -> None:
        """Find what the template writes around a completion, by rendering a short conversation."""
        try:
            turns = find_turns(lambda messages, prompt: self._render(messages, add_generation_prompt=prompt))
        except (TemplateProblem, ValueError) as problem:
            raise FormatError(f"{self.where}: the chat template cannot show one question and its answer: {problem}") from problem
        self._anchor, keep = turns.generation_prompt, self.settings.thinking == "keep"
        if not turns.begins_with_prompt and not keep:
            raise FormatError(
                f"{self.where}: the chat template does not show a completion right after the generation prompt: "
                f"{turns.difference}",
                aspect="prompt_prefix",
                hint="If the prompt opens a thinking block, write `chat: {thinking: keep}` at that model, or set a variable of "
                "the template that turns thinking off: `chat: {template_kwargs: {enable_thinking: false}}`.",
            )
        self._shows_prompt = turns.begins_with_prompt
        # White space belongs to the completion, since tokenizers join it to the first word. Anything else is the prompt's.
        if not turns.opening.strip():
            self.lead = turns.opening
        elif not keep:
            self.opening = turns.opening
            self._anchor += self.opening
        self._find_end(turns.closing)

    def _find_end(self, closing: str) -> None:
        """Find the token that ends a completion in the text that the template writes behind one."""
        known = added_tokens(self.tokenizer)
        own = None if self.tokenizer.eos_token is None else str(self.tokenizer.eos_token)
        candidates = [*known, *([own] if own else [])] if self.settings.end_of_turn is None else [self.settings.end_of_turn]
        end = leading_token(closing, candidates)
        self.template_closes = end is not None
        if end is None:
            chosen = self.settings.end_of_turn or own
            if closing.strip() or chosen is None:
                shown = f"ends a completion with {closing.strip()!r}, which is" if closing.strip() else "writes"
                raise FormatError(
                    f"{self.where}: the chat template {shown} no token that a model can stop at"
                    + (f"; the end-of-sequence token is {own!r}" if own else ""),
                    aspect="end_of_turn" if closing.strip() else "end_of_sequence",
                    hint="Write the token that ends a turn at that model: `chat: {end_of_turn: …}`, or have it added to the "
                    'vocabulary: `chat: {add_tokens: ["…"]}`.',
                )
            end = chosen
        self.end_token = end
        before, _, self._after_closing = closing.partition(end) if self.template_closes else ("", "", "")
        self.closing = before + end

    def _with_thinking(self, completion: str, tail: str) -> str:
        """What the template shows of a completion, its reasoning or an empty thinking block included."""
        shown = tail.removesuffix(self.closing + self._after_closing)
        # The template may move white space around the reasoning; no word may be lost.
        return shown if "".join(shown.split()).endswith("".join(completion.split())) else completion

    def _refuse_thinking(self, completion: str) -> None:
        if self.settings.thinking == "refuse" and "</think>" in completion:
            raise TemplateProblem(
                "contains_thinking",
                "the completion holds a thinking block, which the chat template rewrites; "
                "`chat: {thinking: keep}` at the model trains on it, `thinking: strip` removes it",
            )

    def _id_of(self, token: str, aspect: Aspect) -> int:
        vocabulary = self.tokenizer.get_vocab()
        if token not in vocabulary:
            raise FormatError(
                f"{self.where}: {token!r} is not a token of its vocabulary",
                aspect=aspect,
                hint="Name a token that is in tokenizer.json.",
            )
        return int(vocabulary[token])

    def _find_padding(self) -> int:
        if self.settings.pad_token is not None:
            chosen: int | None = self._id_of(self.settings.pad_token, "padding")
            problem = "the padding token ends a completion, too: a model trained so elsewhere never learns to stop"
        else:
            template = json.dumps(self.tokenizer.chat_template, ensure_ascii=False)
            chosen = choose_padding(self.tokenizer, end=self.end_token_id, stops=self.stop_token_ids, used=template)
            problem = "its vocabulary has no token that could pad rows"
        if chosen is None or chosen == self.end_token_id:
            raise FormatError(
                f"{self.where}: {problem}",
                aspect="padding",
                hint="Write a token that rows may be filled with at that model: `chat: {pad_token: …}`.",
            )
        return chosen
