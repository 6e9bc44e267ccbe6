"""A tokenizer with one token per byte, made in code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from align.testing.tiny import CHAT_TEMPLATE

SPECIAL_TOKENS = ["<pad>", "<|im_start|>", "<|im_end|>", "<s>"]


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A function from template (and special tokens) to tokenizer. It would put a BOS in front if it were let."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(template: str | None = CHAT_TEMPLATE, eos: str | None = "<|im_end|>", pad: str | None = "<pad>") -> Any:
        alphabet = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
        backend.add_special_tokens(SPECIAL_TOKENS)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token=eos, pad_token=pad, chat_template=template
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer()
