"""The device that models run on."""

from __future__ import annotations

import gc
import sys


def free_memory() -> None:
    """Free the memory of models that nothing uses any more, so that the next one finds room.

    A model in training refers to itself, so its weights would stay until the collector happens to run; torch would keep the
    freed memory of a GPU for itself, where another engine cannot have it.
    """
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
