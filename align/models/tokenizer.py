"""Loading a tokenizer so that it makes the tokens of its tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import AlignError, EnvironmentProblem
from align.models.files import TOKENIZER_NAME
from align.system_errors import system_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "\uffff\uffff"
"""No token of any vocabulary."""
SHOWN_CHARACTERS = 200
OF_TOKENIZER = "its tokenizer"
PROBES = (
    "Two words,  12.5 %.\n\tdef f(x): return x",
    " 안녕하세요, 오늘 날씨가 어때요?\n",
    "今日は 👍🏽 \u1112\u1161\u11ab",
)
"""Texts with what tokenizers treat differently: runs of spaces, line ends, code, Korean composed and not, emoji."""


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that was checked. Never goes to the network, and runs no code of the folder.

    Raises:
        EnvironmentProblem: if its files make no tokenizer that can be used.
    """
    with usable(path):
        return _loaded(path)


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Raise what a folder's tokenizer fails with inside as an EnvironmentProblem."""
    try:
        yield
    except AlignError:
        raise
    except BaseException as error:
        # Whatever transformers stumbles on, and of the library in Rust, whose failures are no Exception in Python.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:SHOWN_CHARACTERS]
        raise system_problem(error, path) or EnvironmentProblem(
            f"{path}: {OF_TOKENIZER} cannot be used ({type(error).__name__}: {reason})",
            hint=f'Get its files again, or save them anew: AutoTokenizer.from_pretrained("…").save_pretrained("{path}").',
        ) from error


def _loaded(path: Path) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path), **options)
    is_own_class = type(tokenizer) is not PreTrainedTokenizerFast  # which is made from the file itself
    published = Tokenizer.from_file(str(path / TOKENIZER_NAME)) if is_own_class else tokenizer.backend_tokenizer
    # The class that tokenizer_config.json names builds a tokenizer of its own, which may be another: of deepseek-coder's
    # byte-level file it makes SentencePiece's, and all spaces are lost. tokenizer.json is what the model was trained with.
    tokens = {text: published.encode(text, add_special_tokens=False).ids for text in PROBES}
    if any(list(tokenizer(text, add_special_tokens=False)["input_ids"]) != tokens[text] for text in PROBES):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), **options)
    for some in tokens.values():
        tokenizer.decode(some)
    tokenizer.convert_tokens_to_ids(UNKNOWN)  # a RecursionError where the token for unknown ones is unknown itself
    return tokenizer


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Make these texts special tokens, each whole in every text; those that the vocabulary lacks get the next free ids."""
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)


def differing_ids(one: Mapping[str, int], other: Mapping[str, int]) -> list[str]:
    """Tokens that have different ids in two vocabularies, or are in one alone."""
    return sorted(token for token in one.keys() | other.keys() if one.get(token) != other.get(token))
