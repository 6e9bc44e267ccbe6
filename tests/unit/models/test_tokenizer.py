"""A tokenizer makes the tokens of its tokenizer.json, whatever class tokenizer_config.json names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from align.models.folder import ModelFolder
from align.testing.tiny import tiny_causal_lm

TEXT = "def f(a, b):\n    return a + b  # 안녕 하세요"


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_the_file_decides_not_the_class(tmp_path: Path, named: str) -> None:
    folder = tiny_causal_lm(tmp_path / "m", texts=[TEXT] * 5)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": named}))
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    tokenizer = ModelFolder(folder).tokenizer
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == expected
    assert tokenizer.decode(expected, clean_up_tokenization_spaces=False) == TEXT


def test_a_class_that_builds_another_tokenizer_is_known(tmp_path: Path) -> None:
    """The reason for the check: transformers itself loses the spaces."""
    folder = tiny_causal_lm(tmp_path / "m", texts=[TEXT] * 5)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "LlamaTokenizerFast"}))
    plain = AutoTokenizer.from_pretrained(folder)
    assert plain.decode(plain(TEXT, add_special_tokens=False)["input_ids"]) != TEXT
