"""One thing that was looked at in a model, and why it matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "info", "problem"]

WHY: dict[str, str] = {
    "folder": "Files that could run code, or lead out of the folder, are never opened.",
    "tokenizer": "Without it no text becomes tokens.",
    "template": "The template is what the model is shown; a stranger's may be too large, never end, or fail.",
    "end_of_sequence": "A completion ends with this token; the model learns to stop by it.",
    "padding": "Padding is masked out of the loss. Were it the end-of-sequence token, the model would never learn to stop.",
    "prompt_prefix": "A completion is trained behind the very prompt that it is sampled behind.",
    "end_of_turn": "The loss is taken on the completion and what closes it; if that is not the end-of-sequence token, "
    "the model never stops.",
    "stopping": "Servers read there which token ends a completion; with another one, they let the model run on.",
    "beginning": "Most models were trained with exactly one beginning-of-sequence token; a second one makes them worse.",
    "one_pass": "Programs that tokenize prompt and completion in one go would train on other tokens than are sampled.",
    "first_message": "A system message that nobody wrote is part of every prompt, and counts as tokens.",
    "system_message": "Rows with a system message are dropped if the template refuses it, and changed if it leaves it out.",
    "two_turns": "Rows with several turns need a template that shows all of them.",
    "date": "With today's date in the prompt, the same recipe gives other results tomorrow.",
    "completions": "A completion that the template changes is not what would be trained on; such rows are refused.",
    "round_trip": "A text that the tokenizer cannot give back cannot be learnt as it is.",
    "control_tokens": "Whoever writes such a text into a prompt can end his turn and speak as the system or the assistant.",
    "vocabulary": "A token without a row in the embedding table ends training and sampling with an error.",
    "head": "A head that is missing would be filled with random numbers.",
    "context": "Rows that are longer cannot be trained on, and prompts not be answered.",
    "speed": "How long reading the data takes.",
}
"""Why each check is made, by its name, in the order in which they are made."""


@dataclass(frozen=True)
class ModelCheck:
    """What one check found. `problem`: training, sampling or serving would fail or go wrong; `info`: worth knowing."""

    name: str
    """One of WHY."""
    state: State
    found: str
    """What was found, in words and values."""
    advice: str = ""
    """What to do; empty where nothing need be done."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "found": self.found,
            "why": WHY[self.name],
            "advice": self.advice,
        }


def listed(items: list[str], most: int = 5) -> str:
    """The first items and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
