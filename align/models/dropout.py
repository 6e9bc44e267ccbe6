"""Dropout of a loaded model."""

from __future__ import annotations

from typing import Any

NUMBERS = ("attention_dropout", "dropout", "activation_dropout")
"""Attributes in which transformers' layers keep a dropout as a number, not as a layer (T5's attention: `dropout`)."""


def set_dropout(model: Any, dropout: float) -> None:
    """Set every dropout of a loaded model. Its configuration, which is saved with it, does not change."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
        for name in NUMBERS:
            # Other modules keep a layer under the same name; it is set above.
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, dropout)
