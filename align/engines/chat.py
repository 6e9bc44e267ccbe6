"""A conversation with a model in this process: turns, streamed text, and dropping old turns when the context is full."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence

import torch

from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.engines.open import resolve_dtype
from align.engines.protocol import BrokenLogits, SamplingSettings
from align.engines.transformers_engine import TransformersEngine
from align.errors import DataError
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.records import Message

REPLACEMENT = "\ufffd"
"""Decoders write it for bytes that are no complete character."""
DECODE_AGAIN = 8
"""Earlier tokens that are decoded with a new one: tokenizers may decode a token differently at the start of a text."""


class StreamingEngine(TransformersEngine):
    """The transformers engine for one conversation: it gives one token at a time."""

    @torch.inference_mode()
    def stream(self, prompt_token_ids: list[int], settings: SamplingSettings, generator: torch.Generator) -> Iterator[int]:
        """Tokens as they are drawn, the stop token included. The same state of the generator gives the same tokens.

        Raises:
            BrokenLogits: see `TextEngine.generate`.
        """
        following = self._begin([prompt_token_ids])
        drawn: list[int] | None = None
        for count in range(min(settings.max_completion_tokens, self._room([prompt_token_ids]))):
            drawn, logps = self._draw(following(drawn), [generator], settings)
            if not math.isfinite(logps[0]):
                raise BrokenLogits.of(self._where, 0, count)
            yield drawn[0]
            if drawn[0] in settings.stop_token_ids:
                return


class TextStream:
    """Decodes tokens one by one. A character that is split over tokens is held back until it is complete."""

    def __init__(self, chat_format: ChatFormat) -> None:
        self._decode = chat_format.tokenizer.decode
        self._lead = chat_format.lead
        self._token_ids: list[int] = []
        self._start = 0
        self._shown = 0  # number of tokens whose text was returned

    def add(self, token_id: int) -> str:
        """The text that this token completes: often a word, sometimes nothing."""
        self._token_ids.append(token_id)
        new = self._text_after(self._shown)
        # The character may be complete with the next token; text that was shown cannot be taken back.
        if not new or new.endswith(REPLACEMENT):
            return ""
        first, self._shown = self._shown == 0, len(self._token_ids)
        self._start = max(0, self._shown - DECODE_AGAIN)
        return new.removeprefix(self._lead) if first else new

    def finish(self) -> str:
        """The text held back; an incomplete character becomes U+FFFD."""
        return self._text_after(self._shown)

    def _text_after(self, shown: int) -> str:
        # The difference of two decoded texts: tokens that are decoded one by one do not join to the same text.
        before, whole = self._text(self._token_ids[self._start : shown]), self._text(self._token_ids[self._start :])
        return whole[len(before) :]

    def _text(self, token_ids: list[int]) -> str:
        return str(self._decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Conversation:
    """A conversation. The model sees as many of its latest turns as fit its context.

    Args:
        model_folder: model or adapter with a chat template.
        system: first message, which is never dropped.
        seed: of every draw, over the whole conversation.
    """

    def __init__(
        self, model_folder: ModelFolder, *, system: str | None, temperature: float, max_completion_tokens: int, seed: int
    ) -> None:
        self._format = load_format(model_folder)
        self._context = model_folder.context_tokens
        self._engine = StreamingEngine(model_folder, dtype=resolve_dtype("auto"), max_model_tokens=self._context)
        self._settings = SamplingSettings(
            temperature=temperature,
            top_p=1.0,
            top_k=None,
            max_completion_tokens=max_completion_tokens,
            num_candidates=1,
            stop_token_ids=self._format.stop_token_ids,
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._system = [] if system is None else [Message(role="system", content=system)]
        self.turns: list[tuple[Message, Message]] = []
        """Questions and answers so far, oldest first."""

    def reset(self) -> None:
        """Forget every turn."""
        self.turns.clear()

    def ask(self, text: str) -> tuple[int, Generator[str, None, None]]:
        """The number of oldest turns that were dropped, and the answer's text, piece by piece.

        The turn is kept when the iteration ends. If it ends early, the answer is kept as far as it got.

        Raises:
            DataError: if `text` alone does not fit, or the chat template refuses it.
        """
        question = Message(role="user", content=text)
        # The conversation gets at least half of the context; an answer longer than the rest is cut.
        room = max(1, self._context - min(self._settings.max_completion_tokens, self._context // 2))
        # Oldest turns go first; the last try is the question alone.
        for dropped in range(len(self.turns) + 1):
            ids = self._encode(self.turns[dropped:], question)
            if len(ids) <= room:
                del self.turns[:dropped]
                return dropped, self._answer(question, ids)
        raise DataError(
            f"the message has {len(ids)} tokens with its template; the model sees {self._context}, of which "
            f"{room} are left for the conversation",
            hint="Say it in fewer words, or give a smaller --max-tokens.",
        )

    def _encode(self, turns: Sequence[tuple[Message, Message]], question: Message) -> list[int]:
        earlier = [message for turn in turns for message in turn]
        try:
            return self._format.encode_prompt([*self._system, *earlier, question])
        except TemplateProblem as problem:
            raise DataError(str(problem), hint="Start again with /reset, or without --system.") from problem

    def _answer(self, question: Message, ids: list[int]) -> Generator[str, None, None]:
        stream, said, drawn = TextStream(self._format), "", list[int]()
        stops = self._settings.stop_token_ids
        try:
            for token_id in self._engine.stream(ids, self._settings, self._generator):
                drawn.append(token_id)
                if token_id in stops:
                    break  # not every one is a special token, which decoding would leave out
                piece = stream.add(token_id)
                said += piece
                if piece:
                    yield piece
            rest = stream.finish()
            said += rest
            if rest:
                yield rest
        finally:
            # Also when Ctrl-C closes the generator early: the next turn must see what the user saw.
            # An answer that ended comes without what the template writes in front of its end, as it will write it again.
            answer = self._format.sampled_text(drawn) if drawn and drawn[-1] in stops else said
            if answer := self._format.without_thinking(answer):
                self.turns.append((question, Message(role="assistant", content=answer)))
