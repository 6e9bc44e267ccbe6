"""Adapters compute what their papers and PEFT say, and what comes back from a folder is what was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import EVERY, IDS, LORA, QLORA, VIRTUAL, Peft, largest, logits, method, trained
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from align.config.peft import Lora, VirtualTokens
from align.engines.protocol import GenerationRequest, SamplingSettings
from align.engines.transformers_engine import TransformersEngine
from align.models.files import ADAPTER_WEIGHTS_NAME
from align.models.folder import ModelFolder
from align.models.head import last_hidden_states, token_logps
from align.models.load import load_causal_lm, load_reward_model
from align.models.lora import add_lora, linear_layers, lora_state, merge, merged_weights, quantization_config, quantized
from align.models.trainable import TrainableModel, load_trainable
from align.models.virtual_tokens import NAME, start_cache, without_virtual_tokens
from align.scoring.likelihood import completion_logps
from align.testing import tiny_causal_lm, tiny_tokenizer

pytestmark = pytest.mark.slow

BASES = ("llama", "grouped", "gpt2")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama with tied embeddings; one with biases whose four heads share two keys; GPT-2 with its [in, out] layers."""
    folder = tmp_path_factory.mktemp("bases")
    tiny_causal_lm(folder / "llama", seed=3)
    changes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
    tiny_causal_lm(folder / "grouped", seed=4, attention_bias=True, mlp_bias=True, **changes)
    tokenizer = tiny_tokenizer()
    torch.manual_seed(5)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ids))
    with torch.no_grad():
        for parameter in gpt2.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.3)  # a bias of zero would hide that it was lost
    gpt2.save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    return {name: folder / name for name in BASES}


