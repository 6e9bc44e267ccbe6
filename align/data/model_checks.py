"""Checks of rows that need a model's template and tokenizer. Rows are rendered exactly as in training."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.data.turns import difference
from align.records import Message
from align.rows import DataKind
from align.rows.problem import FieldProblem

Normalization = Literal["none", "NFC"]

# Made-up words, which no template writes itself.
_FIRST, _ANSWER, _SECOND = "Qzfirst", "Qzanswer", "Qzsecond"
MIN_MARKER_CHARACTERS = 4
"""A shorter text between turns is too common in ordinary texts to be evidence of a template."""


class ModelChecks:
    """Checks rows with one model's template and tokenizer.

    Rows are checked in batches, with one call of the tokenizer for all rows that must be tokenized.

    Args:
        chat_format: of the model.
        max_tokens: most tokens of prompt and completion together, the end-of-sequence token counted; None: no limit.
    """

    def __init__(self, chat_format: ChatFormat, max_tokens: int | None = None) -> None:
        self._format = chat_format
        self._max_tokens = max_tokens
        self._markers = frozenset(turn_markers(chat_format))
        # Longest first: in an alternation, a token would hide a longer one that begins with it.
        found = sorted([*special_tokens(chat_format.tokenizer), *self._markers], key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, found))) if found else None
        self._normalization = lossless_normalization(chat_format.tokenizer)

    def problems_of(self, kind: DataKind[Any], records: Sequence[Any]) -> list[list[FieldProblem]]:
        """The problems of each record.

        Reasons: special_tokens, contains_eos, template_error, template_rewrites, not_representable, too_many_tokens, identical
        (as tokens) and identical_after_truncation.

        Raises:
            RecipeError: if the template does not end.
        """
        problems = [self._control_problems(kind, record) for record in records]
        shown: list[tuple[int, list[str]]] = []
        with self._format.time_limit(conversations=len(records)):
            # Plain texts have no conversation, so the template does not apply to them.
            for number, record in enumerate(records if kind.has_prompt else ()):
                try:
                    texts = self._format.texts_of(kind.messages(record), kind.answers_of(record))
                except TemplateProblem as problem:
                    problems[number].append(FieldProblem(problem.field, problem.reason, str(problem)))
                    continue
                # A control token in a text is one token, not its bytes: the proof from bytes does not hold for such a row.
                if problems[number] or self._needs_tokens(texts):
                    shown.append((number, texts))
        ids = self._format.token_ids_of([texts for _, texts in shown])
        for (number, texts), tokens in zip(shown, ids, strict=True):
            problems[number] += self._token_problems(kind.completions, texts, tokens)
        return problems

    def _control_problems(self, kind: DataKind[Any], record: Any) -> list[FieldProblem]:
        """Control tokens in the texts of a row. The template's check reports an end-of-sequence token in a completion."""
        if self._control is None:
            return []
        found = []
        for field, text in kind.texts(record).items():
            for match in self._control.finditer(text):
                if match.group() == self._format.end_token and field in kind.completions:
                    continue
                is_marker = match.group() in self._markers
                what = "which the template puts between turns" if is_marker else "a control token of the model"
                message = f"has {match.group()!r} at character {match.start() + 1:,}, {what}"
                found.append(FieldProblem(field, "special_tokens", message))
                break
        return found

    def _needs_tokens(self, texts: Sequence[str]) -> bool:
        """Whether the texts must be tokenized, because their bytes alone cannot prove that their tokens are sound."""
        if self._normalization is None:
            return True
        spelt = [canonical(text, self._normalization) for text in texts]
        # Prompt, chosen, rejected: sides with equal bytes have equal tokens, which `_token_problems` reports.
        if len(spelt) == 3 and spelt[1] == spelt[2]:
            return True
        if self._max_tokens is None:
            return False
        # A byte-level token stands for at least one byte, so the number of bytes bounds the number of tokens.
        most = [len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in spelt]
        return most[0] + max(most[1:], default=0) > self._max_tokens

    def _token_problems(self, fields: Sequence[str], texts: Sequence[str], ids: Sequence[list[int]]) -> list[FieldProblem]:
        prompt, completions = ids[0], ids[1:]
        problems = []
        if self._normalization is None:
            for field, text, tokens in zip(fields, texts[1:], completions, strict=True):
                if message := self._lost(text, tokens):
                    problems.append(FieldProblem(field, "not_representable", message))
        if len(completions) == 2 and completions[0] == completions[1]:
            return [*problems, FieldProblem("chosen", "identical", "chosen and rejected are the same tokens")]
        limit = self._max_tokens
        if limit is None:
            return problems
        # A completion needs room for at least one token.
        least = 1 if completions else 0
        if len(prompt) + least > limit:
            message = f"the prompt alone has {len(prompt):,} tokens; the limit is {limit:,}"
            return [*problems, FieldProblem("prompt", "too_many_tokens", message)]
        for field, tokens in zip(fields, completions, strict=True):
            if (count := len(prompt) + len(tokens)) > limit:
                problems.append(
                    FieldProblem(field, "too_many_tokens", f"prompt and {field}: {count:,} tokens; the limit is {limit:,}")
                )
        room = limit - len(prompt)
        if len(completions) == 2 and completions[0][:room] == completions[1][:room]:
            message = f"chosen and rejected begin with the same {room:,} tokens, all that the limit of {limit:,} leaves room for"
            problems.append(FieldProblem("chosen", "identical_after_truncation", message))
        return problems

    def _lost(self, text: str, tokens: list[int]) -> str:
        """The message for tokens that do not decode to the text; empty if they do."""
        back = self._format.decode_completion(tokens)
        return (
            "" if self._format.same_text(back, text) else f"the tokenizer cannot write this completion: {difference(text, back)}"
        )


