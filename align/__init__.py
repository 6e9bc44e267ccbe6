"""align: from a base model and a recipe to aligned models and a table that says which method won.

The names below are the public ones. Importing the package loads no torch; `align.losses` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.pipeline.recipe import load_recipe
    from align.pipeline.run import run_recipe
    from align.report.results import build_results as compare

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "load_recipe", "run_recipe"]

_WHERE = {
    "load_recipe": ("align.pipeline.recipe", "load_recipe"),
    "run_recipe": ("align.pipeline.run", "run_recipe"),
    "compare": ("align.report.results", "build_results"),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)
