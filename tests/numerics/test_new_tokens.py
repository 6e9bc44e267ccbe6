"""LoRA trains the rows of added tokens, and what is saved, merged, streamed and read by PEFT is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PhiConfig, PhiForCausalLM

from align.config.chat import ChatSettings
from align.config.peft import Lora, VirtualTokens
from align.engines.vllm_server import can_serve_unmerged
from align.errors import EnvironmentProblem, RecipeError
from align.models.added_tokens import write_with_tokens
from align.models.files import ADAPTER_WEIGHTS_NAME
from align.models.folder import ModelFolder
from align.models.head import last_hidden_states, target_logps
from align.models.load import load_causal_lm, load_reward_model
from align.models.lora import merge, merged_weights
from align.models.stream import stored_weights
from align.models.trainable import TrainableModel, load_trainable, save_trained
from align.testing import tiny_causal_lm, tiny_tokenizer

TOKENS = ["<|user|>", "<|end|>"]
FIRST = len(tiny_tokenizer())
USER, END = FIRST, FIRST + 1
IDS = torch.tensor([[5, USER, 7, 8]])
TABLES = {True: {"model.embed_tokens"}, False: {"model.embed_tokens", "lm_head"}}


def start_from(folder: Path, *, tied: bool, method: Any = "lora") -> TrainableModel:
    """A base model to which two tokens were added, for LoRA."""
    if not (folder / "new").exists():
        tiny_causal_lm(folder / "base", tie_word_embeddings=tied)
        (folder / "new").mkdir()
        write_with_tokens(ModelFolder(folder / "base"), TOKENS, folder / "new")
    return TrainableModel(
        ModelFolder(folder / "new", ChatSettings(add_tokens=TOKENS)), Lora(method=method, rank=4), folder, "sft"
    )


def moved(model: Any) -> Any:
    """The model after something like training."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def names_of(model: Any) -> set[str]:
    return {
        name.partition(".token_adapter")[0]
        for name, value in model.named_parameters()
        if value.requires_grad and "token_adapter" in name
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_new_rows_learn_in_float32_and_only_they(tmp_path: Path, tied: bool, dtype: str) -> None:
    start = start_from(tmp_path, tied=tied)
    model = load_trainable(start, frozen_dtype=dtype)
    assert names_of(model) == TABLES[tied]
    base = load_causal_lm(tmp_path / "new", dtype=dtype)
    with torch.no_grad():  # B is zero and the rows are the base's: nothing differs yet
        assert torch.equal(model(input_ids=IDS).logits, base(IDS).logits)
    states = last_hidden_states(model, input_ids=IDS)
    target_logps(model, states[0], torch.tensor([USER, 7, 8, END])).sum().backward()
    rows = {name: value for name, value in model.named_parameters() if "token_adapter" in name and value.requires_grad}
    assert {value.dtype for value in rows.values()} == {torch.float32}
    for name, value in rows.items():
        assert value.shape == (2, 32)
        # <|end|> is predicted and never read here, so with a table of its own the embeddings learn of <|user|> alone.
        assert [bool(row.any()) for row in value.grad] == [True, tied or name.startswith("lm_head")]
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    assert all(table.token_adapter.base_layer.weight.grad is None for table in tables if hasattr(table, "token_adapter"))


@pytest.mark.parametrize("tied", [True, False])
def test_saved_merged_streamed_continued_and_read_by_peft_it_is_one_model(tmp_path: Path, tied: bool) -> None:
    start = start_from(tmp_path, tied=tied)
    trained = moved(load_trainable(start))
    save_trained(trained, start.folder.tokenizer, tmp_path / "adapter", start)
    adapter = ModelFolder(tmp_path / "adapter")
    assert adapter.trained_token_ids == {name: [USER, END] for name in TABLES[tied]}
    assert not can_serve_unmerged(adapter)
    whole = load_causal_lm(adapter)
    parameters = dict(whole.named_parameters())
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "new"), tmp_path / "adapter").eval()
    further = load_trainable(TrainableModel(adapter, start.peft, tmp_path, "dpo"))
    assert names_of(further) == TABLES[tied]
    with torch.no_grad():
        expected = trained(input_ids=IDS).logits
        for other in (whole, theirs, further):
            torch.testing.assert_close(other(input_ids=IDS).logits, expected, atol=1e-5, rtol=0)
    for weights in (dict(merged_weights(trained)), dict(stored_weights(adapter))):
        assert parameters.keys() <= weights.keys()
        assert all(torch.equal(weights[name], value) for name, value in parameters.items())
    old = load_causal_lm(tmp_path / "new").get_input_embeddings().weight
    assert torch.equal(whole.get_input_embeddings().weight[:USER], old[:USER])
    with pytest.raises(EnvironmentProblem, match=r"does not fit its base model: (lm_head|model.embed_tokens)"):
        state = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS_NAME)
        merge(load_causal_lm(tmp_path / "new"), state, Lora(method="lora", rank=4), {"lm_head": [END]})


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_reads_new_tokens_and_has_no_head_for_them(tmp_path: Path, tied: bool) -> None:
    start = start_from(tmp_path, tied=tied)
    trained = moved(load_trainable(start, task="SEQ_CLS", new_head=True, pad_token_id=0))
    assert names_of(trained) == {"model.embed_tokens"}
    save_trained(trained, start.folder.tokenizer, tmp_path / "adapter", start)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "new", num_labels=1, pad_token_id=0)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = trained(input_ids=IDS).logits
        torch.testing.assert_close(load_reward_model(tmp_path / "adapter")(IDS).logits, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs(input_ids=IDS).logits, expected, atol=1e-5, rtol=0)


def test_qlora_trains_them_too(tmp_path: Path) -> None:
    start = start_from(tmp_path, tied=False, method="qlora")
    trained = moved(load_trainable(start))
    save_trained(trained, start.folder.tokenizer, tmp_path / "adapter", start)
    with torch.no_grad():
        merged = load_causal_lm(tmp_path / "adapter")(IDS).logits
        torch.testing.assert_close(merged, trained(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
    streamed, given = dict(stored_weights(ModelFolder(tmp_path / "adapter"))), dict(merged_weights(trained))
    assert all(torch.equal(given[f"{name}.weight"][END], streamed[f"{name}.weight"][END]) for name in TABLES[False])


def test_what_cannot_train_them_is_refused(tmp_path: Path) -> None:
    start = start_from(tmp_path, tied=True)
    tuned = TrainableModel(start.folder, VirtualTokens(method="prompt_tuning"), tmp_path, "sft")
    with pytest.raises(RecipeError, match=r"<\|user\|>, <\|end\|> were added .* prompt_tuning would leave") as caught:
        load_trainable(tuned)
    assert "method: lora" in str(caught.value.hint)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    PhiForCausalLM(PhiConfig(vocab_size=FIRST + 2, **sizes)).save_pretrained(tmp_path / "phi")
    start.folder.tokenizer.save_pretrained(tmp_path / "phi")
    phi = ModelFolder(tmp_path / "phi", ChatSettings(add_tokens=TOKENS))
    with pytest.raises(RecipeError, match="head with a bias"):
        load_trainable(TrainableModel(phi, start.peft, tmp_path, "sft"))
