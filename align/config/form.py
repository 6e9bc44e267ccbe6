"""Forms of a recipe: what an entry of `stages` may be when it stands for several stages; `expand` writes them out."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from align.config.base import StrictModel
from align.config.entry import MAX_COPIES
from align.config.reference import ModelReference
from align.config.trials import MAX_TRIALS

SEED_LIMIT = 2**32
"""Seeds are below this, as NumPy wants them."""
# Names become parts of paths and of file names, so they hold no separator, dot or space.
NODE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

Seed = Annotated[int, Field(ge=0, lt=SEED_LIMIT)]


class Copies(StrictModel):
    """What every entry of `stages` may have beside the fields of its stage."""

    seeds: list[Seed] | None = Field(default=None, min_length=1, max_length=MAX_COPIES)
    """One copy of the entry, and of what needs it, for each of these seeds."""


class Rounds(Copies):
    """Rounds of generate, score, pairs and dpo, each from the model of the round before."""

    rounds: int = Field(ge=1, le=MAX_COPIES)
    """How often the four stages are repeated."""
    model: ModelReference
    """Model that the first round starts from."""
    reference: Literal["previous", "first"] = "previous"
    """Reference of every round's DPO: the model that this round starts from, or the one that the first round starts from."""
    seed: Seed | None = None
    """Seed of every stage of the rounds; default: the recipe's."""
    generate: dict[str, Any]
    """Fields of the generate stages; prompts may be a list with an entry per round."""
    score: dict[str, Any]
    """Fields of the score stages."""
    pairs: dict[str, Any]
    """Fields of the pairs stages."""
    dpo: dict[str, Any]
    """Fields of the dpo stages."""


class Sweep(StrictModel):
    """Trials of a stage with other settings, of which the best by validation prompts takes the stage's name."""

    fields: dict[str, Any] = Field(min_length=1)
    """STAGE.FIELD → a list of values, or {uniform: [LOW, HIGH]} or {log_uniform: [LOW, HIGH]}. Fields of the stage, and of the
    stages that it needs."""
    trials: int | None = Field(default=None, ge=1, le=MAX_TRIALS)
    """Draw this many trials at random. Default: every combination of the values."""
