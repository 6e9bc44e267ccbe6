"""Fuzzing of everything that reads what others wrote: a target for each parser, inputs by seed and number, their outcomes.

A target makes its own inputs from valid ones: bytes, words, lines and values are changed, taken out, doubled, put together, or
replaced by what parsers stumble on. An input is either accepted or refused by a documented error; anything else is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from align.testing.fuzz.target import Target


def _target(module: str, name: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        # Late: a target imports its parser, and the libraries that this one needs.
        made: Target = getattr(import_module(f"align.testing.fuzz.{module}"), name)(folder)
        return made

    return make


TARGETS: Mapping[str, Callable[[Path], Target]] = {
    "recipe": _target("recipe", "RecipeTarget"),
    "rows": _target("rows", "RowsTarget"),
    "headers": _target("headers", "HeaderTarget"),
    "model_folder": _target("model_folder", "ModelFolderTarget"),
    "manifests": _target("manifests", "ManifestTarget"),
    "candidates": _target("candidates", "CandidatesTarget"),
    "adapter": _target("adapter", "AdapterTarget"),
    "tokenizer": _target("tokenizer", "TokenizerTarget"),
    "templates": _target("templates", "TemplateTarget"),
}
"""What makes each target, in a folder of its own."""
