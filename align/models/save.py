"""Save a model: safetensors only, and never with a weight that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import StageError
from align.models.folder import ModelFolder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights, configuration, tokenizer and chat template into `folder`, which is created.

    The folder is then checked like any other model, so that what was written can be read back.

    Raises:
        StageError: if a weight is NaN or infinite; nothing is written then.
    """
    check_finite(model.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), push_to_hub=False)
    tokenizer.save_pretrained(str(folder), push_to_hub=False)
    ModelFolder(folder).check()


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights and buffers, by name, with a number that is NaN or infinite.

    Raises:
        StageError: with the names of the first such tensors.
    """
    import torch

    broken = [
        name for name, tensor in state.items() if torch.is_floating_point(tensor) and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise StageError(
            f"the model has numbers that are not finite in {', '.join(broken[:3])}{more}; it was not saved",
            hint="Training diverged: lower learning_rate, or set precision: float32.",
        )
