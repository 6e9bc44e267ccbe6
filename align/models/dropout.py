"""Dropout of a loaded model."""

from __future__ import annotations

from typing import Any


def set_dropout(model: Any, dropout: float) -> None:
    """Set every dropout of a loaded model; its configuration, which is saved, stays as it was."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = dropout
