"""Logits: those of the model's own forward for every kind of model, and float32 ones of a bfloat16 head without a copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import linear

from align.errors import RecipeError
from align.models import logits
from align.models.head import last_hidden_states, target_logps, target_logps_and_entropy
from align.models.load import load_causal_lm
from align.models.logits import check_logits, in_float32
from align.testing import tiny_causal_lm

SIZE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 96, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9]])
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 8},
    "cohere": {"logit_scale": 0.3},
    # One name, three meanings.
    "granite": {"logits_scaling": 7.0},
    "hyperclovax": {"logits_scaling": 7.0},
    "minicpm3": {
        "dim_model_base": 8, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
    },
    "falcon_h1": {"lm_head_multiplier": 3.0, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    # A decoder inside the base model, and a head of several layers.
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "roberta": {"is_decoder": True},
}  # fmt: skip


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](**{**SIZE, **KINDS[kind]})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_models_own_forward(kind: str) -> None:
    model = model_of(kind)
    forward = model.base_model.forward
    model.zero_grad()
    own = model(input_ids=IDS, use_cache=False).logits[0].log_softmax(-1).gather(-1, IDS[0, :, None])[:, 0]
    own.sum().backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    states = last_hidden_states(model, input_ids=IDS)[0]
    found = target_logps(model, states, IDS[0])
    found.sum().backward()
    torch.testing.assert_close(found, own, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target_logps_and_entropy(model, states.detach(), IDS[0]).logps, own.detach(), rtol=1e-6, atol=1e-6)
    assert {name for name, value in model.named_parameters() if value.grad is not None} == set(expected)
    for name, value in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-6)
    assert model.base_model.forward == forward
    check_logits(model, "it")


def test_a_model_whose_logits_are_others_is_refused(tmp_path: Path) -> None:
    model: Any = load_causal_lm(tiny_causal_lm(tmp_path / "base"))

    class BySequence(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor | None = None, **options: Any) -> Any:
            result = super().forward(input_ids=input_ids, **options)
            if input_ids is not None:
                result.logits = result.logits * 1.5
            return result

    model.__class__ = BySequence
    with pytest.raises(RecipeError, match="it: the logits of BySequence differ by .* from those computed from its hidden"):
        check_logits(model, "it")

    class Embedded(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, **options: Any) -> Any:
            return super().forward(input_ids=input_ids, **options)

    model.__class__ = Embedded
    with pytest.raises(RecipeError, match="it: the logits of Embedded cannot be computed from its hidden states: .*input_ids"):
        check_logits(model, "it")


@pytest.mark.parametrize(("states_are", "tolerance"), [(torch.bfloat16, 2e-6), (torch.float32, 2e-5)])
def test_a_frozen_head_in_bfloat16_gives_float32_logits_without_a_copy(
    states_are: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of a standard deviation of 4. Over 20 seeds the largest error was 6e-6 from states in bfloat16 and 5e-5 from states
    in float32, which two bfloat16 numbers stand for; the head computed in bfloat16 was off by 0.07."""
    monkeypatch.setattr(logits, "COPIED_NUMBERS", 1000)  # several slices
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(256, 300).to(torch.bfloat16).requires_grad_(False)
    layer.weight.normal_(std=4 / 16, generator=generator)
    states = torch.randn(2, 20, 256, generator=generator).to(states_are).requires_grad_()
    weights = torch.randn(2, 20, 300, generator=generator)
    exact = linear(states.double(), layer.weight.double(), layer.bias.double())
    (expected,) = torch.autograd.grad((exact * weights).sum(), states)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found = in_float32(layer, states)
            (gradient,) = torch.autograd.grad((found * weights).sum(), states)
        assert found.dtype == torch.float32
        assert gradient.dtype == states_are
        assert (found - exact).abs().max() < tolerance * 4 * 4
        torch.testing.assert_close(gradient, expected, rtol=1e-2 if states_are == torch.bfloat16 else 1e-4, atol=1e-4)
