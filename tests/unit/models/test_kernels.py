"""Kernels are chosen by the machine; Liger-Kernel's run on GPUs only, so a stand-in shows what it is asked for."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from align.models import kernels
from align.models.attention import takes_segments


@pytest.mark.parametrize(("device", "expected"), [("cuda", 1), ("cpu", 0)])
def test_liger_is_used_on_a_gpu_without_its_loss(device: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    package.__spec__ = ModuleSpec("liger_kernel", None)
    inner._apply_liger_kernel_to_instance = lambda **options: calls.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", inner)
    monkeypatch.setattr(kernels, "device_name", lambda: device)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    model = LlamaForSequenceClassification(LlamaConfig(**sizes, pad_token_id=0))
    kernels.use_kernels(model)
    assert takes_segments(model)
    options = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert calls == [{"model": model.base_model, **options}] * expected
