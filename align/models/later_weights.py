"""Models that are built without their weights, which another process reads and sends.

Their parameters and buffers are on torch's meta device: they have a shape and a type, and no memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_WEIGHTS_COME_LATER: ContextVar[bool] = ContextVar("weights_come_later", default=False)


@contextlib.contextmanager
def weights_come_later(later: bool = True) -> Iterator[None]:
    """Within it, the functions of `align.models.load` read no weights."""
    token = _WEIGHTS_COME_LATER.set(later)
    try:
        yield
    finally:
        _WEIGHTS_COME_LATER.reset(token)


def do_weights_come_later() -> bool:
    """Whether this is within `weights_come_later`."""
    return _WEIGHTS_COME_LATER.get()


def has_weights(model: Any) -> bool:
    """False for a model whose numbers are not there yet: nothing can be computed with it."""
    return not next(model.parameters()).is_meta


def build_without_weights(auto_class: Any, path: Path, *, dtype: Any, **options: Any) -> Any:
    """What `auto_class.from_pretrained` returns, in eval mode, without memory for a single number.

    Args:
        dtype: float32, bfloat16, or a torch.dtype.
        options: fields of the model's configuration.
    Raises:
        ValueError, KeyError: if transformers does not have the architecture.
    """
    import torch
    from transformers import AutoConfig
    from transformers.initialization import meta_device_safe_creation_ops

    config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False, **options)
    # Some models compute numbers while they are built, which these functions do on the CPU.
    with torch.device("meta"), meta_device_safe_creation_ops():
        model = auto_class.from_config(config, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    return model.eval()
