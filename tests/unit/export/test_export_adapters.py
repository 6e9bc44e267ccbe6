"""Adapters: merged by export and serve, refused where they cannot be, talked to as they are."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.config.peft import Lora, VirtualTokens
from align.engines.chat import Conversation
from align.errors import EnvironmentProblem, RecipeError
from align.export import export_model, open_source
from align.models.folder import ModelFolder
from align.models.trainable import TrainableModel, load_trainable, save_trained
from align.testing import tiny_causal_lm

pytestmark = pytest.mark.slow

LORA = Lora(method="lora", rank=3)
QLORA = Lora(method="qlora", rank=3)
PREFIX = VirtualTokens(method="prefix_tuning", num_virtual_tokens=4)
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("models") / "base", seed=3)


def adapter(base: Path, settings: Lora | VirtualTokens, name: str, **more: Any) -> Path:
    """An adapter that is not what it started as, beside its base."""
    folder = base.parent / name
    start = TrainableModel(ModelFolder(base), settings, base.parent, "test")
    torch.manual_seed(0)
    model = load_trainable(start, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    save_trained(model, ModelFolder(base).tokenizer, folder, start)
    return folder


@pytest.mark.usefixtures("without_vllm")
@pytest.mark.parametrize("settings", [LORA, pytest.param(QLORA, marks=needs_bitsandbytes)], ids=lambda settings: settings.method)
def test_an_adapter_is_exported_merged_and_needs_its_base_no_more(base: Path, tmp_path: Path, settings: Lora) -> None:
    folder = adapter(base, settings, settings.method)
    result = export_model(open_source(folder), tmp_path / "out")
    assert (result.checks[0].compared, result.checks[0].ties) == (50, 0)
    assert not list(result.folder.glob("adapter*"))
    assert not (result.folder / "base.json").exists()
    told = (result.folder / "README.md").read_text()
    assert ("QLoRA adapter is merged" if settings.method == "qlora" else "Its LoRA adapter is merged into its base.") in told
    merged = AutoModelForCausalLM.from_pretrained(result.folder)
    before = AutoModelForCausalLM.from_pretrained(base)
    assert type(merged) is type(before)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(merged.state_dict()[name], before.state_dict()[name])


def test_a_reward_models_adapter_keeps_its_head(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, LORA, "reward", task="SEQ_CLS", new_head=True)
    source = open_source(folder)
    assert source.purpose == "reward"
    result = export_model(source, tmp_path / "out")
    assert result.checks[0].compared == 50
    assert open_source(result.folder).purpose == "reward"


def test_virtual_tokens_are_not_exported_but_can_be_talked_to(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, PREFIX, "prefix")
    with pytest.raises(RecipeError, match="prefix_tuning puts trained vectors in front of the prompt; they cannot be merged"):
        export_model(open_source(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()

    def first_answer(model: Path) -> str:
        talk = Conversation(ModelFolder(model), system=None, temperature=0.0, max_completion_tokens=12, seed=0)
        return "".join(talk.ask("hello")[1])

    assert first_answer(folder) != first_answer(base)


def test_an_adapter_without_its_base_says_so(base: Path, tmp_path: Path) -> None:
    lost = Path(shutil.copytree(adapter(base, LORA, "lora-2"), tmp_path / "deep" / "down" / "lost"))
    with pytest.raises(EnvironmentProblem, match="gone"):
        export_model(open_source(lost), tmp_path / "out")
