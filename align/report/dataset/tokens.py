"""Rows as training sees them: their lengths in tokens, and the tokens that the loss is taken on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.report.dataset.distribution import Distribution
from align.report.dataset.facts import TokenFacts
from align.rows import DataKind

ROWS_AT_ONCE = 1_000


@dataclass(frozen=True)
class Piece:
    """A token, or the few tokens that together make up one character (the bytes of a rare letter)."""

    text: str
    tokens: int
    trained: bool
    """Whether the loss is taken on it."""
    special: bool
    """Whether it is a control token of the tokenizer."""


@dataclass(frozen=True)
class TokenSequence:
    """One input of the model: a prompt, followed by one completion if the row has any. Or a plain text, which has no tokens."""

    name: str
    """Which completion: completion, chosen, rejected; else prompt or text. Of a plain text the role, or the field."""
    pieces: list[Piece]
    tokens: int
    trained_tokens: int


class TrainingView:
    """Shows rows through a model's chat template and tokenizer, by the same functions that training uses.

    Args:
        chat_format: of the model.
        model: how the user called it.
        limit: most tokens of prompt and longer completion.
    """

    def __init__(self, chat_format: ChatFormat, *, model: str, limit: int) -> None:
        self._format = chat_format
        self._model = model
        self._limit = limit
        self._special = frozenset(_special_ids(chat_format.tokenizer))

    def lengths(self, kind: DataKind[Any], records: Sequence[Any]) -> TokenFacts:
        """Token counts of every text of every record that can be shown."""
        sides = {name: Distribution() for name in kind.sides}
        rows, refused = Distribution(), Counter[str]()
        iterator = iter(records)
        while batch := list(islice(iterator, ROWS_AT_ONCE)):
            texts = [text for record in batch if (text := self._texts_or_reason(kind, record, refused)) is not None]
            # In batches: the texts and ids of a thousand rows are in memory at once, not those of all.
            ids = iter(self._format.tokenize([text for row in texts for text in row]))
            for row in texts:
                counts = [len(next(ids)) for _ in row]
                for name, count in zip(sides, counts, strict=True):
                    sides[name].add(count)
                # Chosen and rejected are sequences of their own; the longer one decides whether the row fits.
                rows.add(counts[0] + max(counts[1:], default=0))
        return TokenFacts(self._model, self._limit, sides, rows, dict(refused.most_common()), len(records))

    def _texts_or_reason(self, kind: DataKind[Any], record: Any, refused: Counter[str]) -> list[str] | None:
        try:
            return self._texts(kind, record)
        except TemplateProblem as problem:
            refused[problem.reason] += 1
            return None

    def _texts(self, kind: DataKind[Any], record: Any) -> list[str]:
        """The rendered prompt and the rendered completions; of a text, itself."""
        if not kind.has_prompt:
            return [kind.subject_text(record)]
        return self._format.texts_of(kind.messages(record), kind.answers_of(record))

    def sequences(self, kind: DataKind[Any], record: Any) -> list[TokenSequence]:
        """Every sequence of tokens that a row becomes.

        Raises:
            TemplateProblem: if the template or the tokenizer cannot show the row.
        """
        first, *completions = (self._pieces(text, trained=index > 0) for index, text in enumerate(self._texts(kind, record)))
        if not completions:
            return [_sequence(kind.subject, first, [])]
        return [_sequence(name, first, completion) for name, completion in zip(kind.completions, completions, strict=True)]

    def _pieces(self, text: str, *, trained: bool) -> list[Piece]:
        """Cut a rendered text where its tokens begin. Prompt and completion are tokenized apart, as in training."""
        tokenizer: Any = self._format.tokenizer
        # Control tokens are in the rendered text already; adding them again would show a second beginning-of-sequence token.
        encoded = tokenizer([text], add_special_tokens=False, return_offsets_mapping=True)
        groups: list[tuple[int, int, list[int]]] = []  # start, end, token ids
        for token_id, (start, end) in zip(encoded["input_ids"][0], encoded["offset_mapping"][0], strict=True):
            if groups and start < groups[-1][1]:  # bytes of one character, each with the place of the whole
                groups[-1] = (groups[-1][0], max(end, groups[-1][1]), [*groups[-1][2], token_id])
            else:
                groups.append((start, end, [token_id]))
        # Some tokenizers leave white space out of a token's offsets. It is shown with the next token, at the end with the last.
        begins = [0, *(end for _, end, _ in groups[:-1])]
        ends = [*(end for _, end, _ in groups[:-1]), len(text)]
        return [
            Piece(text[begin:end], len(ids), trained, self._special.issuperset(ids))
            for begin, end, (_, _, ids) in zip(begins, ends, groups, strict=False)
        ]


def _sequence(name: str, prompt: list[Piece], completion: list[Piece]) -> TokenSequence:
    trained = sum(piece.tokens for piece in completion)
    return TokenSequence(name, [*prompt, *completion], trained + sum(piece.tokens for piece in prompt), trained)


def _special_ids(tokenizer: Any) -> Iterator[int]:
    yield from tokenizer.all_special_ids
    yield from (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
