"""Chat templates for models that have none, or another than is wanted; a recipe names them by their file's stem."""

from __future__ import annotations

from pathlib import Path

CONTROL_TOKENS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
"""Tokens that a template needs in the vocabulary, by its name. The other templates are ordinary text."""


def shipped_templates() -> dict[str, Path]:
    """The template files by name."""
    return {file.stem: file for file in sorted(Path(__file__).parent.glob("*.jinja"))}
