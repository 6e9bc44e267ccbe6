"""Save a model: safetensors only, and never with a weight that is NaN or infinite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.architecture import CONFIG_NAME
from align.errors import StageError
from align.models.chat_format import Tokens, save_tokens
from align.models.folder import ModelFolder
from align.runtime.profile import phase
from align.store.atomic import write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@phase("save")
def save_model(model: PreTrainedModel, tokens: Tokens, folder: Path, *, dtype: str | None = None) -> None:
    """Write weights, configuration, tokenizer and chat template into `folder`, which is created.

    The folder is then checked like any other model, so that what was written can be read back.

    Args:
        dtype: float32 or bfloat16, to which copies of the weights are rounded; the model does not change. Default: its own.
    Raises:
        StageError: if a weight is NaN or infinite; nothing is written then.
    """
    check_finite(model.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    if dtype is None or str(model.dtype) == f"torch.{dtype}":
        model.save_pretrained(str(folder), push_to_hub=False)
    else:
        model.save_pretrained(str(folder), push_to_hub=False, state_dict=_rounded(model.state_dict(), dtype))
        # transformers has written the dtype of the model in memory.
        write_json(folder / CONFIG_NAME, _naming(json.loads((folder / CONFIG_NAME).read_bytes()), dtype))
    save_tokens(tokens, folder)
    ModelFolder(folder).check()


def _rounded(state: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Copies on the CPU, those of numbers with a fraction in `dtype`. Tied tensors stay tied, since one of them is left out."""
    import torch

    copies: dict[Any, Tensor] = {}
    for tensor in state.values():
        wanted = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
        copies.setdefault(_place(tensor), tensor.detach().to("cpu", wanted))
    return {name: copies[_place(tensor)] for name, tensor in state.items()}


def _place(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _naming(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration, and those inside it that name a dtype, with this one."""
    parts = {key: _naming(value, dtype) for key, value in config.items() if isinstance(value, dict) and "dtype" in value}
    return {**config, **parts, "dtype": dtype}


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
