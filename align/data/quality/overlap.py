"""Overlap with evaluation prompts: rows that contain what a model will be evaluated on, found by shared n-grams.

A row that shares an n-gram with an evaluation prompt *and* holds at least `min_share` of that prompt's n-grams overlaps it.
One shared n-gram alone (as in Brown et al. 2020, appendix C, with 13 words) says little of a long prompt: sums and instructions
share eight words ("a day for 5 days a week if") without being the same task.

Case, punctuation, white space and Unicode form do not count. Words are the unit where words are written apart. Chinese, Japanese,
Thai and their like do not write them apart, and Korean often not where it should, so prompts mostly in these are compared by
letters, spaces left out: 20 letters are about the 5 to 12 words that 8 English words become there.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import regex

OVERLAPS_EVALUATION = "overlaps_evaluation"
"""`drop_reason` of a row that overlaps an evaluation prompt."""
NGRAM_WORDS = 8
NGRAM_LETTERS = 20
MIN_WORDS = 4
MIN_LETTERS = 10
"""A prompt shorter than an n-gram is looked for as a whole, inside a text if it has as many words or letters as this, else only
as the whole text: "Why?" is part of many."""
MIN_SHARE = 0.3

_Units = tuple[bytes, ...] | str
"""A text as words (in UTF-8, as `bytes.translate` leaves ASCII text), or as letters."""

_WORD = regex.compile(r"\w+")
_ASCII_WORDS = bytes(ord(chr(code).lower()) if chr(code).isalnum() or chr(code) == "_" else 32 for code in range(128)).ljust(256)
"""For `bytes.translate`: letters in lower case; everything but letters, digits and underscores becomes a space."""
_WRITTEN_TOGETHER = regex.compile(
    r"[\p{Hangul}\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"  # scripts, not languages
)


@dataclass(frozen=True)
class Overlap:
    """What a text has in common with the evaluation prompt that it overlaps most."""

    prompt_id: str
    """Id of the evaluation prompt."""
    ngram: str
    """The first n-gram of the text that is the prompt's, normalised; the whole prompt where that is shorter than n."""
    share: float
    """Share of the prompt's different n-grams that are in the text, in (0, 1]."""

    def describe(self) -> str:
        """Why a row with this overlap is dropped."""
        return f"has {100 * self.share:.0f} % of the evaluation prompt {self.prompt_id!r}, such as {self.ngram!r}"


class EvaluationIndex:
    """The n-grams of evaluation prompts, to find texts that contain them. Threads may share it: it never changes once made."""

    def __init__(
        self,
        prompts: Iterable[tuple[str, str]],
        *,
        ngram_words: int = NGRAM_WORDS,
        ngram_letters: int = NGRAM_LETTERS,
        min_share: float = MIN_SHARE,
    ) -> None:
        """Index the prompts; memory grows with their words.

        Args:
            prompts: (id, text) each. Texts without a word are left out; of equal ones the first is found.
            ngram_words: words of an n-gram, for prompts in scripts that write words apart.
            ngram_letters: letters of an n-gram, for the others.
            min_share: least share of a prompt's n-grams that a text must hold to overlap it, in [0, 1]; 0: any n-gram will do.
        Raises:
            ValueError: if a number is out of range.
        """
        if ngram_words < MIN_WORDS or ngram_letters < MIN_LETTERS or not 0 <= min_share <= 1:
            raise ValueError(
                f"expected ngram_words >= {MIN_WORDS}, ngram_letters >= {MIN_LETTERS} and 0 <= min_share <= 1, "
                f"not {ngram_words}, {ngram_letters} and {min_share}"
            )
        self._by_words = _Grams(ngram_words, MIN_WORDS, min_share)
        self._by_letters = _Grams(ngram_letters, MIN_LETTERS, min_share)
        for prompt_id, text in prompts:
            words = _words(text)
            if _mostly_written_together(words):
                self._by_letters.add(prompt_id, _letters(words))
            else:
                self._by_words.add(prompt_id, tuple(words))

    def overlap(self, *texts: str) -> Overlap | None:
        """What a row's texts share with the prompt that one of them overlaps most; None where nothing reaches `min_share`.

        Give every message and completion on its own: a short prompt is found only where it is a whole one. If prompts have equal
        shares, the first one counts.
        """
        best: Overlap | None = None
        for text in texts:
            words = _words(text)
            found = [self._by_words.find(tuple(words))]
            # Prompts compared by letters are mostly in other scripts, so an ASCII text is not worth this search.
            if self._by_letters and not text.isascii():
                found.append(self._by_letters.find(_letters(words)))
            for overlap in found:
                if overlap is not None and (best is None or overlap.share > best.share):
                    best = overlap
        return best


