"""The numbers of a data file as plain values, from which the terminal, the page and `--json` are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from align.data.quality.length_baseline import LengthBaseline
from align.data.quality.opening import Openings
from align.data.quality.overlap import Overlap
from align.records import Record
from align.report.dataset.distribution import Distribution
from align.report.statistics import FloatArray
from align.rows import DataKind

NEARLY_WHOLE = 0.8
"""A row that holds at least this share of an evaluation prompt's n-grams counts as the same question."""


@dataclass(frozen=True)
class SourceSummary:
    """The result of reading and checking the file."""

    name: str
    """Its name, as the user wrote it."""
    kind: str
    rows_in: int
    rows_usable: int
    dropped: Mapping[str, int]
    """Rows that cannot be used, by `drop_reason`; rows_in = rows_usable + their sum."""
    findings: Mapping[str, int]
    """Number of findings about the usable rows, by name."""
    notes: Sequence[str]
    """The findings as sentences."""
    cut_short: bool = False
    """Whether the file could not be read to its end."""


@dataclass(frozen=True)
class TokenFacts:
    """Lengths in tokens, as in training: the template and the end-of-sequence token count."""

    model: str
    limit: int
    """Most tokens of prompt and longer completion together: --max-tokens, or the model's context."""
    sides: dict[str, Distribution]
    """By text of the row, over the rows that the template can render."""
    rows: Distribution
    """Prompt and longer completion together."""
    refused: dict[str, int]
    """Rows that the template or the tokenizer cannot render, by `drop_reason`."""
    sampled: int
    """Rows that were tokenized."""

    @property
    def over_limit(self) -> int:
        """Rows longer than `limit`, of those tokenized."""
        return self.rows.over(self.limit)

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "limit": self.limit,
            "sampled": self.sampled,
            "over_limit": self.over_limit,
            "refused": self.refused,
            "row": self.rows.as_json(),
            **{name: lengths.as_json() for name, lengths in self.sides.items()},
        }


@dataclass(frozen=True)
class DuplicateCluster:
    """Rows whose texts are nearly the same."""

    size: int
    same_text: int
    """How many of the other rows differ from the first only in case, Unicode form and white space."""
    examples: tuple[tuple[str, str], ...]
    """(row, text) of the first row, and of the next one that differs, or else of the second."""


@dataclass(frozen=True)
class Duplicates:
    """Near-duplicate clusters of the rows' first texts, among the sampled rows."""

    clusters: int
    redundant: int
    """Rows that would be dropped if each cluster kept one."""
    largest: tuple[DuplicateCluster, ...]


@dataclass(frozen=True)
class OverlapExample:
    """A row beside the evaluation prompt that it overlaps most."""

    row: str
    text: str
    prompt: str
    prompt_text: str
    found: Overlap


@dataclass(frozen=True)
class OverlapFacts:
    """Rows that share text with prompts of one evaluation file; all rows are compared, not a sample."""

    evaluation: str
    prompts: int
    rows: int
    """Rows that have a long run of words in common with a prompt."""
    nearly_whole: int
    """Of those, rows that hold at least `NEARLY_WHOLE` of a prompt."""
    prompts_found: int
    examples: tuple[OverlapExample, ...]
    """Largest share first."""


@dataclass(frozen=True)
class ScoreFacts:
    """Scores that came with the pairs."""

    pairs: int
    """Pairs that have both scores."""
    inverted: int
    """Pairs whose chosen side has the lower score."""
    chosen: FloatArray
    rejected: FloatArray
    """[sampled pairs] each, in file order."""


@dataclass(frozen=True)
class Facts:
    """What is in a data file."""

    source: SourceSummary
    kind: DataKind[Any]
    characters: dict[str, Distribution]
    """By text of the row, over all rows."""
    words: dict[str, Distribution]
    """The same, split at white space."""
    sampled: int
    """Rows in the sample for everything but lengths; all rows, except in large files."""
    read: int
    """Of those, rows whose texts were read for languages and signals."""
    distinct: int
    """Different first texts (prompts), over all rows."""
    openings: Openings
    languages: dict[str, float]
    """Share of the rows read, by the language of their completion (for pairs the chosen one, without completions the prompt)."""
    duplicates: Duplicates
    signals: dict[str, int]
    """Completions (else prompts or texts) of the rows read that show a signal, most frequent first."""
    signal_texts: int
    """Texts that were searched for signals."""
    preference: LengthBaseline | None
    """Only for preferences."""
    scores: ScoreFacts | None
    overlaps: list[OverlapFacts]
    tokens: TokenFacts | None
    """None without a model."""
    samples: list[Record] = field(repr=False)
    """Sample rows to show, in file order."""
    seed: int

    @property
    def subject(self) -> str:
        """Name of the first text of a row."""
        return self.kind.subject

    def as_json(self) -> dict[str, Any]:
        """All values as JSON, without the rendering of the samples."""
        return {
            "source": asdict(self.source),
            "seed": self.seed,
            "sampled": self.sampled,
            "read": self.read,
            "characters": {name: lengths.as_json() for name, lengths in self.characters.items()},
            "words": {name: lengths.as_json() for name, lengths in self.words.items()},
            "tokens": None if self.tokens is None else self.tokens.as_json(),
            "distinct_texts": self.distinct,
            "openings": {
                "distinct": self.openings.distinct,
                "top": [{"opening": opening, "count": count} for opening, count in self.openings.top],
            },
            "languages": self.languages,
            "near_duplicates": asdict(self.duplicates),
            "signals": self.signals,
            "signal_texts": self.signal_texts,
            "preference": None if self.preference is None else _baseline_json(self.preference),
            "scores": None if self.scores is None else _scores_json(self.scores),
            "overlaps": [asdict(one) for one in self.overlaps],
            "samples": [record.model_dump(mode="json", exclude_none=True) for record in self.samples],
        }


def _baseline_json(baseline: LengthBaseline) -> dict[str, Any]:
    return {
        "pairs": baseline.pairs,
        "equal_length": baseline.equal_length,
        "longer_won": baseline.longer_won._asdict(),
        "length_only_accuracy": baseline.accuracy._asdict(),
    }


def _scores_json(scores: ScoreFacts) -> dict[str, Any]:
    margins = scores.chosen - scores.rejected
    return {
        "pairs": scores.pairs,
        "inverted": scores.inverted,
        "mean_chosen": float(scores.chosen.mean()),
        "mean_rejected": float(scores.rejected.mean()),
        "mean_margin": float(margins.mean()),
    }
