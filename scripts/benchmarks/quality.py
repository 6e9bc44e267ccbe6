#!/usr/bin/env python3
"""How many texts a second the measures of `align.data.quality` take, on texts that are made here.

    .venv/bin/python scripts/benchmarks/quality.py [ROWS]

Prints one JSON line per measure: rows per second of one core's time, so that other programs on the machine count little.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from align.data.quality.language import language_of
from align.data.quality.length_baseline import length_baseline
from align.data.quality.near_duplicate import near_duplicate_clusters
from align.data.quality.opening import openings
from align.data.quality.overlap import EvaluationIndex
from align.data.quality.signal import signals

SYLLABLES = {
    "english": ["ba", "ter", "in", "the", "con", "ly", "mo", "re", "an", "st", "er", "pla"],
    "korean": ["가", "는", "을", "다", "고", "서", "한", "이", "지", "로", "요", "해"],
}
WORDS_PER_TEXT = {"english": 45, "korean": 20}
TEMPLATE = "Write a short and friendly poem for my class at school, in which you speak of the following three things: "


def main() -> int:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    for language in SYLLABLES:
        texts = made_texts(language, rows, random.Random(17))
        index = EvaluationIndex([(str(number), text) for number, text in enumerate(texts[::20])])
        fresh = made_texts(language, rows, random.Random(18))
        report("overlap", language, fresh, partial(each, index.overlap))
        report("near_duplicate_clusters", language, fresh, near_duplicate_clusters)
        report("language_of", language, fresh, partial(each, language_of))
        report("signals", language, fresh, partial(each, signals))
        report("openings", language, fresh, openings)
        report("length_baseline", language, fresh, _baseline)
    words = made_texts("english", 6 * rows, random.Random(19))
    templated = [TEMPLATE + " ".join(text[:8] for text in words[6 * row : 6 * row + 6]) for row in range(rows)]
    report("near_duplicate_clusters", "english, one template", templated, near_duplicate_clusters)
    return 0


def each(measure: Callable[[str], object], texts: Sequence[str]) -> list[object]:
    """A measure of single texts, for many."""
    return [measure(text) for text in texts]


def made_texts(language: str, rows: int, source: random.Random) -> list[str]:
    """Texts of made-up words of one to four syllables."""
    words = ["".join(source.choices(SYLLABLES[language], k=source.randint(1, 4))) for _ in range(5000)]
    return [" ".join(source.choices(words, k=WORDS_PER_TEXT[language])) for _ in range(rows)]


def _baseline(texts: Sequence[str]) -> object:
    lengths = [len(text) for text in texts]
    return length_baseline(zip(texts, lengths, reversed(lengths), strict=True))


def report(measure: str, language: str, texts: Sequence[str], run: Callable[[Sequence[str]], object]) -> None:
    run(texts[:10])  # what is loaded once is not counted
    start = time.process_time()
    run(texts)
    seconds = time.process_time() - start
    characters = sum(map(len, texts)) / len(texts)
    line = {
        "measure": measure,
        "texts": language,
        "mean_characters": round(characters),
        "rows_per_second": int(len(texts) / seconds),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
