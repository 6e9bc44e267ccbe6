"""RMSNorm and rotary embedding, each in one step of autograd, for a CPU and float32.

transformers spells them in elementwise operations, each of which reads and writes all hidden states, forward and backward: on a
CPU that cost a ninth of a training step (`scripts/benchmarks/fused.py`).
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ROTARY = "apply_rotary_pos_emb"
"""What transformers' model files call the function that rotates queries and keys."""

MARK = "fused_by_align"


class RMSNorm(torch.autograd.Function):
    """y = w · x / rms(x), rms(x)² = mean(x²) + ε over the last dimension (Zhang & Sennrich 2019, equation 4).

    With x̂ = x / rms(x) and g the gradient of y: dw = Σ g·x̂ over positions, dx = (g·w − x̂ · mean(g·w·x̂)) / rms(x).
    """

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        """`hidden_states` are [..., width], `weight` is [width]; the result is as the hidden states."""
        width = hidden_states.shape[-1]
        flat = hidden_states.reshape(-1, width)
        inverse = torch.linalg.vector_norm(flat, dim=-1, keepdim=True).square_().div_(width).add_(epsilon).rsqrt_()
        normalized = flat * inverse
        ctx.save_for_backward(normalized, inverse, weight)
        result: Tensor = normalized * weight
        return result.view(hidden_states.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        normalized, inverse, weight = ctx.saved_tensors
        flat = gradient.reshape(normalized.shape)
        products = flat * normalized
        to_weight = products.sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None
        means = torch.mv(products, weight)[:, None] / normalized.shape[-1]
        to_states = (flat * weight).addcmul_(normalized, means, value=-1).mul_(inverse)
        return to_states.view(gradient.shape), to_weight, None


class Rotation(torch.autograd.Function):
    """Rotary position embedding (Su et al. 2021, equation 34), in transformers' form: dimension i turns with i + half.

    (a, b) becomes (a·cos₁ − b·sin₁, b·cos₂ + a·sin₂) for the two halves of the last dimension; the gradient turns back.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        """`states` are [..., head_dim]; `cos` and `sin` broadcast to them."""
        ctx.save_for_backward(cos, sin)
        half = states.shape[-1] // 2
        rotated: Tensor = states * cos
        rotated[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
        rotated[..., half:].addcmul_(states[..., :half], sin[..., half:])
        return rotated

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        cos, sin = ctx.saved_tensors
        half = gradient.shape[-1] // 2
        to_states = gradient * cos
        to_states[..., :half].addcmul_(gradient[..., half:], sin[..., half:])
        to_states[..., half:].addcmul_(gradient[..., :half], sin[..., :half], value=-1)
        return to_states, None, None


def fuse(model: nn.Module) -> tuple[int, int]:
    """Let a model compute its RMSNorms and rotary embeddings by the functions above: how many norms, how many model files.

    Only where they compute what the model's own code does, which is tried on random numbers, since architectures differ (Gemma's
    norm counts its weight from −1). Weights, their names and the configuration stay as they are; another device or dtype is
    computed as before. Rotary embeddings are functions of transformers' model file: they change for all models of it.
    """
    norms = [module for module in model.modules() if _is_plain_rms_norm(module)]
    for module in norms:
        kind: Any = type(module)
        module.__class__ = _fused_class(kind)
    files = {name: sys.modules[name] for name in sorted({type(module).__module__ for module in model.modules()})}
    rotating = [file for file in files.values() if _is_plain_rotation(getattr(file, ROTARY, None))]
    for file in rotating:
        setattr(file, ROTARY, _fused_rotation(getattr(file, ROTARY)))
    return len(norms), len(rotating)


def _is_plain_rms_norm(module: nn.Module) -> bool:
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if hasattr(module, MARK) or not isinstance(weight, Tensor) or not isinstance(epsilon, float) or weight.ndim != 1:
        return False
    if not _can_fuse(weight) or len(inspect.signature(module.forward).parameters) != 1:
        return False
    probe = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.allclose(module(probe), _normalize(probe, weight, epsilon), rtol=1e-5, atol=1e-6)


@functools.cache
def _fused_class(kind: Any) -> Any:
    """A subclass, so that whatever asks for the kind of a module, or copies it, finds what it expects."""

    def forward(self: Any, hidden_states: Tensor) -> Any:
        if _can_fuse(hidden_states) and self.weight.dtype == torch.float32:
            return _normalize(hidden_states, self.weight, self.variance_epsilon)
        return kind.forward(self, hidden_states)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, MARK: True})


def _is_plain_rotation(function: Any) -> bool:
    if (
        function is None
        or hasattr(function, MARK)
        or list(inspect.signature(function).parameters) != ["q", "k", "cos", "sin", "unsqueeze_dim"]
    ):
        return False
    q, k, angles = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((2, 3, 4, 8), (2, 1, 4, 8), (2, 4, 8))
    )
    try:
        expected = function(q, k, angles.cos(), angles.sin())
    except (RuntimeError, ValueError):
        return False  # of another form
    found = _rotate(q, k, angles.cos(), angles.sin(), 1)
    return all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in zip(found, expected, strict=True))


def _fused_rotation(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        if all(map(_can_fuse, (q, k, cos))) and q.shape[-1] == k.shape[-1] == cos.shape[-1]:
            return _rotate(q, k, cos, sin, unsqueeze_dim)
        return original(q, k, cos, sin, unsqueeze_dim)

    setattr(apply_rotary_pos_emb, MARK, True)
    return apply_rotary_pos_emb


def _can_fuse(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _normalize(hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return RMSNorm.apply(hidden_states, weight, epsilon)  # type: ignore[no-untyped-call,no-any-return]


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Rotation.apply(q, cos, sin), Rotation.apply(k, cos, sin)  # type: ignore[no-untyped-call]
