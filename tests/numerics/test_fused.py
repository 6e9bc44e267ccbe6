"""RMSNorm and rotary embedding in one step of autograd each: by hand, by finite differences, and as transformers spells them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.gemma import modeling_gemma
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3 import modeling_qwen3

from align.models.fused import MARK, ROTARY, RMSNorm, Rotation, fuse

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def apply(hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return RMSNorm.apply(hidden_states, weight, epsilon)  # type: ignore[no-untyped-call,no-any-return]


def test_by_hand() -> None:
    """x = (1, 7): mean of squares 25, rms 5. w = (2, 10): y = (2/5, 14).

    Gradient g = (1, 0): g·w·x̂ = (2/5, 0), its mean 1/5; dx = ((2, 0) − (1/5, 7/5)/5) / 5 = (49/125, −7/125); dw = (1/5, 0).
    """
    x = torch.tensor([[1.0, 7.0]], requires_grad=True)
    w = torch.tensor([2.0, 10.0], requires_grad=True)
    y = apply(x, w, 0.0)
    torch.testing.assert_close(y, torch.tensor([[0.4, 14.0]]))
    y.backward(torch.tensor([[1.0, 0.0]]))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, torch.tensor([[49 / 125, -7 / 125]]))
    torch.testing.assert_close(w.grad, torch.tensor([0.2, 0.0]))


def test_epsilon_is_under_the_root() -> None:
    """x = 0 and ε = 1/4: y = 0, and dx = g·w / √ε = 2·g·w."""
    x = torch.zeros(1, 2, requires_grad=True)
    apply(x, torch.tensor([3.0, 1.0]), 0.25).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[6.0, 2.0]]))


def test_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: apply(a, b, 1e-6), (x, w))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_transformers_spells_the_same(scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    norm = LlamaRMSNorm(24)
    norm.weight.data = torch.randn(24, generator=generator)
    x = scale * torch.randn(7, 3, 24, generator=generator)
    gradient = torch.randn(7, 3, 24, generator=generator)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    (theirs := norm(expected)).backward(gradient)
    weight = norm.weight.detach().clone().requires_grad_()
    (ours := apply(found, weight, norm.variance_epsilon)).backward(gradient)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, theirs)
    assert found.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(
        scale * found.grad, scale * expected.grad
    )  # they go as 1/scale, and differences are of large numbers
    torch.testing.assert_close(weight.grad, norm.weight.grad)


def test_a_frozen_weight_gets_no_gradient_and_the_states_get_theirs() -> None:
    weight = torch.ones(4)
    x = torch.randn(2, 4, requires_grad=True)
    apply(x, weight, 1e-6).sum().backward()
    assert weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize(("kind", "config"), [(LlamaForCausalLM, LlamaConfig), (Qwen3ForCausalLM, Qwen3Config)])
def test_a_model_stays_what_it_is(kind: Any, config: Any) -> None:
    torch.manual_seed(3)
    model = kind(config(**SMALL)).eval()
    ids = torch.arange(12).reshape(2, 6)
    expected, names = model(ids).logits, list(model.state_dict())
    assert fuse(model)[0] == sum("Norm" in type(module).__name__ for module in model.modules()) > 4
    torch.testing.assert_close(model(ids).logits, expected)
    assert list(model.state_dict()) == names
    assert fuse(model) == (0, 0)  # a second time there is nothing left to do


@pytest.fixture(autouse=True)
def _own_rotations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers itself computes; `fuse` changes the model files for the whole process."""
    for file in (modeling_llama, modeling_gemma, modeling_qwen3):
        function: Any = getattr(file, ROTARY)
        monkeypatch.setattr(file, ROTARY, function.__wrapped__ if hasattr(function, MARK) else function)


def test_a_norm_of_another_formula_is_left_alone() -> None:
    """Gemma's weight counts from −1."""
    assert fuse(GemmaForCausalLM(GemmaConfig(**SMALL)))[0] == 0


def test_a_copy_uses_its_own_weights() -> None:
    module = nn.Sequential(LlamaRMSNorm(2))
    fuse(module)
    copied = copy.deepcopy(module)
    copied[0].weight.data.fill_(2.0)
    x = torch.tensor([[1.0, 7.0]])
    torch.testing.assert_close(copied(x), 2 * module(x))


def test_other_dtypes_are_computed_as_before() -> None:
    """Llama's norm of bfloat16 states is computed in float32 and rounded once."""
    module = nn.Sequential(LlamaRMSNorm(2, eps=0.0))
    fuse(module)
    found = module(torch.tensor([[1.0, 7.0]], dtype=torch.bfloat16))
    assert math.isclose(found[0, 1].item(), 1.4, rel_tol=0.01)
    assert fuse(nn.Sequential(LlamaRMSNorm(2).bfloat16()))[0] == 0


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return Rotation.apply(states, cos, sin)  # type: ignore[no-untyped-call,no-any-return]


def test_a_quarter_turn_by_hand() -> None:
    """Halves (1, 2) and (3, 4); the first pair turns by 90 degrees, the second by 0: (-3, 2) and (1, 4).

    The gradient (1, 0, 0, 0) turns back: (0, 0, -1, 0).
    """
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    cos, sin = torch.tensor([[0.0, 1.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    y = rotate(x, cos, sin)
    torch.testing.assert_close(y, torch.tensor([[-3.0, 2.0, 1.0, 4.0]]))
    y.backward(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 0.0, -1.0, 0.0]]))


def test_rotation_by_finite_differences() -> None:
    """With cosines and sines that differ in the two halves, and of no real angle: every term counts."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3, 5, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    cos, sin = (torch.randn(2, 1, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda states: rotate(states, cos, sin), (x,))


def test_the_rotation_of_a_model_file_is_exchanged_and_computes_the_same() -> None:
    original: Any = getattr(modeling_llama, ROTARY)
    assert fuse(LlamaForCausalLM(LlamaConfig(**SMALL)))[1] == 1
    exchanged: Any = getattr(modeling_llama, ROTARY)
    assert exchanged is not original
    generator = torch.Generator().manual_seed(5)
    q, k = torch.randn(2, 3, 4, 8, generator=generator), torch.randn(2, 1, 4, 8, generator=generator)
    angles = torch.randn(2, 4, 8, generator=generator)
    for one, other in zip(exchanged(q, k, angles.cos(), angles.sin()), original(q, k, angles.cos(), angles.sin()), strict=True):
        torch.testing.assert_close(one, other)
    part = (angles[..., :4].cos(), angles[..., :4].sin())
    assert (
        exchanged(q[..., :4].bfloat16(), k[..., :4].bfloat16(), *part)[0].dtype
        == original(q[..., :4].bfloat16(), k[..., :4].bfloat16(), *part)[0].dtype
    )


def test_gradients_of_a_whole_model_are_those_without() -> None:
    torch.manual_seed(6)
    plain = Qwen3ForCausalLM(Qwen3Config(**SMALL)).eval()
    fused = copy.deepcopy(plain)
    ids = torch.arange(12).reshape(2, 6)
    plain(ids, labels=ids).loss.backward()
    fuse(fused)
    fused(ids, labels=ids).loss.backward()
    for (name, expected), found in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)
