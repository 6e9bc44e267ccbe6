"""align: from a base model and a recipe to aligned models and a table that says which method won.

The names below are the public ones, and docs/python.md shows them at work. Importing the package loads no torch; `align.losses`
does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from align_llm import REPAIR, find_other

if TYPE_CHECKING:
    from align.api.run import Run, Stage, load_run
    from align.api.start import plan, run_recipe
    from align.api.table import Table
    from align.errors import AlignError, DataError, EnvironmentProblem, Interrupted, RecipeError, StageError
    from align.pipeline.recipe import load_recipe
    from align.report.results import build_results

# Their __init__.py says nothing of the kind; ours is here, so align-llm was installed last.
if (_both := find_other()) is not None:
    raise ImportError(f"{_both}\n→ {REPAIR}", name="align")

__version__ = "0.1.0"
__all__ = [
    "AlignError",
    "DataError",
    "EnvironmentProblem",
    "Interrupted",
    "RecipeError",
    "Run",
    "Stage",
    "StageError",
    "Table",
    "__version__",
    "build_results",
    "load_recipe",
    "load_run",
    "plan",
    "run_recipe",
]

_MODULES = {
    "align.api.run": ("Run", "Stage", "load_run"),
    "align.api.start": ("plan", "run_recipe"),
    "align.api.table": ("Table",),
    "align.errors": ("AlignError", "DataError", "EnvironmentProblem", "Interrupted", "RecipeError", "StageError"),
    "align.pipeline.recipe": ("load_recipe",),
    "align.report.results": ("build_results",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
