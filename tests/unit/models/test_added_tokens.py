"""A model with added tokens is the model that it was, for every token that it had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

from align.errors import RecipeError
from align.models.added_tokens import missing_tokens, refuse_added, with_mean_rows, write_with_tokens
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.testing.tiny import tiny_causal_lm, tiny_seq2seq_lm, tiny_tokenizer

NEW = ["<|user|>", "<|end|>"]
TEXTS = ["Hello, how are you?", "안녕하세요"]


def phi(folder: Path) -> None:
    """Its head is a tensor of its own, with a bias."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), **sizes))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MODELS: dict[str, Any] = {
    "tied": lambda folder: tiny_causal_lm(folder),
    "head of its own": lambda folder: tiny_causal_lm(folder, tie_word_embeddings=False),
    "one spare row": lambda folder: tiny_causal_lm(folder, vocab_size=len(tiny_tokenizer()) + 1),
    "many spare rows": lambda folder: tiny_causal_lm(folder, vocab_size=len(tiny_tokenizer()) + 60, tie_word_embeddings=False),
    "bias in the head": phi,
}


@pytest.mark.parametrize("kind", MODELS)
def test_old_tokens_keep_their_logits_and_new_ones_are_average(tmp_path: Path, kind: str) -> None:
    MODELS[kind](tmp_path / "m")
    (tmp_path / "new").mkdir()
    added = write_with_tokens(ModelFolder(tmp_path / "m"), NEW, tmp_path / "new")
    used = len(tiny_tokenizer())
    assert (added.rows_before, added.rows) == {
        "one spare row": (used + 1, used + 2),
        "many spare rows": (used + 60, used + 60),
    }.get(kind, (used, used + 2))
    before, after = (load_causal_lm(tmp_path / name) for name in ("m", "new"))
    assert after.config.vocab_size == after.get_input_embeddings().weight.shape[0] == added.rows
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        one, two = before(ids).logits, after(ids).logits
    assert torch.equal(one[..., :used], two[..., :used])
    # The row is an average, so the logit is the average of the logits.
    for number in (used, used + 1):
        torch.testing.assert_close(two[..., number], one[..., :used].mean(-1), atol=1e-5, rtol=0)
        table = before.get_input_embeddings().weight[:used]
        torch.testing.assert_close(after.get_input_embeddings().weight[number], table.mean(0))


def test_each_new_token_is_one_token_in_every_text_and_old_texts_keep_theirs(tmp_path: Path) -> None:
    folder = ModelFolder(tiny_causal_lm(tmp_path / "m", texts=TEXTS))
    (tmp_path / "new").mkdir()
    write_with_tokens(folder, NEW, tmp_path / "new")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    used = max(folder.tokenizer.get_vocab().values()) + 1
    assert tokenizer("a<|user|>b<|end|>")["input_ids"][1::2] == [used, used + 1]
    assert tokenizer.decode([used, used + 1], skip_special_tokens=True) == ""
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [folder.tokenizer(text)["input_ids"] for text in TEXTS]
    assert (missing_tokens(folder, NEW), missing_tokens(ModelFolder(tmp_path / "new"), NEW)) == (NEW, [])


def test_files_without_a_table_are_linked_and_the_index_stays_true(tmp_path: Path) -> None:
    model = load_causal_lm(tiny_causal_lm(tmp_path / "m", tie_word_embeddings=False))
    (tmp_path / "m" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "m", max_shard_size="60kB")
    (tmp_path / "new").mkdir()
    added = write_with_tokens(ModelFolder(tmp_path / "m"), NEW, tmp_path / "new")
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    linked = [name for name in files if (tmp_path / "m" / name).samefile(tmp_path / "new" / name)]
    assert len(files) > len(linked) >= 1
    sizes = [json.loads((tmp_path / name / "model.safetensors.index.json").read_text())["metadata"] for name in ("m", "new")]
    assert sizes[1]["total_size"] - sizes[0]["total_size"] == 2 * 2 * 32 * 4  # two rows of two tables of width 32
    assert load_causal_lm(tmp_path / "new").get_output_embeddings().weight.shape[0] == added.rows


def test_a_mean_of_bfloat16_rows_keeps_its_digits() -> None:
    # Summed in bfloat16, 300 ones would stop at 256.
    table = with_mean_rows(torch.ones(300, 2, dtype=torch.bfloat16), [300], used=300, rows=301)
    assert table[300].tolist() == [1.0, 1.0]
    assert table.dtype == torch.bfloat16


def test_models_whose_tables_are_not_extended_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"r.yaml:3: .*encoder–decoder") as caught:
        refuse_added(ModelFolder(tiny_seq2seq_lm(tmp_path / "t5")), "r.yaml:3")
    assert "template: plain" in str(caught.value.hint)


def test_a_tokenizer_of_other_weights_is_named(tmp_path: Path) -> None:
    folder = ModelFolder(tiny_causal_lm(tmp_path / "m", vocab_size=200))
    (tmp_path / "new").mkdir()
    with pytest.raises(RecipeError, match=r"has \d+ tokens, but the table of embeddings has 200 rows"):
        write_with_tokens(folder, NEW, tmp_path / "new")
