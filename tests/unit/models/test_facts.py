"""Sizes and settings of a model, from its configuration and the headers of its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from align.config.peft import VirtualTokens
from align.models.facts import ModelFacts, read_facts
from align.models.folder import ModelFolder
from align.models.trainable import TrainableModel, load_trainable, save_trained
from align.testing.tiny import tiny_causal_lm, tiny_reward_model, tiny_seq2seq_lm


def test_a_tied_language_model(tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path / "m", vocab_size=300)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1, True]}))
    assert read_facts(ModelFolder(folder)) == ModelFacts(
        vocab_size=300,
        embedding=("model.embed_tokens.weight", 300),
        tied=True,
        has_head=False,
        is_language_model=True,
        parameters=30_240,
        end_token_ids={"generation_config.json": [2, 1], "config.json": [2]},
        context_tokens=512,
        stop_token_ids=(2, 1),
        num_layers=2,
        stored_layers=2,
        hidden_size=32,
        embedding_columns=32,
    )


def test_heads(tmp_path: Path) -> None:
    untied = read_facts(ModelFolder(tiny_causal_lm(tmp_path / "untied", tie_word_embeddings=False)))
    assert (untied.tied, untied.has_head) == (False, True)
    assert not read_facts(ModelFolder(tiny_reward_model(tmp_path / "reward"))).is_language_model


def test_an_encoder_decoder(tmp_path: Path) -> None:
    facts = read_facts(ModelFolder(tiny_seq2seq_lm(tmp_path / "t5")))
    assert facts.embedding == ("shared.weight", facts.vocab_size)
    assert facts.context_tokens is None


def test_an_adapter_has_its_base_s_facts_but_for_its_virtual_tokens(tmp_path: Path) -> None:
    base, folder = tiny_causal_lm(tmp_path / "base"), tmp_path / "adapter"
    start = TrainableModel(ModelFolder(base), VirtualTokens(method="prefix_tuning", num_virtual_tokens=4), tmp_path, "test")
    save_trained(load_trainable(start), ModelFolder(base).tokenizer, folder, start)
    facts, of_base = read_facts(ModelFolder(folder)), read_facts(ModelFolder(base))
    assert facts == replace(of_base, context_tokens=508)
    assert of_base.context_tokens == 512


def test_a_configuration_that_says_nothing(tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 7}, "architectures": [], "vocab_size": "many"}))
    (folder / "generation_config.json").unlink()
    facts = read_facts(ModelFolder(folder))
    assert (facts.vocab_size, facts.end_token_ids, facts.is_language_model) == (None, {}, True)
