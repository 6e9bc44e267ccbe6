"""Signs that a model gave something up for its score: they are named, so that a higher mean is not taken for better answers.

A model that learned to please a scorer may say the same to everybody, or stop doing what another rule asks for. Each sign
compares a model with the baseline on the same prompts.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from align.config.base import StrictModel
from align.data.quality.repetition import bare_sentences, repeated_share

VARIETY_FALL = 0.25
"""Share of the baseline's distinct word pairs, or of its distinct answers, whose loss is a red flag."""
SENTENCE_SHARE = 0.15
"""Share of the answers with one and the same sentence that is a red flag, where it is also twice the baseline's."""
RULE_FALL = 0.1
"""Fall of a rule's pass rate that is a red flag, where it is also a quarter of the baseline's."""


REPETITION = 0.1
"""Share of an answer that repeats what it said before, in the mean, that is a red flag, where it is also twice the baseline's."""
REPEATED_WORDS = 4
"""Words of the n-grams whose repetition within an answer counts."""


class FrequentSentence(StrictModel):
    """The sentence that occurs in the most answers."""

    text: str
    """As the first of these answers has it."""
    share: float = Field(ge=0, le=1)
    """Share of the answers that contain it."""


class RedFlag(StrictModel):
    """One sign that a model gave something up."""

    kind: Literal["distinct_2", "distinct_answers", "frequent_sentence", "rule", "compression", "repetition", "kl", "update_kl"]
    """What was compared."""
    detail: str = ""
    """The sentence, or scorer and rule."""
    value: float
    """Of the model."""
    baseline: float | None
    """Of the baseline; null for kl, which is measured against it, and for update_kl, which is of the training."""


def distinct_share(completions: Iterable[str]) -> float | None:
    """Share of distinct texts among the completions, outer white space aside; None where there are none."""
    texts = [completion.strip() for completion in completions]
    return len(set(texts)) / len(texts) if texts else None


def frequent_sentence(completions: Iterable[str]) -> FrequentSentence | None:
    """The sentence that most completions contain, each counted once; None where no completion has a word."""
    counts: Counter[str] = Counter()
    written: dict[str, str] = {}
    total = 0
    for completion in completions:
        total += 1
        sentences = bare_sentences(completion)
        counts.update(set(sentences))
        for bare, sentence in sentences.items():
            written.setdefault(bare, sentence)
    if not counts:
        return None
    # Of sentences that are equally frequent the first in the alphabet, so that the result does not depend on an order.
    bare, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return FrequentSentence(text=written[bare], share=count / total)


def compression_ratio(completions: Iterable[str]) -> float | None:
    """Bytes of all texts over their bytes after zlib's deflate: higher where they resemble each other; None where there are none.

    Shaib et al. 2024, "Standardizing the measurement of text diversity", who find it to agree with self-BLEU at a fraction of
    its cost. It rises a little with the amount of text, so compare it between models that answered the same prompts.
    """
    text = "\n".join(completions).encode("utf-8", "surrogatepass")
    return len(text) / len(zlib.compress(text, 9)) if text.strip() else None


def repetition(completions: Iterable[str]) -> float | None:
    """Share of an answer that repeats what it said before, by word n-grams or sentences, in the mean; None without answers."""
    shares = [repeated_share(completion, ngram_words=REPEATED_WORDS) for completion in completions]
    return sum(shares) / len(shares) if shares else None


def repeats_itself(value: float | None, before: float | None) -> bool:
    """Whether the answers repeat themselves so much that a person would notice."""
    return value is not None and value >= max(REPETITION, 2 * (before or 0.0))


def fell(value: float | None, before: float | None) -> bool:
    """Whether a measure of variety lost `VARIETY_FALL` of itself or more."""
    return value is not None and before is not None and value <= (1 - VARIETY_FALL) * before


def rule_fell(value: float, before: float) -> bool:
    """Whether a rule's pass rate fell by `RULE_FALL` and by a quarter of itself."""
    return before - value >= RULE_FALL and fell(value, before)


def said_too_often(sentence: FrequentSentence | None, before: FrequentSentence | None) -> bool:
    """Whether one sentence is in so many answers that a person would notice."""
    usual = 0.0 if before is None else before.share
    return sentence is not None and sentence.share >= max(SENTENCE_SHARE, 2 * usual)
