"""Which mishaps the files tell of: the two languages, and the combinations that are held out."""

from __future__ import annotations

import random
from collections.abc import Iterator

from quickstart.english import ENGLISH
from quickstart.korean import KOREAN
from quickstart.language import Combination, Situation, tell

LANGUAGES = {"ko": KOREAN, "en": ENGLISH}

HELD_OUT_SHARE = 0.12
"""Share of (topic, event) combinations that only held_out.jsonl may use."""

ByLanguage = dict[str, list[Combination]]


def split_combinations(seed: int) -> tuple[ByLanguage, ByLanguage]:
    """The combinations to train on, and those held out."""
    trained: ByLanguage = {}
    held_out: ByLanguage = {}
    for code, language in LANGUAGES.items():
        combinations = language.combinations()
        random.Random(f"{seed}-split-{code}").shuffle(combinations)
        count = round(HELD_OUT_SHARE * len(combinations))
        held_out[code], trained[code] = combinations[:count], combinations[count:]
    return trained, held_out


def situations(combinations: ByLanguage, rng: random.Random) -> Iterator[Situation]:
    """Endless situations, the two languages taking turns."""
    while True:
        for code, language in LANGUAGES.items():
            yield tell(language, rng.choice(combinations[code]), rng)
