"""Warnings about a data file, each with advice, worst first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from align.data.quality.signal import SIGNALS
from align.report.dataset.facts import Facts, TokenFacts

Level = Literal["bad", "warn", "note"]
_ORDER: dict[Level, int] = {"bad": 0, "warn": 1, "note": 2}

FEW_ROWS = 100
LENGTH_ONLY_ACCURACY = 0.55
"""Length bias is reported if the lower end of the interval of the length-only rule's accuracy exceeds this."""
DUPLICATE_SHARE = 0.05
REPEATED_SHARE = 0.1
OPENING_SHARE = 0.2
SIGNAL_SHARE = 0.01
SIGNAL_TEXTS = 3
BAD_SHARE = 0.05
"""A problem in more rows than this is bad rather than a warning."""


@dataclass(frozen=True)
class Finding:
    """One thing to know before training."""

    level: Level
    sentence: str
    advice: str
    share: float
    """Share of rows concerned, in [0, 1]; it orders findings of one level."""


def findings(facts: Facts) -> list[Finding]:
    """Every finding, worst first."""
    found = [
        *_rows(facts),
        *_overlaps(facts),
        *_pairs(facts),
        *(_tokens(facts.tokens, facts.source.rows_usable) if facts.tokens is not None else ()),
        *_variety(facts),
        *_conflicts(facts),
        *_signals(facts),
    ]
    return sorted(found, key=lambda finding: (_ORDER[finding.level], -finding.share))


def share_text(share: float) -> str:
    """A share in per cent, with two digits where it is small. Never 0 % unless it is zero, nor 100 % unless it is all."""
    percent = 100 * share
    if 0 < percent < 0.01:
        return "< 0.01 %"
    # Rounding would show 100 %, which reads as "all".
    if 99.5 <= percent < 100:
        return "> 99 %"
    digits = f"{percent:.2g}" if percent < 1 else f"{percent:.1f}".removesuffix(".0") if percent < 9.95 else f"{percent:.0f}"
    return f"{digits} %"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _severity(share: float) -> Level:
    return "bad" if share > BAD_SHARE else "warn"


def _rows(facts: Facts) -> Iterator[Finding]:
    source = facts.source
    lost = source.rows_in - source.rows_usable
    if source.cut_short:
        yield Finding(
            "bad",
            "The file could not be read to its end: the number of missing rows is unknown.",
            "Get or write it again.",
            1.0,
        )
    if lost:
        share = lost / source.rows_in
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in source.dropped.items())
        yield Finding(
            _severity(share),
            f"{counted(lost, 'row')} of {source.rows_in:,} ({share_text(share)}) cannot be used: {reasons}.",
            "`align data validate` names each with its line; fix them, or leave them out with on_invalid: drop.",
            share,
        )
    if source.rows_usable < FEW_ROWS:
        yield Finding(
            "note",
            f"There are only {counted(source.rows_usable, 'usable row')}.",
            "Shares and intervals below say little; a model memorises so few rows within a few epochs.",
            0.0,
        )


def _tokens(tokens: TokenFacts, usable: int) -> Iterator[Finding]:
    of = f"of {tokens.sampled:,} {'rows' if tokens.sampled == usable else 'sampled rows'}"
    if tokens.over_limit:
        share = tokens.over_limit / tokens.sampled
        verb = "is" if tokens.over_limit == 1 else "are"
        yield Finding(
            _severity(share),
            f"{tokens.over_limit:,} {of} ({share_text(share)}) {verb} longer than {tokens.limit:,} tokens; "
            f"the longest has {tokens.rows.maximum:,}.",
            "Training refuses such rows and never cuts them: shorten or split them, raise max_tokens if the model can see more, "
            "or leave them out with on_invalid: drop.",
            share,
        )
    if refused := sum(tokens.refused.values()):
        share = refused / tokens.sampled
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in tokens.refused.items())
        yield Finding(
            _severity(share),
            f"{refused:,} {of} ({share_text(share)}) cannot be shown by the template of {tokens.model}: {reasons}.",
            "`align data validate` with the same --model names each of them.",
            share,
        )


def _overlaps(facts: Facts) -> Iterator[Finding]:
    for overlap in facts.overlaps:
        if not overlap.rows:
            continue
        share = overlap.rows / facts.source.rows_usable
        whole = counted(overlap.nearly_whole, "row holds", "rows hold") if overlap.nearly_whole else "none holds"
        yield Finding(
            "bad" if overlap.nearly_whole else "warn",
            f"{counted(overlap.rows, 'row shares', 'rows share')} a long run of words with {overlap.prompts_found:,} of the "
            f"{overlap.prompts:,} prompts of {overlap.evaluation} ({share_text(share)} of the rows); "
            f"{whole} nearly the whole of one.",
            "These prompts cannot measure a model that was trained on such rows. Look at the examples; `align data convert "
            "--decontaminate` leaves such rows out.",
            share,
        )


