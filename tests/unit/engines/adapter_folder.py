"""A LoRA adapter that changes what its model says."""

from __future__ import annotations

from pathlib import Path

import torch

from align.config.peft import Lora
from align.models.folder import ModelFolder
from align.models.trainable import TrainableModel, load_trainable, save_trained


def adapter(base: Path, folder: Path, method: str) -> Path:
    """An adapter far from nothing."""
    torch.manual_seed(7)
    start = TrainableModel(ModelFolder(base), Lora(method=method, rank=4), folder.parent, "test")  # type: ignore[arg-type]
    model = load_trainable(start)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    save_trained(model, ModelFolder(base).tokenizer, folder, start)
    return folder