class Tiny(nn.Module):
    """One linear layer of two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.project.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)  # type: ignore[no-any-return]


def test_lora_by_hand() -> None:
    """W = [[1, 2], [3, 4]], A = [1, -1], B = [2, 0.5]ᵀ, alpha / rank = 3: W' = W + 3·[[2, -2], [0.5, -0.5]].

    = [[7, -4], [4.5, 2.5]], so that x = (1, 10) gives (7 - 40, 4.5 + 25) = (-33, 29.5).
    """
    settings = Lora(method="lora", rank=1, alpha=3.0)
    model: Any = Tiny()
    add_lora(model, settings, task="CAUSAL_LM", where="test")
    x = torch.tensor([[1.0, 10.0]])
    assert model(x).tolist() == [[21.0, 43.0]]  # B is zero at first: W x
    with torch.no_grad():
        model.project.lora_A["default"].weight.copy_(torch.tensor([[1.0, -1.0]]))
        model.project.lora_B["default"].weight.copy_(torch.tensor([[2.0], [0.5]]))
    assert model(x).tolist() == [[-33.0, 29.5]]
    plain: Any = Tiny()
    merge(plain, lora_state(model), settings)
    assert plain.project.weight.tolist() == [[7.0, -4.0], [4.5, 2.5]]
    assert dict(merged_weights(model))["project.weight"].tolist() == [[7.0, -4.0], [4.5, 2.5]]
    assert model.project.weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_without_alpha_the_product_is_doubled() -> None:
    assert Lora(method="lora", rank=7).scaling == 2.0


@pytest.mark.parametrize("name", BASES)
def test_merging_is_what_peft_does(bases: dict[str, Path], name: str, tmp_path: Path) -> None:
    model = trained(bases[name], LORA, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(bases[name])
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload()
    ours = load_causal_lm(tmp_path / "adapter")
    weights = dict(theirs.named_parameters())
    assert weights.keys() == dict(ours.named_parameters()).keys()
    assert max(largest(weights[key], value) for key, value in ours.named_parameters()) < 1e-6
    base = dict(load_causal_lm(bases[name]).named_parameters())
    moved = {key for key, value in ours.named_parameters() if largest(base[key], value) > 1e-3}
    layers = {f"{layer}.weight" for layer in linear_layers(ours)}
    assert moved == layers
    assert all(torch.equal(base[key], value) for key, value in ours.named_parameters() if key not in layers)
    assert largest(logits(ours), logits(model)) < 1e-4


@pytest.mark.parametrize("settings", [LORA, QLORA], ids=method)
@pytest.mark.parametrize("name", BASES)
def test_what_the_engine_gets_is_what_the_folder_gives(bases: dict[str, Path], name: str, settings: Lora, tmp_path: Path) -> None:
    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "down_proj"]
    for number, chosen in enumerate((settings, settings.model_copy(update={"target_modules": targets}))):
        model = trained(bases[name], chosen, tmp_path / f"adapter-{number}")
        given, loaded = dict(merged_weights(model)), dict(load_causal_lm(tmp_path / f"adapter-{number}").named_parameters())
        assert given.keys() == loaded.keys()
        assert [key for key, value in loaded.items() if not torch.equal(given[key], value)] == []
        assert not any(value.requires_grad for value in given.values())


@pytest.mark.parametrize("name", BASES)
def test_a_reloaded_qlora_is_the_model_that_was_trained(bases: dict[str, Path], name: str, tmp_path: Path) -> None:
    model = trained(bases[name], QLORA, tmp_path / "adapter")
    expected = logits(model)
    assert largest(logits(load_causal_lm(tmp_path / "adapter")), expected) < 1e-5 * float(expected.abs().max())
    # What merging into the base in full precision would have given instead.
    state = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS_NAME)
    wrong = load_causal_lm(bases[name])
    merge(wrong, state, LORA)
    assert largest(logits(wrong), expected) > 1e-2


@pytest.mark.parametrize("name", BASES)
def test_four_bits_are_those_of_transformers(bases: dict[str, Path], name: str) -> None:
    from bitsandbytes import functional
    from transformers.pytorch_utils import Conv1D

    packed, plain = load_causal_lm(bases[name], quantization=quantization_config()), load_causal_lm(bases[name])
    layers = linear_layers(plain)
    for layer, module in layers.items():
        weight = packed.get_submodule(layer).weight
        expected = functional.dequantize_4bit(weight.data, weight.quant_state)
        is_transposed = isinstance(module, Conv1D)
        found = quantized(module.weight.data.T if is_transposed else module.weight.data)
        assert torch.equal(found, expected), layer
        assert not torch.equal(found, module.weight.data.T if is_transposed else module.weight.data)
    assert {
        name
        for name, module in packed.named_modules()
        if hasattr(module.__dict__.get("_parameters", {}).get("weight"), "quant_state")
    } == set(layers)


def test_quantised_layers_are_never_packed_anew(bases: dict[str, Path]) -> None:
    """bitsandbytes would, on a CPU that multiplies in bfloat16, and the result has no gradient."""
    model = load_causal_lm(bases["llama"], quantization=quantization_config())
    layers = [model.get_submodule(name) for name in linear_layers(model)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.parametrize("settings", [LORA, *VIRTUAL.values()], ids=method)
@pytest.mark.parametrize("name", BASES)
def test_others_can_read_what_we_write(bases: dict[str, Path], name: str, settings: Peft, tmp_path: Path) -> None:
    model = trained(bases[name], settings, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases[name]), tmp_path / "adapter").eval()
    with torch.no_grad():
        found = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]
    expected = logits(model)
    assert largest(found, expected) < 1e-5 * float(expected.abs().max())
    assert largest(logits(load_causal_lm(bases[name])), expected) > 1e-2
    assert largest(logits(load_causal_lm(tmp_path / "adapter")), expected) < 1e-5 * float(expected.abs().max())
    config = theirs.peft_config["default"]
    assert config.base_model_name_or_path == ""
    assert getattr(config, "lora_dropout", 0.0) == 0.0


@pytest.mark.parametrize("name", BASES)
def test_others_can_read_a_reward_adapter_with_its_head(bases: dict[str, Path], name: str, tmp_path: Path) -> None:
    pad = ModelFolder(bases[name]).tokenizer.pad_token_id
    model = trained(bases[name], LORA, tmp_path / "adapter", task="SEQ_CLS", new_head=True, pad_token_id=pad)
    plain = AutoModelForSequenceClassification.from_pretrained(bases[name], num_labels=1, pad_token_id=pad)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    ours = load_reward_model(tmp_path / "adapter")
    with torch.no_grad():
        scores = [each(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits for each in (model, theirs, ours)]
    assert largest(scores[0], scores[1]) < 1e-5 and largest(scores[0], scores[2]) < 1e-5


@pytest.mark.parametrize("settings", VIRTUAL.values(), ids=method)
@pytest.mark.parametrize("name", BASES)
def test_padding_changes_no_log_probability(bases: dict[str, Path], name: str, settings: VirtualTokens, tmp_path: Path) -> None:
    model = trained(bases[name], settings, tmp_path / "adapter")
    rows = [[7, 40, 41, 90, 200, 33], [9, 8, 7], [5, 61, 30, 31]]
    with torch.no_grad():
        alone = [token_logps(model, last_hidden_states(model, input_ids=t)[:, :-1], t[:, 1:])[0] for t in map(row_of, rows)]
        for left in (False, True):
            ids, mask = padded(rows, left=left)
            labels = ids.masked_fill(mask == 0, -100)
            found = token_logps(model, last_hidden_states(model, input_ids=ids, attention_mask=mask)[:, :-1], labels[:, 1:])
            for number, row in enumerate(rows):
                start = ids.shape[1] - len(row) if left else 0
                assert largest(found[number, start : start + len(row) - 1], alone[number]) < 1e-5
    totals = completion_logps(model, [(row[:2], row[2:]) for row in rows], batch_tokens=64, pad_token_id=0)
    assert totals == pytest.approx([float(each[1:].sum()) for each in alone], abs=1e-4)


def row_of(ids: list[int]) -> Tensor:
    return torch.tensor([ids])


def padded(rows: list[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    return ids, mask


@pytest.mark.parametrize("settings", EVERY, ids=method)
@pytest.mark.parametrize("name", BASES)
def test_greedy_completions_are_those_of_peft(bases: dict[str, Path], name: str, settings: Peft, tmp_path: Path) -> None:
    model = trained(bases[name], settings, tmp_path / "adapter")
    prompts = [[7, 40, 41, 90, 200, 33], [9, 8, 7], [5, 61, 30, 31]]
    engine = TransformersEngine(ModelFolder(tmp_path / "adapter"), dtype="float32", max_model_tokens=128)
    found = engine.generate(
        [GenerationRequest(prompt_token_ids=prompt, seed=0) for prompt in prompts],
        SamplingSettings(0.0, 1.0, None, 8, 1, ()),
    )
    if settings.method == "qlora":
        expected = [greedy(lambda ids: logits(model, ids), prompt) for prompt in prompts]
    else:
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases[name]), tmp_path / "adapter").eval()
        theirs.generation_config.eos_token_id = theirs.base_model.generation_config.eos_token_id = None
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = []
        for prompt in prompts:
            ids = row_of(prompt)
            out = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            expected.append(out[0, -8:].tolist())
    assert [completions[0].token_ids for completions in found] == expected


def greedy(next_logits: Callable[[Tensor], Tensor], prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(8):
        ids.append(int(next_logits(row_of(ids))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", BASES)
def test_a_prefix_starts_as_the_cache_of_drawn_tokens(bases: dict[str, Path], name: str) -> None:
    start = TrainableModel(ModelFolder(bases[name]), VIRTUAL["prefix_tuning"], bases[name].parent, "test")
    torch.manual_seed(11)
    model = load_trainable(start)
    torch.manual_seed(11)
    plain = load_causal_lm(bases[name])
    drawn = torch.randint(plain.get_input_embeddings().weight.shape[0], (1, 4))
    with torch.no_grad():
        expected = plain.base_model(input_ids=drawn, use_cache=True).past_key_values
        found = start_cache(model, 3)
    assert found is not None
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        for part in ("keys", "values"):
            assert largest(getattr(ours, part), getattr(theirs, part).expand(3, -1, -1, -1)) == 0
    # So the model says what it would say behind these tokens.
    behind = torch.cat([drawn.expand(2, -1), IDS], dim=1)
    assert largest(logits(model), logits(plain, behind)[:, 4:]) < 1e-5


@pytest.mark.parametrize("name", BASES)
def test_prompt_tuning_starts_as_the_embeddings_of_drawn_tokens(bases: dict[str, Path], name: str) -> None:
    torch.manual_seed(11)
    model = load_trainable(TrainableModel(ModelFolder(bases[name]), VIRTUAL["prompt_tuning"], bases[name].parent, "test"))
    torch.manual_seed(11)
    plain = load_causal_lm(bases[name])
    drawn = torch.randint(plain.get_input_embeddings().weight.shape[0], (1, 4))
    behind = torch.cat([drawn.expand(2, -1), IDS], dim=1)
    assert largest(logits(model), logits(plain, behind)[:, 4:]) < 1e-5


def gradients(model: Any) -> Iterator[str]:
    hidden = last_hidden_states(model, input_ids=IDS)
    (-token_logps(model, hidden[:, :-1], IDS[:, 1:]).sum()).backward()
    yield from (name for name, parameter in model.named_parameters() if parameter.grad is not None)


@pytest.mark.parametrize("settings", VIRTUAL.values(), ids=method)
@pytest.mark.parametrize("name", BASES)
def test_gradients_reach_the_vectors_only(bases: dict[str, Path], name: str, settings: VirtualTokens) -> None:
    model = load_trainable(TrainableModel(ModelFolder(bases[name]), settings, bases[name].parent, "test"))
    assert list(gradients(model)) == [f"{NAME}.prompt_embeddings"]
    moved = model.get_submodule(NAME).prompt_embeddings.grad.abs().amax(dim=1)
    assert bool((moved > 0).all()) and moved.shape == (4,)


@pytest.mark.parametrize("settings", [LORA, QLORA], ids=method)
@pytest.mark.parametrize("name", BASES)
def test_gradients_reach_every_lora_layer_and_nothing_else(bases: dict[str, Path], name: str, settings: Lora) -> None:
    model = load_trainable(TrainableModel(ModelFolder(bases[name]), settings, bases[name].parent, "test"))
    reached = set(gradients(model))
    layers = linear_layers(load_causal_lm(bases[name]))
    assert reached == {f"{layer}.lora_{part}.default.weight" for layer in layers for part in "AB"}


@pytest.mark.parametrize("settings", VIRTUAL.values(), ids=method)
def test_the_base_is_there_behind_the_vectors(bases: dict[str, Path], settings: VirtualTokens, tmp_path: Path) -> None:
    model = trained(bases["llama"], settings, tmp_path / "adapter")
    expected = logits(load_causal_lm(bases["llama"]))
    with without_virtual_tokens(model):
        assert torch.equal(logits(model), expected)
        assert start_cache(model, 2) is None
    assert largest(logits(model), expected) > 1e-2
