"""How much of a text repeats what it said before."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Sequence
from functools import lru_cache

import regex

_SENTENCE_END = regex.compile(r"(?<=[.!?。！？…])\s+|\n+")


@lru_cache(maxsize=1024)  # one answer may be scored for every prompt
def repeated_share(text: str, *, ngram_words: int) -> float:
    """How much of `text` repeats what it said before, in [0, 1].

    The larger of two shares: of the word n-grams, and of the sentences, those that occurred earlier in the text.
    Sentences are counted too, because one that is shorter than the n-gram can be repeated without repeating any n-gram.
    """
    ngrams = _ngrams(text, ngram_words)
    sentences = [bare for bare, _ in _sentences(text)]
    return max(_share_seen_before(ngrams), _share_seen_before(sentences))


def bare_sentences(text: str) -> dict[str, str]:
    """The sentences of a text, in order: as compared with others, without case and outer punctuation, and as written first."""
    found: dict[str, str] = {}
    for bare, sentence in _sentences(text):
        found.setdefault(bare, sentence)
    return found


def _sentences(text: str) -> list[tuple[str, str]]:
    split = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text))
    return [(bare, sentence) for sentence in split if (bare := _bare(sentence))]


def copied_share(text: str, source: str, *, ngram_words: int) -> float:
    """Share of the word n-grams of `text` that occur in `source` too, in [0, 1]; of a shorter text, the text as one n-gram."""
    count = max(1, min(ngram_words, len(text.split())))
    ngrams, known = _ngrams(text, count), set(_ngrams(source, count))
    return sum(ngram in known for ngram in ngrams) / len(ngrams) if ngrams else 0.0


@lru_cache(maxsize=1024)
def word_pairs(text: str) -> tuple[tuple[str, ...], ...]:
    """Pairs of neighbouring words within the sentences of a text, in lower case and without outer punctuation."""
    return tuple(pair for sentence in _SENTENCE_END.split(text) for pair in _ngrams(sentence, 2))


def _ngrams(text: str, count: int) -> list[tuple[str, ...]]:
    words = [_bare(word) for word in text.split()]
    return [tuple(words[start : start + count]) for start in range(len(words) - count + 1)]


@lru_cache(maxsize=65_536)  # most words come again
def _bare(text: str) -> str:
    """Without case and outer punctuation, which do not make a repetition new."""
    text = text.casefold()
    start, end = 0, len(text)
    while start < end and _is_punctuation(text[start]):
        start += 1
    while end > start and _is_punctuation(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_punctuation(character: str) -> bool:
    """Whether it is of Unicode's categories P (punctuation) or Z (separators)."""
    return not character.isalnum() and unicodedata.category(character)[0] in "PZ"


def _share_seen_before(items: Sequence[Hashable]) -> float:
    return 1 - len(set(items)) / len(items) if items else 0.0