def special_tokens(tokenizer: Any) -> list[str]:
    """The control tokens of a tokenizer, as texts."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added]))


def turn_markers(chat_format: ChatFormat) -> list[str]:
    """The plain text that a template writes between turns, such as `[INST]` or `### Human:`."""
    messages = [
        Message(role="user", content=_FIRST),
        Message(role="assistant", content=_ANSWER),
        Message(role="user", content=_SECOND),
    ]
    try:
        text = chat_format.prompt_text(messages)
    except TemplateProblem:
        return []
    before, _, behind = text.rpartition(_SECOND)
    # The template's text on both sides of the second question: end of an answer, start of a user's turn, start of an answer.
    between = before.rpartition(_ANSWER)[2] + "\n" + behind
    for token in special_tokens(chat_format.tokenizer):
        between = between.replace(token, "\n")
    lines = [line.strip() for line in between.splitlines()]
    # A single word, such as the name of a role, occurs in ordinary texts too.
    return list(dict.fromkeys(line for line in lines if len(line) >= MIN_MARKER_CHARACTERS and not line.isalnum()))


# A byte-level tokenizer spells a text byte by byte: other texts have other tokens, and no text has more tokens than bytes.
# For most rows this proves that the tokens are sound; making the tokens would take most of the time of the check.


def lossless_normalization(tokenizer: Any) -> Normalization | None:
    """How a byte-level tokenizer normalises a text before it spells it; None for any other tokenizer, or if it may change more.

    Args:
        tokenizer: a transformers tokenizer. Control tokens are ignored here, although one may swallow white space around it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _is_byte_level(backend):
        return None
    if backend.normalizer is None:
        return "none"
    return "NFC" if _state(backend.normalizer).get("type") == "NFC" else None


def canonical(text: str, normalization: Normalization) -> str:
    """The text that the tokenizer spells in bytes: two texts have the same tokens exactly if these are equal."""
    return text if normalization == "none" or text.isascii() else unicodedata.normalize("NFC", text)


def _is_byte_level(backend: Any) -> bool:
    from tokenizers import models, pre_tokenizers

    if backend.pre_tokenizer is None or not isinstance(backend.model, models.BPE):
        return False
    state = _state(backend.pre_tokenizer)
    # Steps before ByteLevel may cut a text but must lose nothing. With a prefix space, two texts could have the same bytes.
    *before, last = state["pretokenizers"] if state.get("type") == "Sequence" else [state]
    keeps_all = all(step.get("type") in ("Split", "Digits") and step.get("behavior") != "Removed" for step in before)
    if not keeps_all or last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return False
    # A byte without a token of its own would become the unknown token, and the text could not be read back.
    return all(backend.token_to_id(letter) is not None for letter in pre_tokenizers.ByteLevel.alphabet())


def _state(component: Any) -> dict[str, Any]:
    """A component of a tokenizer as it is in tokenizer.json."""
    # tokenizers gives no access to all settings; the pickle state of a component is its JSON.
    value = json.loads(component.__getstate__())
    return value if isinstance(value, dict) else {}
