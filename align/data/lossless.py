"""Tokenizers that keep every text: what is known of their tokens without making any.

A byte-level tokenizer spells a text byte by byte: another text has other tokens, and there is at most one token a byte. Most
rows are so short that nothing else need be known, and tokenizing them would take most of the time of checking them.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Literal

Normalization = Literal["none", "NFC"]


def lossless_normalization(tokenizer: Any) -> Normalization | None:
    """What a tokenizer does to a text before it spells it in bytes; None if it may do more, or is not byte-level.

    Args:
        tokenizer: a transformers tokenizer. Control tokens are left out of account: one may take white space around it along.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _is_byte_level(backend):
        return None
    if backend.normalizer is None:
        return "none"
    return "NFC" if _state(backend.normalizer).get("type") == "NFC" else None


def canonical(text: str, normalization: Normalization) -> str:
    """The text that is spelt in bytes: texts have the same tokens exactly if these are equal."""
    return text if normalization == "none" or text.isascii() else unicodedata.normalize("NFC", text)


def _is_byte_level(backend: Any) -> bool:
    from tokenizers import models, pre_tokenizers

    if backend.pre_tokenizer is None or not isinstance(backend.model, models.BPE):
        return False
    state = _state(backend.pre_tokenizer)
    *before, last = state["pretokenizers"] if state.get("type") == "Sequence" else [state]
    keeps_all = all(step.get("type") in ("Split", "Digits") and step.get("behavior") != "Removed" for step in before)
    if not keeps_all or last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return False
    return all(backend.token_to_id(letter) is not None for letter in pre_tokenizers.ByteLevel.alphabet())


def _state(component: Any) -> dict[str, Any]:
    """A component of a tokenizer as it is in tokenizer.json."""
    value = json.loads(component.__getstate__())
    return value if isinstance(value, dict) else {}
