"""Loading a tokenizer so that it makes the tokens of its tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.models.files import TOKENIZER_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    "Two words,  12.5 %.\n\tdef f(x): return x",
    " 안녕하세요, 오늘 날씨가 어때요?\n",
    "今日は 👍🏽 \u1112\u1161\u11ab",
)
"""Texts with what tokenizers treat differently: runs of spaces, line ends, code, Korean composed and not, emoji."""


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that was checked. Never goes to the network, and runs no code of the folder."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path), **options)
    if not _is_as_published(tokenizer, path):
        # The class that tokenizer_config.json names builds a tokenizer of its own, which may be another: of deepseek-coder's
        # byte-level file it makes SentencePiece's, and all spaces are lost. tokenizer.json is what the model was trained with.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), **options)
    return tokenizer


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Make these texts special tokens, each whole in every text; those that the vocabulary lacks get the next free ids."""
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)


def differing_ids(one: Mapping[str, int], other: Mapping[str, int]) -> list[str]:
    """Tokens that have different ids in two vocabularies, or are in one alone."""
    return sorted(token for token in one.keys() | other.keys() if one.get(token) != other.get(token))


def _is_as_published(tokenizer: PreTrainedTokenizerBase, path: Path) -> bool:
    """Whether it makes the tokens of tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:  # made from the file itself
        return True
    published = Tokenizer.from_file(str(path / TOKENIZER_NAME))
    return all(
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) == published.encode(text, add_special_tokens=False).ids
        for text in PROBES
    )
