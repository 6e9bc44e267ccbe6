"""How the texts of a dataset begin: instructions written from one template begin alike."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import regex

_OUTER_PUNCTUATION = regex.compile(r"^[\p{P}\p{S}]+|[\p{P}\p{S}]+$")
OPENING_CHARACTERS = 200
"""Characters at the start of a text in which its first words are looked for."""


@dataclass(frozen=True)
class Openings:
    """How texts begin."""

    texts: int
    """Texts looked at, those without a word left out."""
    distinct: int
    """Different openings."""
    top: tuple[tuple[str, int], ...]
    """(opening, count), most frequent first, equals in alphabetical order."""

    @property
    def distinct_share(self) -> float:
        """Different openings per text, in [0, 1]; 0 without texts. It falls as texts are added: compare sets of one size."""
        return self.distinct / self.texts if self.texts else 0.0


def openings(texts: Iterable[str], *, num_words: int = 3, num_top: int = 10) -> Openings:
    """Count the first `num_words` words of every text, without case and outer punctuation.

    Words are what white space separates. Chinese and Japanese texts have their first clause as one "word".
    """
    counts = Counter(opening for text in texts if (opening := opening_of(text, num_words=num_words)))
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:num_top]
    return Openings(counts.total(), len(counts), tuple(top))


def opening_of(text: str, *, num_words: int = 3) -> str:
    """The first words of one text; empty where it has none."""
    start = unicodedata.normalize("NFC", text.lstrip()[:OPENING_CHARACTERS]).casefold()
    words = (_OUTER_PUNCTUATION.sub("", word) for word in start.split())
    return " ".join([word for word in words if word][:num_words])
