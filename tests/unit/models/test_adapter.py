"""Adapter folders: where their base is found, and what is said when something about them is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.config.peft import Lora, VirtualTokens
from align.engines.open import open_engine
from align.errors import AlignError, EnvironmentProblem, RecipeError
from align.models.adapter import BaseRecord, locate_base
from align.models.files import ADAPTER_WEIGHTS_NAME, BASE_NAME
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm, load_reward_model
from align.models.lora import add_lora
from align.models.trainable import TrainableModel, load_trainable, save_trained
from align.testing import tiny_causal_lm

LORA = Lora(method="lora", rank=2)
PROMPT = VirtualTokens(method="prompt_tuning", num_virtual_tokens=6)


def make_adapter(root: Path, peft: Lora | VirtualTokens, folder: Path | None = None, **more: Any) -> Path:
    folder = folder or root / "runs" / ".store" / f"sft-{peft.method}" / "model"
    start = TrainableModel(ModelFolder(root / "base"), peft, root / "runs" / ".store", "sft")
    torch.manual_seed(0)
    model = load_trainable(start, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    save_trained(model, ModelFolder(root / "base").tokenizer, folder, start)
    return folder


def begin(folder: Path, peft: Lora | VirtualTokens) -> Any:
    """Train the adapter in `folder` further."""
    return load_trainable(TrainableModel(ModelFolder(folder), peft, folder.parents[1], "dpo"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapter") / "project"
    tiny_causal_lm(root / "base", seed=1)
    make_adapter(root, LORA)
    make_adapter(root, PROMPT)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project"))


@pytest.fixture
def lora(root: Path) -> Path:
    return root / "runs" / ".store" / "sft-lora" / "model"


@pytest.fixture
def prompt(root: Path) -> Path:
    return root / "runs" / ".store" / "sft-prompt_tuning" / "model"


def told(error: pytest.ExceptionInfo[AlignError]) -> str:
    text = error.value.render()
    assert len(text.splitlines()) <= 15 and "Traceback" not in text
    assert "\n→ " in text, "says what to do"
    return text


def test_an_adapter_is_what_was_trained_and_no_more(lora: Path, prompt: Path) -> None:
    sizes = [(32, 32)] * 4 + [(32, 64)] * 3  # of attention, and of the rest, in each of two layers
    state = load_file(lora / ADAPTER_WEIGHTS_NAME)
    assert sum(value.numel() for value in state.values()) == 2 * sum(2 * (rows + columns) for rows, columns in sizes)
    vectors = load_file(prompt / ADAPTER_WEIGHTS_NAME)
    assert {name: list(value.shape) for name, value in vectors.items()} == {"prompt_embeddings": [6, 32]}
    for folder in (lora, prompt):
        assert not [path.name for path in folder.iterdir() if path.name.startswith(("model", "pytorch", "README"))]
        assert str(folder.parents[3]) not in "".join(path.read_text() for path in folder.glob("*.json")), (
            "no path of this machine"
        )


def test_an_adapter_moves_with_its_base(root: Path, lora: Path, tmp_path: Path) -> None:
    expected = load_causal_lm(lora).model.layers[0].mlp.up_proj.weight
    elsewhere = Path(shutil.move(root, tmp_path / "another" / "place"))
    moved = elsewhere / lora.relative_to(root)
    assert ModelFolder(moved).base.path == (elsewhere / "base").resolve()
    assert torch.equal(load_causal_lm(moved).model.layers[0].mlp.up_proj.weight, expected)


def test_a_copy_of_an_epoch_finds_its_base(root: Path, lora: Path) -> None:
    """select_checkpoint copies epochs/epoch-N of one entry to model/ of another."""
    store = lora.parents[1]
    epoch = Path(shutil.copytree(lora, store / "sft-x" / "epochs" / "epoch-2"))
    kept = Path(shutil.copytree(epoch, store / "select_checkpoint-y" / "model"))
    assert ModelFolder(epoch).base.path == ModelFolder(kept).base.path == (root / "base").resolve()


def test_a_linked_stage_finds_its_base(root: Path, lora: Path) -> None:
    (root / "runs" / "tiny" / "stages").mkdir(parents=True)
    link = root / "runs" / "tiny" / "stages" / "sft"
    link.symlink_to(os.path.relpath(lora.parent, link.parent))
    assert ModelFolder(link / "model").base.path == (root / "base").resolve()


def test_a_base_in_pieces_is_found(root: Path) -> None:
    base = root / "pieces"
    load_causal_lm(root / "base").save_pretrained(base, max_shard_size="20KB")
    ModelFolder(root / "base").tokenizer.save_pretrained(base)
    assert (base / "model.safetensors.index.json").exists()
    start = TrainableModel(ModelFolder(base), LORA, root / "runs" / ".store", "sft")
    model = load_trainable(start)
    save_trained(model, ModelFolder(base).tokenizer, root / "runs" / ".store" / "sft-2" / "model", start)
    assert ModelFolder(root / "runs" / ".store" / "sft-2" / "model").base.path == base.resolve()


def test_the_base_is_gone(root: Path, lora: Path) -> None:
    (root / "base").rename(root / "other")
    with pytest.raises(EnvironmentProblem) as error:
        load_causal_lm(lora)
    text = told(error)
    assert text.startswith(f"{lora}: the base model of this adapter is gone: there is no ../../base")
    assert "Bring it back" in text and error.value.exit_code == 4


def test_a_place_of_the_base_that_no_file_can_have(lora: Path) -> None:
    record = BaseRecord(Path("a" * 5000), "f" * 16, LORA)
    with pytest.raises(EnvironmentProblem, match="the base model of this adapter is gone"):
        locate_base(lora, record)


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json"])
def test_the_base_is_another_one(root: Path, lora: Path, changed: str) -> None:
    path = root / "base" / changed
    content = bytearray(path.read_bytes())
    if changed == "config.json":
        content = bytearray(content.replace(b"1e-06", b"1e-05"))
        assert bytes(content) != path.read_bytes()
    else:
        content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(EnvironmentProblem) as error:
        load_causal_lm(lora)
    assert f"{(root / 'base').resolve()}: is not the base model that the adapter in {lora} was trained on" in told(error)


LORA_ONLY = '"peft": {"method": "lora"}'


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "null", '{"peft": "lora"}', '{"peft": []}', f"{{{LORA_ONLY}}}", f'{{"place": 2, {LORA_ONLY}}}'],
)
def test_a_damaged_record_of_the_base(lora: Path, content: str) -> None:
    (lora / BASE_NAME).write_text(content)
    for read in (load_causal_lm, load_reward_model):
        with pytest.raises(EnvironmentProblem) as error:
            read(lora)
        assert str(lora / BASE_NAME) in told(error)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"peft": "lora"}', '{"peft": {"num_virtual_tokens": null}}', "{"])
def test_a_damaged_record_is_told_by_whoever_asks_first(lora: Path, content: str) -> None:
    """The room for tokens is asked for before the model is loaded."""
    (lora / BASE_NAME).write_text(content)
    with pytest.raises(EnvironmentProblem) as error:
        assert ModelFolder(lora).context_tokens
    assert str(lora / BASE_NAME) in str(error.value)


def test_weights_are_missing(lora: Path) -> None:
    (lora / ADAPTER_WEIGHTS_NAME).unlink()
    with pytest.raises(EnvironmentProblem) as error:
        load_causal_lm(lora)
    assert f"{lora}: there is no {ADAPTER_WEIGHTS_NAME}" in told(error)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_weights_are_cut_short(lora: Path, keep: int) -> None:
    path = lora / ADAPTER_WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EnvironmentProblem) as error:
        load_causal_lm(lora)
    assert str(path) in told(error)


def test_weights_of_another_adapter(lora: Path, prompt: Path) -> None:
    for folder, other in ((lora, prompt), (prompt, lora)):
        kept = (folder / ADAPTER_WEIGHTS_NAME).read_bytes()
        shutil.copyfile(other / ADAPTER_WEIGHTS_NAME, folder / ADAPTER_WEIGHTS_NAME)
        for start in (None, LORA if folder == lora else PROMPT):
            with pytest.raises(EnvironmentProblem) as error:
                load_causal_lm(folder) if start is None else begin(folder, start)
            told(error)
        (folder / ADAPTER_WEIGHTS_NAME).write_bytes(kept)


def test_one_tensor_is_missing(lora: Path) -> None:
    state = load_file(lora / ADAPTER_WEIGHTS_NAME)
    state.pop(min(name for name in state if ".lora_B." in name))
    save_file(state, lora / ADAPTER_WEIGHTS_NAME)
    for read in (load_causal_lm, lambda folder: begin(folder, LORA)):
        with pytest.raises(EnvironmentProblem) as error:
            read(lora)
        assert "does not fit its base model: " in told(error)


def test_an_adapter_of_a_stranger(lora: Path) -> None:
    (lora / BASE_NAME).unlink()
    with pytest.raises(RecipeError) as error:
        load_causal_lm(lora)
    text = told(error)
    assert f"{lora}: it holds an adapter (adapter_config.json), but no base.json" in text
    assert "merge_and_unload" in text


def test_code_named_by_an_adapter_is_not_run(lora: Path) -> None:
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil--model.Model"}}))
    with pytest.raises(RecipeError) as error:
        assert ModelFolder(lora).tokenizer
    assert "adapter_config.json: has auto_map, with which loading the model could run code" in told(error)


@pytest.mark.parametrize("indices", [31, "0", [1, 2], {"embed_tokens": 1}])
def test_trained_tokens_that_are_no_lists_by_layer(lora: Path, indices: object) -> None:
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, "trainable_token_indices": indices}))
    with pytest.raises(
        EnvironmentProblem, match=r"adapter_config\.json: trainable_token_indices is .*; expected lists of tokens"
    ):
        ModelFolder(lora).check()


def test_a_language_adapter_is_no_reward_model(root: Path, lora: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_reward_model(lora)
    assert f"{lora}: as a reward model, it lacks the weights score.weight; they would be random" in told(error)
    assert load_reward_model(lora, new_head=True).score.weight.shape == (1, 32)
    with pytest.raises(RecipeError) as error:
        load_trainable(TrainableModel(ModelFolder(lora), LORA, root, "ppo"), task="SEQ_CLS")
    assert f"ppo: {lora}: is no reward model: the adapter has no score head" in told(error)
    judge = make_adapter(root, LORA, root / "runs" / ".store" / "reward" / "model", task="SEQ_CLS", new_head=True, pad_token_id=0)
    assert torch.equal(load_reward_model(judge).score.weight, load_reward_model(judge, new_head=False).score.weight)


def test_virtual_tokens_take_room(root: Path, lora: Path, prompt: Path) -> None:
    assert (ModelFolder(prompt).virtual_tokens, ModelFolder(prompt).context_tokens) == (6, 506)
    assert (ModelFolder(lora).virtual_tokens, ModelFolder(lora).context_tokens) == (0, 512)
    assert TrainableModel(ModelFolder(root / "base"), PROMPT, root, "sft").context_tokens == 506
    assert TrainableModel(ModelFolder(prompt), PROMPT, root, "sft").context_tokens == 506


def test_unknown_target_modules(root: Path) -> None:
    model = load_causal_lm(root / "base")
    with pytest.raises(RecipeError) as error:
        add_lora(model, Lora(method="lora", target_modules=["q_proj", "vproj"]), task="CAUSAL_LM", where="sft")
    text = told(error)
    assert "sft: peft target_modules: the model has no linear layer 'vproj'" in text
    assert "Did you mean 'v_proj'? It has: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj." in text
    assert all(parameter.requires_grad for parameter in model.parameters()), "nothing was done to the model"


def test_a_name_may_be_that_of_one_layer(root: Path) -> None:
    settings = Lora(method="lora", rank=2, target_modules=["model.layers.1.mlp.up_proj", "v_proj"])
    model = load_trainable(TrainableModel(ModelFolder(root / "base"), settings, root, "sft"))
    trained = {name.partition(".lora_")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"model.layers.1.mlp.up_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"}


def test_the_head_is_no_target(root: Path) -> None:
    with pytest.raises(RecipeError, match="no linear layer 'lm_head'"):
        load_trainable(TrainableModel(ModelFolder(root / "base"), Lora(method="lora", target_modules=["lm_head"]), root, "sft"))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_rank_larger_than_a_layer(root: Path, method: Any) -> None:
    with pytest.raises(RecipeError) as error:
        load_trainable(TrainableModel(ModelFolder(root / "base"), Lora(method=method, rank=33), root, "sft"))
    text = told(error)
    assert "sft: peft rank 33 is larger than the layer model.layers.0.self_attn.q_proj, whose smaller side is 32" in text
    assert "Give a rank of at most 32" in text
    load_trainable(TrainableModel(ModelFolder(root / "base"), Lora(method=method, rank=32), root, "sft"))


@pytest.mark.parametrize(
    ("peft", "differing"),
    [
        (Lora(method="lora", rank=3), "rank is 3, the adapter's 2"),
        (Lora(method="lora", rank=2, alpha=1.0), "scaling is 0.5, the adapter's 2.0"),
        (Lora(method="lora", rank=2, target_modules=["q_proj"]), "target_modules is ['q_proj'], the adapter's all_linear"),
        (Lora(method="qlora", rank=2), "method is qlora, the adapter's lora"),
        (PROMPT, "method is prompt_tuning, the adapter's lora"),
    ],
    ids=["rank", "alpha", "targets", "qlora", "prompt_tuning"],
)
def test_going_on_with_other_settings(root: Path, lora: Path, peft: Lora | VirtualTokens, differing: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_trainable(TrainableModel(ModelFolder(lora), peft, root, "dpo"))
    text = told(error)
    assert text.startswith("dpo: peft: the model is an adapter already (lora), which is trained further, but " + differing)
    assert "leave peft out: the adapter is then merged" in text


def test_alpha_may_be_written_in_another_way(root: Path, lora: Path) -> None:
    load_trainable(TrainableModel(ModelFolder(lora), Lora(method="lora", rank=2, alpha=4.0), root, "dpo"))


def test_going_on_from_virtual_tokens_with_other_settings(root: Path, prompt: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_trainable(TrainableModel(ModelFolder(prompt), PROMPT.model_copy(update={"num_virtual_tokens": 7}), root, "dpo"))
    text = told(error)
    assert "num_virtual_tokens is 7, the adapter's 6" in text
    assert f"start from its base model ({(root / 'base').resolve()})" in text and "merged" not in text


def test_without_peft_virtual_tokens_cannot_go_on(root: Path, prompt: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_trainable(TrainableModel(ModelFolder(prompt), None, root, "dpo"))
    assert "dpo: the model is 6 virtual tokens in front of a base, which cannot become part of its weights" in told(error)


def test_bitsandbytes_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qlora = make_adapter(root, Lora(method="qlora", rank=2))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest))
    for where, read in (
        ("sft", lambda: load_trainable(TrainableModel(ModelFolder(root / "base"), Lora(method="qlora"), root, "sft"))),
        (str(qlora), lambda: load_causal_lm(qlora)),
    ):
        with pytest.raises(EnvironmentProblem) as error:
            read()
        text = told(error)
        assert text.startswith(f"{where}: qlora needs bitsandbytes, which is not installed") and "pip install" in text
        assert error.value.exit_code == 4


def test_vllm_cannot_sample_behind_virtual_tokens(prompt: Path) -> None:
    with pytest.raises(RecipeError) as error:
        open_engine("vllm", ModelFolder(prompt), dtype="float32", max_model_tokens=64)
    text = told(error)
    assert f"engine: vllm cannot sample behind virtual tokens, and {prompt} has 6" in text
    assert "engine: transformers" in text
    assert open_engine("auto", ModelFolder(prompt), dtype="float32", max_model_tokens=64).name == "transformers"
