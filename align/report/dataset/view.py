"""The content that terminal and page share, as texts: tables, bars and samples. The two only lay it out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from align.data.quality.length_baseline import Share
from align.data.quality.signal import SIGNALS
from align.data.template_problems import TemplateProblem
from align.records import Record, place_word
from align.report.dataset.distribution import Distribution
from align.report.dataset.facts import Facts
from align.report.dataset.finding import counted, share_text
from align.report.dataset.tokens import Piece, TokenSequence, TrainingView
from align.report.wording import number
from align.rows import DataKind
from align.visible import shortened

LANGUAGES_SHOWN = 8
PIECES_SHOWN = 600
"""Tokens of a prompt, and of a completion, that the page shows: of a longer one the beginning and the end."""
CHARACTERS_SHOWN = 4_000


class Bar(NamedTuple):
    """A label with a count and a share of a whole."""

    label: str
    tally: str
    """How many; empty where only the share is known."""
    share: float
    """In [0, 1]: the length of the bar."""


@dataclass(frozen=True)
class SampleView:
    """One row to be looked at."""

    id: str
    place: str
    parts: list[TokenSequence]
    """What training sees; without a model, or where its template refuses the row, the texts by role or field."""
    refused: str
    """Why the model's template cannot show it; empty where it can, or where there is no model."""


def length_groups(facts: Facts) -> dict[str, dict[str, Distribution]]:
    """Every text of a row by its name, in characters, words and, with a model, tokens."""
    groups = {name: {"characters": facts.characters[name], "words": facts.words[name]} for name in facts.characters}
    if facts.tokens is not None:
        for name, lengths in facts.tokens.sides.items():
            groups[name]["tokens"] = lengths
        # With a single text, the whole row would repeat its line.
        if len(facts.tokens.sides) > 1:
            groups["whole row"] = {"tokens": facts.tokens.rows}
    return groups


def language_bars(facts: Facts) -> list[Bar]:
    """Languages by share; rare ones are counted together."""
    # By code where shares are equal, so that the same file gives the same report.
    shares = sorted(facts.languages.items(), key=lambda item: (-item[1], item[0]))
    bars = [Bar("unknown (und)" if code == "und" else code, "", share) for code, share in shares[:LANGUAGES_SHOWN]]
    rest = sum(share for _, share in shares[LANGUAGES_SHOWN:])
    return [*bars, *([Bar(counted(len(shares) - LANGUAGES_SHOWN, "other"), "", rest)] if rest else [])]


def opening_bars(facts: Facts) -> list[Bar]:
    """How the texts begin, most frequent first."""
    texts = max(1, facts.openings.texts)
    # An opening that occurs once is not frequent, even where no other occurs more often.
    return [Bar(opening, f"{count:,}", count / texts) for opening, count in facts.openings.top if count > 1]


def signal_bars(facts: Facts) -> list[Bar]:
    """Quality signals, most frequent first."""
    texts = max(1, facts.signal_texts)
    return [Bar(SIGNALS[name].sentence, f"{count:,}", count / texts) for name, count in facts.signals.items()]


def count_bars(counts: Mapping[str, int], whole: int) -> list[Bar]:
    """Counts by name as bars, in the order given."""
    return [Bar(name, f"{count:,}", count / max(1, whole)) for name, count in counts.items()]


def variety_facts(facts: Facts) -> dict[str, str]:
    """How different the rows are from each other: numbers by what they count."""
    usable, sampled, subject = max(1, facts.source.rows_usable), max(1, facts.sampled), facts.subject
    near, openings = facts.duplicates, facts.openings
    redundant = f"{near.redundant:,} ({share_text(near.redundant / sampled)}), in {counted(near.clusters, 'cluster')}"
    return {
        f"different {subject}s": f"{facts.distinct:,} ({share_text(facts.distinct / usable)})",
        "different openings (3 words)": f"{openings.distinct:,} ({share_text(openings.distinct / max(1, openings.texts))})",
        "nearly the same as an earlier one": redundant,
    }