class _Grams:
    """Prompts as sequences of one unit: tuples of words, or strings of letters."""

    def __init__(self, size: int, min_size: int, min_share: float) -> None:
        self._size, self._min_size, self._min_share = size, min_size, min_share
        self._ids: list[str] = []
        self._num_grams: list[int] = []
        self._prompts_with: dict[Hashable, list[int]] = {}
        # Prompts shorter than an n-gram, by their first `min_size` units: one lookup at each place of a text finds them.
        self._short_by_start: dict[Hashable, list[_Units]] = {}
        self._whole: dict[Hashable, str] = {}

    def __bool__(self) -> bool:
        return bool(self._ids or self._whole)

    def add(self, prompt_id: str, units: _Units) -> None:
        if not units or units in self._whole:
            return
        self._whole[units] = prompt_id
        if len(units) >= self._size:
            grams = set(_grams(units, self._size))
            for gram in grams:
                self._prompts_with.setdefault(gram, []).append(len(self._ids))
            self._ids.append(prompt_id)
            self._num_grams.append(len(grams))
        elif len(units) >= self._min_size:
            self._short_by_start.setdefault(units[: self._min_size], []).append(units)

    def find(self, units: _Units) -> Overlap | None:
        prompt_id = self._whole.get(units)
        if prompt_id is not None:
            return Overlap(prompt_id, _shown(units[: self._size]), 1.0)
        # The two tests on all n-grams run in C; few rows get past them.
        if self._short_by_start and not self._short_by_start.keys().isdisjoint(_grams(units, self._min_size)):
            for start, gram in enumerate(_grams(units, self._min_size)):
                for short in self._short_by_start.get(gram, ()):
                    if units[start : start + len(short)] == short:
                        return Overlap(self._whole[short], _shown(short), 1.0)
        if not self._prompts_with.keys().isdisjoint(_grams(units, self._size)):
            return self._largest_share(units)
        return None

    def _largest_share(self, units: _Units) -> Overlap | None:
        # Each n-gram once, since a share counts the prompt's different ones; in the text's order, to show the first.
        shared = [gram for gram in dict.fromkeys(_grams(units, self._size)) if gram in self._prompts_with]
        counts = Counter(number for gram in shared for number in self._prompts_with[gram])
        shares = {number: count / self._num_grams[number] for number, count in counts.items()}
        best = min(shares, key=lambda number: (-shares[number], number))
        if shares[best] < self._min_share:
            return None
        first = next(gram for gram in shared if best in self._prompts_with[gram])
        return Overlap(self._ids[best], _shown(first), shares[best])


def _words(text: str) -> list[bytes]:
    """Runs of letters, digits and marks, without case, in NFKC."""
    if text.isascii():
        return text.encode().translate(_ASCII_WORDS).split()
    normalised = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(normalised)).encode("utf-8", "surrogatepass").split()


def _letters(words: Sequence[bytes]) -> str:
    return b"".join(words).decode("utf-8", "surrogatepass")


def _mostly_written_together(words: Sequence[bytes]) -> bool:
    letters = _letters(words)
    return len(_WRITTEN_TOGETHER.findall(letters)) > len(letters) / 2


def _grams(units: _Units, size: int) -> Iterator[Hashable]:
    """Every run of `size` units in order."""
    if isinstance(units, str):
        return (units[start : start + size] for start in range(len(units) - size + 1))
    # The slices differ in length on purpose: the shortest ends with the last whole run.
    return zip(*(units[start:] for start in range(size)), strict=False)


def _shown(gram: Hashable) -> str:
    """An n-gram as readable text."""
    return gram if isinstance(gram, str) else b" ".join(cast("tuple[bytes, ...]", gram)).decode("utf-8", "replace")
