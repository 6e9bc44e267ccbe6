"""Adapters on architectures that differ in what adapters touch: heads, norms, windows, kinds of layers, positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adapter_models import EVERY, IDS, LORA, VIRTUAL, Peft, largest, logits, method, trained

from align.config.peft import Lora, VirtualTokens
from align.errors import RecipeError
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.models.lora import merged_weights
from align.models.trainable import TrainableModel, load_trainable
from align.testing import tiny_tokenizer

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.1}
GROUPED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma2": {**GROUPED, "head_dim": 16, "sliding_window": 64},
    "gemma3_text": {**GROUPED, "head_dim": 16, "sliding_window": 64},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "phi3": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_neox": {**SIZES, "intermediate_size": 64},
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.1},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1},
    "falcon": SIZES,
}
WITHOUT_PREFIX = WITHOUT_4_BITS = {"falcon"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("architectures")

    def write(name: str, **changes: Any) -> Path:
        if not (folder / name).exists():
            tokenizer = tiny_tokenizer()
            torch.manual_seed(0)
            ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}
            config = transformers.AutoConfig.for_model(name, **ids, **{**ARCHITECTURES.get(name, {}), **changes})
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        return folder / name

    return write


@pytest.mark.parametrize("settings", EVERY, ids=method)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_comes_back_is_what_was_trained(base: Any, name: str, settings: Peft, tmp_path: Path) -> None:
    if name in WITHOUT_PREFIX and settings.method == "prefix_tuning":
        pytest.skip("refused: see below")
    if name in WITHOUT_4_BITS and settings.method == "qlora":
        with pytest.raises(RecipeError, match="keeps none of this model's layers in 4 bits .FalconForCausalLM."):
            trained(base(name), settings, tmp_path / "adapter")
        return
    model = trained(base(name), settings, tmp_path / "adapter")
    expected, again = logits(model), load_causal_lm(tmp_path / "adapter")
    assert largest(logits(again), expected) < 1e-5 * float(expected.abs().max())
    assert largest(logits(load_causal_lm(base(name))), expected) > 1e-2
    if isinstance(settings, Lora):
        given, loaded = dict(merged_weights(model)), dict(again.named_parameters())
        assert given.keys() == loaded.keys()
        assert [key for key, value in loaded.items() if not torch.equal(given[key], value)] == []


@pytest.mark.parametrize("settings", VIRTUAL.values(), ids=method)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_virtual_tokens_begin_as_drawn_tokens(base: Any, name: str, settings: VirtualTokens) -> None:
    if name in WITHOUT_PREFIX and settings.method == "prefix_tuning":
        pytest.skip("refused: see below")
    torch.manual_seed(11)
    model = load_trainable(TrainableModel(ModelFolder(base(name)), settings, base(name).parent, "test"))
    torch.manual_seed(11)
    plain = load_causal_lm(base(name))
    drawn = torch.randint(plain.get_input_embeddings().weight.shape[0], (1, 4))
    behind = torch.cat([drawn.expand(2, -1), IDS], dim=1)
    assert largest(logits(model), logits(plain, behind)[:, 4:]) < 1e-5


@pytest.mark.parametrize(
    ("name", "settings"),
    [("falcon", VIRTUAL["prefix_tuning"]), ("mamba", VIRTUAL["prefix_tuning"]), ("mamba", VIRTUAL["prompt_tuning"])],
)
def test_an_architecture_that_they_do_not_go_with(base: Any, name: str, settings: VirtualTokens, tmp_path: Path) -> None:
    """Falcon's heads share one key; Mamba has no keys, and no positions."""
    changes = {} if name == "falcon" else {"hidden_size": 32, "num_hidden_layers": 2}
    with pytest.raises(RecipeError) as error:
        trained(base(name, **changes), settings, tmp_path / "adapter")
    text = error.value.render()
    assert text.startswith(f"test: {settings.method} does not go with this architecture ({name}): ")
    assert "Use method: lora." in text and len(text.splitlines()) <= 15


def test_lora_on_a_model_without_attention(base: Any, tmp_path: Path) -> None:
    folder = base("mamba", hidden_size=32, num_hidden_layers=2)
    with pytest.raises(RecipeError) as error:
        trained(folder, LORA.model_copy(update={"rank": 2}), tmp_path / "adapter")
    text = error.value.render()
    assert text.startswith("test: PEFT cannot add LoRA here: ") and "'out_proj'" in text and "other target_modules" in text
    settings = LORA.model_copy(update={"rank": 2, "target_modules": ["in_proj", "x_proj"]})
    expected = logits(trained(folder, settings, tmp_path / "adapter"))
    assert largest(logits(load_causal_lm(tmp_path / "adapter")), expected) < 1e-5 * float(expected.abs().max())
