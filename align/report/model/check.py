"""One check of a model, and why it matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "info", "problem"]

WHY: dict[str, str] = {
    "folder": "Files that could run code, or lead out of the folder, are never opened.",
    "tokenizer": "Without it no text becomes tokens.",
    "template": "The template makes the text that the model reads; a stranger's may be too large, never end, or fail.",
    "end_of_sequence": "A completion ends with this token; that is how the model learns to stop.",
    "padding": "Padding is masked out of the loss. If it is the end-of-sequence token, the model never learns to stop.",
    "prompt_prefix": "In training, a completion must follow exactly the prompt that it follows in sampling.",
    "end_of_turn": "The loss is taken on the completion and the text that closes it; without the end-of-sequence token there, "
    "the model never stops.",
    "stopping": "Servers read these files to know which token ends a completion; with another one, they let the model run on.",
    "beginning": "Most models were trained with exactly one beginning-of-sequence token; a second one makes them worse.",
    "one_pass": "Programs that tokenize prompt and completion together would train on other tokens than are sampled.",
    "first_message": "A system message that nobody wrote is part of every prompt, and counts as tokens.",
    "system_message": "Rows with a system message are dropped if the template refuses it, and changed if it leaves it out.",
    "two_turns": "Rows with several turns need a template that shows all of them.",
    "date": "With today's date in the prompt, the same recipe gives other results tomorrow.",
    "completions": "If the template changes a completion, the model would train on another text; such rows are refused.",
    "round_trip": "A model cannot learn a text that its tokenizer cannot reproduce.",
    "control_tokens": "Such a text in a prompt can end the user's turn and speak as the system or the assistant.",
    "vocabulary": "A token without a row in the embedding table ends training and sampling with an error.",
    "head": "A head that is missing would be filled with random numbers.",
    "weights": "Layers that are missing would be filled with random numbers; weights of other sizes cannot be loaded.",
    "numbers": "A model with NaN or an infinity among its weights writes one token for ever.",
    "context": "Longer rows cannot be trained on, and longer prompts cannot be answered.",
    "learning_rates": "With a rate that is usual for toys, a large model forgets what it knew.",
    "speed": "It decides how long reading the data takes.",
}
"""The reason for each check by its name, in the order of the checks."""


@dataclass(frozen=True)
class ModelCheck:
    """The result of one check. `problem`: training, sampling or serving would fail or go wrong; `info`: worth knowing."""

    name: str
    """One of WHY."""
    state: State
    found: str
    """What was found, with the values."""
    advice: str = ""
    """What to do; empty if there is nothing to do."""

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
