"""Whether bitsandbytes is there and can serve this machine. It is not imported: it would load torch and ask CUDA."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from align.errors import EnvironmentProblem
from align.runtime.device import torch_cuda, visible_gpu

INSTALL = "pip install bitsandbytes==0.50.2"
LIBRARY_VARIABLE = "BNB_CUDA_VERSION"
"""Names the library that bitsandbytes loads, whatever torch was built for."""


def require_for_qlora(where: str) -> None:
    """Raises EnvironmentProblem if bitsandbytes, which qlora needs, is missing or cannot use the GPU."""
    _require(f"{where}: qlora", "method: lora")


def require_for_optimizer(name: str, where: str) -> None:
    """Raises EnvironmentProblem if the optimizer needs bitsandbytes, and that is missing or cannot use the GPU."""
    if name.endswith("8bit"):
        _require(f"{where}: optimizer: {name}", "optimizer: adafactor, which needs less memory still")


def _require(what: str, instead: str) -> None:
    spec = importlib.util.find_spec("bitsandbytes")
    if spec is None:
        raise EnvironmentProblem(f"{what} needs bitsandbytes, which is not installed", hint=f"{INSTALL}, or use {instead}.")
    cuda = torch_cuda()
    if cuda is None or spec.origin is None or LIBRARY_VARIABLE in os.environ or visible_gpu() is None:
        return
    # It takes a library of another minor version, and none of another major one.
    if not any(Path(spec.origin).parent.glob(f"libbitsandbytes_cuda{int(cuda)}*")):
        raise EnvironmentProblem(
            f"{what} needs bitsandbytes, and the installed one has no library for CUDA {int(cuda)}, which torch was built for",
            hint=f"{INSTALL}, or use {instead}.",
        )
