"""align: from a base model and a recipe to aligned models and a table that says which method won.

The names below are the public ones. Importing the package loads no torch; `align.losses` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.pipeline.recipe import load_recipe
    from align.pipeline.run import run_recipe
    from align.report.results import build_results

__version__ = "0.1.0"
__all__ = ["__version__", "build_results", "load_recipe", "run_recipe"]

_MODULES = {
    "build_results": "align.report.results",
    "load_recipe": "align.pipeline.recipe",
    "run_recipe": "align.pipeline.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
