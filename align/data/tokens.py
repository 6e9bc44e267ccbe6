"""Tokens of rendered texts, and texts of tokens; those of a completion depend on what stands in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that this module uses."""

    chat_template: Any
    bos_token_id: Any
    eos_token: Any
    eos_token_id: Any
    pad_token_id: Any
    added_tokens_decoder: Any

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any: ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool, **variables: Any) -> Any: ...

    def get_vocab(self) -> dict[str, int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> Any: ...


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of rendered texts, without added special tokens."""
    if not texts:
        return []
    if (backend := _backend_of(tokenizer)) is not None:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


_CALLS = {"__call__": "transformers.tokenization_utils_base", "_encode_plus": "transformers.tokenization_utils_tokenizers"}
"""Methods that a call of a transformers tokenizer goes through, and the modules that define them."""


def _backend_of(tokenizer: Tokenizer) -> Any:
    """The `tokenizers.Tokenizer` of a transformers tokenizer, if it gives the ids that a call gives; else None.

    Called directly, it makes no offsets, masks and objects around them, which take a third of the time of a call.
    """
    backend, methods = getattr(tokenizer, "backend_tokenizer", None), type(tokenizer)
    is_plain = all(getattr(getattr(methods, name, None), "__module__", "") == module for name, module in _CALLS.items())
    if backend is None or not is_plain or getattr(tokenizer, "split_special_tokens", True):
        return None
    # A call without options sets these; what an earlier one left behind would cut texts or fill them up.
    is_set = backend.truncation is None and backend.padding is None and not backend.encode_special_tokens
    return backend if is_set else None


class BehindPrompt:
    """Tokens of completions as they are behind a prompt: many tokenizers put a space in front of a text that stands alone.

    Args:
        anchor: what every prompt ends with; empty where a completion follows nothing.
        probe: a text as every completion may begin.
    """

    def __init__(self, tokenizer: Tokenizer, anchor: str, probe: str) -> None:
        self._tokenizer = tokenizer
        self._anchor = anchor
        self._anchor_token_ids = tokenize(tokenizer, [anchor])[0] if anchor else []
        self._added = ""
        text = self.decode(self.tokenize([probe])[0], skip_special_tokens=False)
        # Phi-3's control tokens swallow the line end behind them, and its decoder puts a space in place of it.
        self._added = text.removesuffix(probe) if text.endswith(probe) else ""

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, to follow those of a prompt."""
        anchor = self._anchor_token_ids
        if not anchor:
            return tokenize(self._tokenizer, texts)
        behind = tokenize(self._tokenizer, [self._anchor + text for text in texts])
        # Where the text's beginning would join the prompt's last token, it is tokenized alone: the sampler's prompt is fixed.
        return [
            ids[len(anchor) :] if ids[: len(anchor)] == anchor else tokenize(self._tokenizer, [text])[0]
            for text, ids in zip(texts, behind, strict=True)
        ]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of a completion's tokens. Decoders of SentencePiece drop the space in front of a text that stands alone."""

        def decoded(ids: Sequence[int]) -> str:
            options: dict[str, Any] = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
            return str(self._tokenizer.decode(list(ids), **options))

        before, whole = decoded(self._anchor_token_ids), decoded([*self._anchor_token_ids, *token_ids])
        return whole[len(before) :].removeprefix(self._added) if whole.startswith(before) else decoded(token_ids)