def preference_facts(facts: Facts) -> dict[str, str]:
    """What length alone says about the pairs, and the scores that came with them: numbers by what they say."""
    found: dict[str, str] = {}
    if (baseline := facts.preference) is not None:
        found = {
            "the longer side was chosen": _share_with_interval(baseline.longer_won),
            "both sides equally long": f"{baseline.equal_length:,}",
            "right by length alone": f"{_share_with_interval(baseline.accuracy)}, cross-validated",
        }
    if (scores := facts.scores) is not None:
        margins = scores.chosen - scores.rejected
        found |= {
            "pairs with both scores": f"{scores.pairs:,}",
            "mean score, chosen and rejected": f"{number(scores.chosen.mean(), 3)} and {number(scores.rejected.mean(), 3)}",
            "mean margin": f"{number(margins.mean(), 3)}, smallest {number(margins.min(), 3)}",
            "chosen has the lower score": f"{scores.inverted:,} ({share_text(scores.inverted / max(1, scores.pairs))})",
        }
    return found


def _share_with_interval(share: Share) -> str:
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def measured_on(facts: Facts) -> str:
    """Which rows were measured, where not all of them; else empty."""
    parts = []
    if facts.sampled < facts.source.rows_usable:
        parts.append(
            f"Openings, near duplicates, the length-only rule and scores are measured on {facts.sampled:,} rows drawn by hash "
            f"(seed {facts.seed}); two that are nearly the same are found only where both were drawn, so their share in the "
            "whole file is higher."
        )
    if facts.read < facts.source.rows_usable:
        parts.append(f"Languages and signals are those of {facts.read:,} rows drawn the same way.")
    if facts.tokens is not None and facts.tokens.sampled < facts.source.rows_usable:
        parts.append(f"Tokens are counted on {facts.tokens.sampled:,} rows drawn the same way.")
    return " ".join(parts)


def sample_views(facts: Facts, view: TrainingView | None) -> list[SampleView]:
    """The samples, through the model's template where there is a model, else by role."""
    return [_sample_view(facts.kind, record, facts.source.name, view) for record in facts.samples]


def _sample_view(kind: DataKind[Any], record: Record, source: str, view: TrainingView | None) -> SampleView:
    place = record.id if record.line is None else f"{record.file or place_word(source)} {record.line:,}"
    if view is None:
        return SampleView(record.id, place, list(_plain_parts(kind, record)), "")
    try:
        sequences = view.sequences(kind, record)
    # A row that the template refuses is shown by role, so that the reader can see what is wrong with it.
    except TemplateProblem as problem:
        return SampleView(record.id, place, list(_plain_parts(kind, record)), str(problem))
    return SampleView(record.id, place, sequences, "")


def length_text(sequence: TokenSequence) -> str:
    """The length in words; empty for a plain text."""
    trained = f", {sequence.trained_tokens:,} of them trained on" if sequence.trained_tokens else ""
    return f"{counted(sequence.tokens, 'token')}{trained}" if sequence.tokens else ""


def middle_left_out(pieces: Sequence[Piece], shown: int = PIECES_SHOWN) -> list[Piece]:
    """The pieces without the middle of a long prompt and of a long completion.

    The end of the prompt and both ends of the completion always stay.

    Args:
        shown: most pieces of either.
    """
    short: list[Piece] = []
    # Untrained pieces are the prompt, trained ones the completion: each is cut by itself.
    for trained, run in itertools.groupby(pieces, key=lambda piece: piece.trained):
        run_pieces = list(run)
        if len(run_pieces) > shown:
            head, tail = run_pieces[: shown // 2], run_pieces[-(shown - shown // 2) :]
            hidden = sum(piece.tokens for piece in run_pieces[len(head) : -len(tail)])
            run_pieces = [*head, Piece(f" … {hidden:,} tokens not shown … ", 0, trained, special=False), *tail]
        short += run_pieces
    return short


def _plain_parts(kind: DataKind[Any], record: Any) -> Iterable[TokenSequence]:
    for message in kind.messages(record):
        if message.tools:
            yield _plain("tools", json.dumps(message.tools, ensure_ascii=False))
        yield _plain(message.role, message.text)
    completions = kind.completions_of(record)
    for name in kind.contents if kind.has_prompt else ("text",):
        if (value := completions.get(name, getattr(record, name))) is not None:
            yield _plain(name, str(value))


def _plain(name: str, text: str) -> TokenSequence:
    shown = shortened(text, CHARACTERS_SHOWN)
    return TokenSequence(name, [Piece(shown, 0, trained=False, special=False)], 0, 0)
