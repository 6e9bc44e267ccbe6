"""Computes the numbers of a data file in one pass, in memory that does not grow with the file.

Counts and lengths cover all rows. Near duplicates, openings and the length-only rule compare texts, so they use a sample of
`SAMPLED_ROWS`; languages and signals are slow, so they use `READ_ROWS` of these; tokens use `TOKENIZED_ROWS`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.config.inputs import DataInput
from align.data.evaluation import evaluation_prompts
from align.data.quality.language import language_shares
from align.data.quality.length_baseline import LengthBaseline, length_baseline
from align.data.quality.near_duplicate import near_duplicate_clusters
from align.data.quality.opening import openings
from align.data.quality.overlap import EvaluationIndex
from align.data.quality.signal import signals
from align.data.source import find_source
from align.data.validation import rules_of
from align.data.validation.collection import collect_rows
from align.errors import DataError
from align.records import Preference, Record, place_of, place_word
from align.report.dataset.distribution import Distribution
from align.report.dataset.facts import (
    NEARLY_WHOLE,
    DuplicateCluster,
    Duplicates,
    Facts,
    OverlapExample,
    OverlapFacts,
    ScoreFacts,
    SourceSummary,
)
from align.report.dataset.sample import SmallestKeys, row_key
from align.report.dataset.tokens import TrainingView
from align.rows import DataKind

SAMPLED_ROWS = 200_000
READ_ROWS = 50_000
TOKENIZED_ROWS = 20_000
CLUSTERS_SHOWN = 5
OVERLAPS_SHOWN = 10
OPENINGS_SHOWN = 12


def inspect_source(
    spec: DataInput,
    *,
    against: Sequence[str] = (),
    training: TrainingView | None = None,
    samples: int,
    seed: int,
    locate: Callable[[str], Path] = Path,
) -> Facts:
    """The numbers of a data file. Rows that cannot be used are counted, whatever `on_invalid` says.

    Args:
        spec: which file, what its rows are, how its columns are called.
        against: files of evaluation prompts.
        training: the model whose tokens are counted.
        samples: number of rows to show.
        seed: of the samples.
        locate: turns the path in `spec` into one that can be opened.
    Raises:
        DataError: if a file cannot be read, or has no usable row.
        RecipeError: if there is no such file or column.
    """
    source = find_source(spec, locate)
    evaluations = {name: DataInput(kind="prompts", path=name) for name in against}
    prompts = {name: evaluation_prompts(find_source(each, locate), each) for name, each in evaluations.items()}
    collector = Collector(spec.row_kind, source.shown, seed=seed, samples=samples, against=prompts, view=training)
    with collect_rows(source, rules_of(spec)) as collection:
        for record in collection.records():
            collector.add(record)
        summary = collection.summary
    if not summary.rows_out:
        raise DataError(
            f"{source.shown}: none of its {summary.rows_in:,} rows can be used as {spec.kind}",
            hint="`align data validate` says why. Does --kind fit the file? --columns names columns, such as prompt=question.",
        )
    return collector.finish(
        SourceSummary(
            name=source.shown,
            kind=spec.kind,
            rows_in=summary.rows_in,
            rows_usable=summary.rows_out,
            dropped=dict(summary.dropped.most_common()),
            findings=summary.counts(),
            notes=summary.notes(),
            cut_short=summary.cut_short,
        )
    )


@dataclass(slots=True)
class _Texts:
    """The texts of a sampled row; a pydantic record would take several times the memory."""

    id: str
    place: str
    prompt: str
    """All messages of the prompt, or the text."""
    asked: str
    """The last message of the prompt, or the text."""
    completions: tuple[str, ...]
    scores: tuple[float, float] | None


class Collector:
    """Takes rows one by one; `finish` gives their numbers.

    Args:
        kind: of the rows.
        source: name of the file; a list has elements where other files have lines.
        seed: of the samples.
        samples: number of rows to show.
        against: name → prompts of an evaluation file.
        view: the model whose tokens are counted.
        sampled_rows: rows that are measured beyond their lengths.
        tokenized_rows: rows that are tokenized, at most `sampled_rows`.
    """

    def __init__(
        self,
        kind: DataKind[Any],
        source: str = "",
        *,
        seed: int,
        samples: int,
        against: Mapping[str, Sequence[tuple[str, str]]] | None = None,
        view: TrainingView | None = None,
        sampled_rows: int = SAMPLED_ROWS,
        tokenized_rows: int = TOKENIZED_ROWS,
    ) -> None:
        self._kind, self._source, self._seed, self._view = kind, source, seed, view
        self._characters = {name: Distribution() for name in kind.sides}
        self._words = {name: Distribution() for name in kind.sides}
        self._texts: SmallestKeys[_Texts] = SmallestKeys(sampled_rows)
        # Whole records only for as many rows as are tokenized: a record takes far more memory than its texts.
        self._records: SmallestKeys[Record] = SmallestKeys(max(samples, tokenized_rows if view else 0))
        self._shown: SmallestKeys[Record] = SmallestKeys(samples)
        self._first_texts = array("Q")
        self._scored, self._inverted = 0, 0
        self._overlaps = [_OverlapCounter(name, prompts) for name, prompts in (against or {}).items()]

    def add(self, record: Record) -> None:
        """Add one row to the numbers."""
        row = _texts_of(self._kind, record, self._source)
        sides = (row.prompt, *row.completions)
        for name, text in zip(self._characters, sides, strict=True):
            self._characters[name].add(len(text))
            self._words[name].add(len(text.split()))
        # A separator that texts hardly contain: "ab" + "c" and "a" + "bc" must be different rows.
        key = row_key("\0".join(sides), self._seed)
        # Eight bytes per row instead of the text. The seed is 0, so that the count does not depend on the sample's seed.
        self._first_texts.append(row_key(row.prompt, 0))
        self._texts.offer(key, row)
        self._records.offer(key, record)
        self._shown.offer(key, record)
        if row.scores is not None:
            self._scored += 1
            self._inverted += row.scores[0] < row.scores[1]
        for overlap in self._overlaps:
            # Over all rows, not the sample: a single leaked prompt matters.
            overlap.add(row.place, self._kind.texts(record).values(), "\n".join(sides))

    def finish(self, source: SourceSummary) -> Facts:
        """The numbers of all rows that were added."""
        rows = self._texts.in_file_order()
        read = self._texts.smallest(READ_ROWS)
        signal_counts, signal_texts = _signals(read)
        return Facts(
            source=source,
            kind=self._kind,
            characters=self._characters,
            words=self._words,
            sampled=len(rows),
            distinct=len(np.unique(np.frombuffer(self._first_texts, dtype=np.uint64))) if self._first_texts else 0,
            openings=openings((row.asked for row in rows), num_top=OPENINGS_SHOWN),
            languages=language_shares(row.completions[0] if row.completions else row.asked for row in read),
            read=len(read),
            duplicates=_duplicates(rows),
            signals=signal_counts,
            signal_texts=signal_texts,
            preference=_preference(rows) if self._kind.is_pair else None,
            scores=self._scores(rows),
            overlaps=[overlap.facts() for overlap in self._overlaps],
            tokens=self._view.lengths(self._kind, self._records.in_file_order()) if self._view else None,
            samples=self._shown.in_file_order(),
            seed=self._seed,
        )

    def _scores(self, rows: Sequence[_Texts]) -> ScoreFacts | None:
        pairs = np.array([row.scores for row in rows if row.scores is not None], dtype=np.float64).reshape(-1, 2)
        if not len(pairs):
            return None
        return ScoreFacts(self._scored, self._inverted, pairs[:, 0], pairs[:, 1])


def _texts_of(kind: DataKind[Any], record: Any, source: str) -> _Texts:
    place = record.id if record.line is None else f"{place_word(source)} {record.line:,}"
    if record.file is not None:
        place = place_of(record.file, record.line)
    scores = None
    if isinstance(record, Preference) and record.chosen_score is not None and record.rejected_score is not None:
        scores = (record.chosen_score, record.rejected_score)
    messages, subject = kind.messages(record), kind.subject_text(record)
    asked = messages[-1].content if messages else subject
    return _Texts(record.id, place, subject, asked, tuple(kind.completions_of(record).values()), scores)


def _signals(rows: Sequence[_Texts]) -> tuple[dict[str, int], int]:
    """Number of texts by signal, and of all texts searched: the completions, or the prompts of rows without completions."""
    counts: Counter[str] = Counter()
    searched = 0
    for row in rows:
        for text in row.completions or (row.prompt,):
            searched += 1
            shown = signals(text, prompt=row.asked if row.completions else None)
            counts.update(name for name, is_shown in shown.items() if is_shown)
    return dict(counts.most_common()), searched


def _duplicates(rows: Sequence[_Texts]) -> Duplicates:
    found = near_duplicate_clusters(row.prompt for row in rows)
    return Duplicates(
        clusters=len(found.clusters),
        redundant=len(found.redundant),
        largest=tuple(
            DuplicateCluster(len(cluster.rows), cluster.same_text, _examples(rows, cluster.rows))
            for cluster in found.clusters[:CLUSTERS_SHOWN]
        ),
    )


def _examples(rows: Sequence[_Texts], members: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """The first row, and the next one with another text, or else the second."""
    first = rows[members[0]]
    other = next((rows[member] for member in members[1:] if rows[member].prompt != first.prompt), rows[members[1]])
    return ((first.place, first.prompt), (other.place, other.prompt))


def _preference(rows: Sequence[_Texts]) -> LengthBaseline | None:
    """The pairs of one prompt are in one fold, so the prompt stands for its id."""
    return length_baseline((row.prompt, *(len(text) for text in row.completions)) for row in rows)  # type: ignore[misc]


class _OverlapCounter:
    """Compares rows with the prompts of one evaluation file."""

    def __init__(self, name: str, prompts: Sequence[tuple[str, str]]) -> None:
        self._name = name
        self._num_prompts = len(prompts)
        self._index = EvaluationIndex(prompts)
        self._prompts = dict(prompts)
        self._rows = 0
        self._nearly_whole = 0
        self._found: set[str] = set()
        self._largest: SmallestKeys[OverlapExample] = SmallestKeys(OVERLAPS_SHOWN)

    def add(self, place: str, texts: Iterable[str], text: str) -> None:
        overlap = self._index.overlap(*texts)
        if overlap is None:
            return
        self._rows += 1
        self._nearly_whole += overlap.share >= NEARLY_WHOLE
        self._found.add(overlap.prompt_id)
        example = OverlapExample(place, text, overlap.prompt_id, self._prompts[overlap.prompt_id], overlap)
        self._largest.offer(-overlap.share, example)

    def facts(self) -> OverlapFacts:
        examples = tuple(self._largest.smallest(OVERLAPS_SHOWN))
        return OverlapFacts(self._name, self._num_prompts, self._rows, self._nearly_whole, len(self._found), examples)
