"""Weights that are handed on one tensor at a time: by index, merged, with the head of a tied model."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from align.config.peft import Lora
from align.models import hub
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.models.stream import stored_weights, with_tied_head
from align.models.trainable import TrainableModel, load_trainable, save_trained
from align.testing import tiny_causal_lm
from align.training.online.models import ForwardSettings, load_models
from align.training.pass_size import PassSize


@pytest.fixture
def sharded(tmp_path: Path) -> ModelFolder:
    """A model in several files, with its weights once more in another form, as Mistral publishes them."""
    folder = tiny_causal_lm(tmp_path / "base", tie_word_embeddings=False, dtype="bfloat16")
    load_causal_lm(folder, dtype="bfloat16").save_pretrained(folder, max_shard_size="30KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, folder / "consolidated.safetensors")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return ModelFolder(folder)


def test_the_files_are_those_of_the_index(sharded: ModelFolder) -> None:
    given = dict(stored_weights(sharded))
    expected = load_causal_lm(sharded, dtype="bfloat16").state_dict()
    assert given.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) and tensor.dtype == torch.bfloat16 for name, tensor in given.items())


def adapter_on(base: ModelFolder, folder: Path, **settings: Any) -> ModelFolder:
    start = TrainableModel(base, Lora(method="lora", rank=4, **settings), folder.parent, "test")
    torch.manual_seed(3)
    model = load_trainable(start)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    save_trained(model, base.tokenizer, folder, start)
    return ModelFolder(folder)


@pytest.mark.parametrize("settings", [{}, {"target_modules": ["q_proj", "down_proj"], "alpha": 3.0}])
def test_an_adapter_comes_merged_bit_by_bit_without_a_whole_model(
    sharded: ModelFolder, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_on(sharded, tmp_path / "adapter", **settings)
    expected = dict(load_causal_lm(adapter).named_parameters())
    monkeypatch.setattr("align.models.stream.load_causal_lm", lambda folder: pytest.fail("a whole model was loaded"))
    given = dict(stored_weights(adapter))
    assert given.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in given.items())
    plain = dict(stored_weights(sharded))
    assert not torch.equal(given["model.layers.0.mlp.down_proj.weight"], plain["model.layers.0.mlp.down_proj.weight"].float())


def test_layers_that_are_stored_the_other_way_round_are_merged_in_the_model(tmp_path: Path) -> None:
    """GPT-2's."""
    base = gpt2(tmp_path / "base", seed=1)
    adapter = adapter_on(base, tmp_path / "adapter")
    expected = dict(load_causal_lm(adapter).named_parameters())
    assert dict.fromkeys(expected, True) == {
        name: torch.equal(tensor, expected[name]) for name, tensor in stored_weights(adapter)
    }


def gpt2(folder: Path, *, seed: int) -> ModelFolder:
    from transformers import GPT2Config, GPT2LMHeadModel

    from align.testing.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelFolder(folder)


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (["model.embed_tokens.weight", "model.norm.weight"], "lm_head.weight"),
        (["transformer.wte.weight", "transformer.wpe.weight"], "lm_head.weight"),
        (
            ["model.vision_tower.embeddings.position_embedding.weight", "model.language_model.embed_tokens.weight"],
            "lm_head.weight",
        ),
        (["language_model.model.embed_tokens.weight", "language_model.model.norm.weight"], "language_model.lm_head.weight"),
        (["model.embed_tokens.weight", "lm_head.weight"], None),
        (["lm_head.weight", "model.embed_tokens.weight"], None),
    ],
)
def test_a_tied_head_is_the_table_under_the_name_of_its_architecture(names: list[str], head: str | None) -> None:
    weights = {name: torch.full((1,), float(number)) for number, name in enumerate(names)}
    given = list(with_tied_head(weights.items()))
    assert [name for name, _ in given] == names + ([head] if head else [])
    if head:
        table = next(name for name in names if name.endswith(("embed_tokens.weight", "wte.weight")))
        assert given[-1][1] is weights[table]


def most_alive(weights: Iterator[tuple[str, torch.Tensor]]) -> int:
    """How many of the tensors were in memory at once, at most."""
    alive: list[weakref.ref[Any]] = []
    most = 0
    for _, tensor in weights:
        alive = [*(known for known in alive if known() is not None), weakref.ref(tensor)]
        most = max(most, len(alive))
        del tensor
    return most


def test_no_second_model_is_in_memory(sharded: ModelFolder, tmp_path: Path) -> None:
    adapter = adapter_on(sharded, tmp_path / "adapter")
    assert most_alive(stored_weights(sharded)) <= 2
    assert most_alive(stored_weights(adapter)) <= 2
    start = TrainableModel(sharded, Lora(method="lora", rank=2), tmp_path, "ppo")
    settings = ForwardSettings(torch.device("cpu"), "float32", 1.0, PassSize(64, "tokens"), 0)
    policy = load_models(start, None, settings, seed=0).policy_weights()
    merged = ((name, tensor) for name, tensor in policy if name.endswith("_proj.weight"))
    assert most_alive(merged) <= 2


def test_the_hub_is_not_asked_for_the_second_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    there = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "consolidated.safetensors"]
    taken: list[str] = []

    def snapshot_download(hub_id: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        taken.extend(filter_repo_objects(there, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(tmp_path / "commit")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.fetch_model("mistralai/Some", "main") == (tmp_path / "commit", "commit")
    assert taken == there[:-1]
