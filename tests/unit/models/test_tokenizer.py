"""A tokenizer makes the tokens of its tokenizer.json, whatever class tokenizer_config.json names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from align.errors import EnvironmentProblem
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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": "Nope"}, r"its tokenizer cannot be used \(Exception: data did not match any variant"),
        # The library in Rust panics at it, which is no Exception in Python.
        ({"continuing_subword_prefix": "x" * 300}, r"its tokenizer cannot be used \(PanicException: range end index"),
        # The library takes half a minute for the ids below it.
        ({"vocab": {"a": 2**31}}, r"tokenizer\.json: the token 'a' has the id 2147483648; expected 0 to 16,777,215"),
        ({"vocab": {"a": -1}}, r"tokenizer\.json: the token 'a' has the id -1; expected"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    folder = tiny_causal_lm(tmp_path / "m", texts=[TEXT] * 5)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"].update(changes)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EnvironmentProblem, match=expected):
        _ = ModelFolder(folder).tokenizer


def test_an_added_token_with_an_id_beyond_any_vocabulary(tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path / "m", texts=[TEXT] * 5)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][0]["id"] = 10**9
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EnvironmentProblem, match="has the id 1000000000; expected 0 to"):
        ModelFolder(folder).check()


def test_an_unknown_token_that_is_unknown_itself(tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path / "m", texts=[TEXT] * 5)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "unk_token": "", "pad_token": ""}))
    with pytest.raises(EnvironmentProblem, match=r"its tokenizer cannot be used \(RecursionError: maximum recursion"):
        _ = ModelFolder(folder).tokenizer


def test_ctrl_c_while_a_tokenizer_is_loaded_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_causal_lm(tmp_path / "m", texts=[TEXT] * 5)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _ = ModelFolder(folder).tokenizer