def _pairs(facts: Facts) -> Iterator[Finding]:
    # The interval's lower end, so that few pairs that happen to differ in length raise no alarm.
    if facts.preference is not None and facts.preference.accuracy.low > LENGTH_ONLY_ACCURACY:
        won, accuracy = facts.preference.longer_won.value, facts.preference.accuracy
        # Length also decides where the shorter side wins, which the accuracy of the rule covers.
        side, share = ("longer", won) if won >= 0.5 else ("shorter", 1 - won)
        yield Finding(
            "bad" if accuracy.value > 0.7 else "warn",
            f"{share_text(share)} of the chosen completions are the {side} ones: a rule that sees nothing but lengths gets "
            f"{accuracy.value:.2f} of the pairs right (0.50 is chance).",
            f"Models trained on these pairs learn to write {side} texts. Use pairs of like length (policy: length_matched), "
            "and look at completion lengths in the comparison.",
            accuracy.value - 0.5,
        )
    if facts.scores is not None and facts.scores.inverted:
        share = facts.scores.inverted / facts.scores.pairs
        yield Finding(
            _severity(share),
            f"In {counted(facts.scores.inverted, 'pair')} ({share_text(share)}) the chosen side has the lower score.",
            "Are the two swapped, or do the scores come from another scorer than the labels? One of them is wrong.",
            share,
        )


def _variety(facts: Facts) -> Iterator[Finding]:
    usable = max(1, facts.source.rows_usable)
    repeated = usable - facts.distinct
    if facts.distinct and repeated / usable > REPEATED_SHARE:
        yield Finding(
            "warn",
            f"{counted(repeated, 'row has', 'rows have')} the same {facts.subject} as an earlier row "
            f"({share_text(repeated / usable)}).",
            "Fine if a prompt has several answers on purpose; otherwise it counts several times in training.",
            repeated / usable,
        )
    near = facts.duplicates.redundant / max(1, facts.sampled)
    if near > DUPLICATE_SHARE:
        yield Finding(
            "warn",
            f"{counted(facts.duplicates.redundant, 'row has', 'rows have')} nearly the same {facts.subject} as an earlier row "
            f"({share_text(near)}, in {counted(facts.duplicates.clusters, 'cluster')}).",
            "Keep one of each, or make sure that none of a cluster is among the evaluation prompts.",
            near,
        )
    if facts.openings.top:
        opening, count = facts.openings.top[0]
        share = count / max(1, facts.openings.texts)
        if share > OPENING_SHARE and facts.openings.texts >= FEW_ROWS:
            yield Finding(
                "note",
                f"{share_text(share)} of the {facts.subject}s begin with “{opening}”.",
                "A model learns the template that instructions were made from; add others if users will ask differently.",
                share,
            )


_CONFLICTS = {
    "conflicting_pairs": (
        "Pairs that occur both ways round: {count:,}.",
        "They cancel each other out; leave out both, or decide which one holds.",
    ),
    "conflicting_completions": (
        "Prompts with several different completions: {count:,}.",
        "Fine if intended; otherwise the model learns a mixture of them.",
    ),
}


def _conflicts(facts: Facts) -> Iterator[Finding]:
    for name, count in facts.source.findings.items():
        kind, _, column = name.partition(":")
        share = count / max(1, facts.source.rows_usable)
        if kind == "conflicting" and column:
            yield Finding(
                "warn",
                f"Equal prompts differ in the unused column {column!r}: {counted(count, 'prompt')}.",
                "If the column is a label, the labels contradict each other.",
                share,
            )
        elif name in _CONFLICTS:
            sentence, advice = _CONFLICTS[name]
            yield Finding("warn" if name == "conflicting_pairs" else "note", sentence.format(count=count), advice, share)


def _signals(facts: Facts) -> Iterator[Finding]:
    for name, count in facts.signals.items():
        share = count / max(1, facts.signal_texts)
        # Both: a share alone would report one text of a small file, a count alone a few texts of a million.
        if share >= SIGNAL_SHARE and count >= SIGNAL_TEXTS:
            signal = SIGNALS[name]
            yield Finding("note", f"Texts that {signal.sentence}: {count:,} ({share_text(share)}).", signal.advice, share)
