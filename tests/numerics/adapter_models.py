"""Models with adapters that are not what they started as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.config.peft import Lora, VirtualTokens
from align.models.folder import ModelFolder
from align.models.head import last_hidden_states
from align.models.trainable import TrainableModel, load_trainable, save_trained

LORA = Lora(method="lora", rank=3, alpha=5.0)
QLORA = Lora(method="qlora", rank=3, alpha=5.0)
VIRTUAL = {
    "prefix_tuning": VirtualTokens(method="prefix_tuning", num_virtual_tokens=4),
    "prompt_tuning": VirtualTokens(method="prompt_tuning", num_virtual_tokens=4),
}
Peft = Lora | VirtualTokens
EVERY: list[Peft] = [LORA, QLORA, *VIRTUAL.values()]
IDS = torch.tensor([[7, 40, 41, 90, 200, 33, 5, 61], [9, 8, 7, 6, 5, 4, 3, 1]])


def method(settings: Peft) -> str:
    return settings.method


def trained(base: Path, settings: Peft, folder: Path, **more: Any) -> Any:
    """A model whose adapter is not what it started as, saved to `folder`."""
    start = TrainableModel(ModelFolder(base), settings, folder.parent, "test")
    torch.manual_seed(0)
    model = load_trainable(start, **more)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_trained(model, ModelFolder(base).tokenizer, folder, start)
    return model


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    hidden = last_hidden_states(model, input_ids=ids, attention_mask=mask)
    return model.get_output_embeddings()(hidden)  # type: ignore[no-any-return]


def largest(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().abs().max())
