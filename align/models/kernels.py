"""How a loaded model computes, by what the machine and the model have: attention, and Liger-Kernel on a GPU."""

from __future__ import annotations

import importlib.util
from typing import Any

from align.models.attention import use_segments
from align.runtime.device import device_name


def use_kernels(model: Any) -> None:
    """Let a model compute in the cheapest exact way; results change in rounding only.

    Liger-Kernel's RMSNorm, rotary positions and gated layers are used where the package is installed. Its cross-entropy is not:
    that of `align.models.head` reads completion tokens only, in chunks.
    """
    use_segments(model)
    if device_name() == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # The backbone: a model with a score head is none of the classes that Liger-Kernel knows. What it does not know at all
        # stays as it is.
        _apply_liger_kernel_to_instance(model=model.base_model, cross_entropy=False, fused_linear_cross_entropy=False)
