"""Loading and saving tiny models: nothing is random that should not be, nothing broken is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import GraniteConfig, GraniteForCausalLM

from align.errors import RecipeError, StageError
from align.models import load_causal_lm, load_reward_model, save_model
from align.models.folder import ModelFolder
from align.testing.tiny import tiny_causal_lm, tiny_reward_model

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("models") / "lm")


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward_model(tmp_path_factory.mktemp("models") / "rm")


def test_what_is_saved_is_what_is_loaded(language_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(language_model), ModelFolder(language_model).tokenizer
    save_model(model, tokenizer, tmp_path / "copy")
    again = load_causal_lm(tmp_path / "copy")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert ModelFolder(tmp_path / "copy").tokenizer.chat_template == tokenizer.chat_template
    assert not list((tmp_path / "copy").glob("*.bin"))


@pytest.mark.parametrize("tied", [True, False])
def test_rounded_copies_are_saved_and_the_model_stays(tmp_path: Path, tied: bool) -> None:
    folder = tiny_causal_lm(tmp_path / "model", tie_word_embeddings=tied)
    model, tokenizer = load_causal_lm(folder), ModelFolder(folder).tokenizer
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path / "rounded", dtype="bfloat16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.dtype == torch.float32
    saved = safetensors.load_file(tmp_path / "rounded" / "model.safetensors")
    assert ("lm_head.weight" in saved) != tied
    assert all(torch.equal(tensor, before[name].bfloat16()) for name, tensor in saved.items())
    assert ModelFolder(tmp_path / "rounded").stored_dtype == "bfloat16"
    # A model that is in the dtype already is written as ever.
    for name, dtype in (("plain", None), ("same", "float32")):
        save_model(model, tokenizer, tmp_path / name, dtype=dtype)
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
    assert ModelFolder(tmp_path / "same").stored_dtype == "float32"


@pytest.mark.parametrize(("stored", "expected"), [("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")])
def test_the_dtype_of_what_is_trained_follows_the_input(tmp_path: Path, stored: str, expected: str) -> None:
    folder = tiny_causal_lm(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": stored}))
    assert ModelFolder(folder).saved_dtype("auto") == expected
    assert ModelFolder(folder).saved_dtype("float32") == "float32"
    assert ModelFolder(folder).saved_dtype("bfloat16") == "bfloat16"


def test_dtype(language_model: Path) -> None:
    assert load_causal_lm(language_model, dtype="bfloat16").dtype == torch.bfloat16
    assert load_causal_lm(language_model, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_never_saved(language_model: Path, tmp_path: Path, value: float) -> None:
    model = load_causal_lm(language_model)
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with pytest.raises(StageError, match=r"model\.norm\.weight"):
        save_model(model, ModelFolder(language_model).tokenizer, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_a_language_model_gets_a_new_head(language_model: Path) -> None:
    torch.manual_seed(1)
    model = load_reward_model(language_model)
    assert model.score.weight.shape[0] == 1
    assert model.config.pad_token_id == ModelFolder(language_model).tokenizer.pad_token_id
    torch.manual_seed(1)
    assert torch.equal(load_reward_model(language_model).score.weight, model.score.weight)


def test_a_reward_model_keeps_its_head(reward_model: Path) -> None:
    torch.manual_seed(1)
    first = load_reward_model(reward_model).score.weight
    torch.manual_seed(2)
    assert torch.equal(load_reward_model(reward_model).score.weight, first)


def test_a_language_model_is_no_reward_model_where_one_is_needed(language_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"score\.weight"):
        load_reward_model(language_model, new_head=False)


def test_a_reward_model_that_lost_its_head(language_model: Path, reward_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "headless"
    shutil.copytree(language_model, folder)
    shutil.copy(reward_model / "config.json", folder)
    with pytest.raises(RecipeError, match=r"score\.weight"):
        load_reward_model(folder)


def test_a_reward_model_is_no_language_model(tmp_path: Path) -> None:
    folder = tiny_reward_model(tmp_path / "rm", tie_word_embeddings=False)
    with pytest.raises(RecipeError, match=r"lm_head\.weight"):
        load_causal_lm(folder)


def test_an_architecture_without_a_reward_model(tmp_path: Path) -> None:
    """transformers has none of Granite's, Cohere's and others'."""
    tokenizer = ModelFolder(tiny_causal_lm(tmp_path / "llama")).tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    GraniteForCausalLM(GraniteConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "granite")
    tokenizer.save_pretrained(tmp_path / "granite")
    with pytest.raises(RecipeError, match=r"no reward model of this architecture \(granite\)") as caught:
        load_reward_model(tmp_path / "granite", new_head=True)
    assert "from another model" in str(caught.value.hint)


def test_an_unknown_architecture(language_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unknown"
    shutil.copytree(language_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    with pytest.raises(RecipeError, match="no-such-model"):
        load_causal_lm(folder)
