"""The report on a data file in the terminal: findings first, then tables and bars. It fits 80 columns, also with Korean texts."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Group, RenderableType, group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from align.report.dataset import view
from align.report.dataset.distribution import Distribution, shared_edges
from align.report.dataset.facts import Facts
from align.report.dataset.finding import Finding, counted, findings, share_text
from align.report.dataset.tokens import TokenSequence, TrainingView
from align.report.dataset.view import Bar, SampleView
from align.visible import one_line, shortened, visible

SAMPLES_SHOWN = 3
SAMPLE_CHARACTERS = 600
PIECES_SHOWN = 160
EXAMPLE_CELLS = 66
OPENINGS_SHOWN = 6
CLUSTERS_SHOWN = 3
OVERLAPS_SHOWN = 3
BAR_CELLS = 20
LABEL_CELLS = 42
_LEVELS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MARKS = {"bad": ("✗", "bold red"), "warn": ("!", "bold magenta"), "note": ("·", "dim")}
TRAINED_BEGINS, TRAINED_ENDS = "⟦", "⟧"


@group()
def dataset_report(facts: Facts, training: TrainingView | None) -> Iterator[RenderableType]:
    """The report, for `rich.console.Console.print`.

    Args:
        facts: the numbers. Texts in them are untrusted; their control characters become visible signs.
        training: renders the samples with their loss mask; None shows them by role.
    """
    source = facts.source
    usable = f"{source.kind}, {counted(source.rows_in, 'row')}, {source.rows_usable:,} usable"
    yield Text.assemble((visible(source.name), "bold"), f"  {usable}")
    yield from _section("To know before training", _findings(findings(facts)))
    if note := view.measured_on(facts):
        yield Padding(Text(note, style="dim"), (0, 0, 0, 2))
    if source.dropped:
        yield from _section("Rows that cannot be used", _bars(view.count_bars(source.dropped, source.rows_in)))
    if source.notes:
        yield from _section("What the check found", Group(*(Text(visible(note)) for note in source.notes)))
    yield from _section("Lengths", _lengths(facts))
    if preference := view.preference_facts(facts):
        yield from _section("Preferences", _facts(preference))
    yield from _section("Variety", _facts(view.variety_facts(facts)))
    yield from _section("Languages", _bars(view.language_bars(facts)))
    if openings := view.opening_bars(facts):
        yield from _section("Most frequent openings", _bars(openings[:OPENINGS_SHOWN]))
    if facts.duplicates.largest:
        yield from _section("Largest clusters of rows that are nearly the same", _clusters(facts))
    if facts.signals:
        yield from _section(f"Signals of quality, over {facts.signal_texts:,} texts", _bars(view.signal_bars(facts)))
    if facts.overlaps:
        yield from _section("Overlap with evaluation prompts", _overlaps(facts))
    yield from _samples(view.sample_views(facts, training), with_tokens=training is not None)


def _samples(samples: Sequence[SampleView], *, with_tokens: bool) -> Iterator[RenderableType]:
    if not samples:
        return
    yield from _section("Samples", Group(*(_sample(sample) for sample in samples[:SAMPLES_SHOWN])))
    note = f"{TRAINED_BEGINS}…{TRAINED_ENDS} is what the loss is taken on. " if with_tokens else ""
    if len(samples) > SAMPLES_SHOWN:
        note += f"{counted(len(samples) - SAMPLES_SHOWN, 'more sample')} and drawings: --html report.html"
    if note:
        yield Padding(Text(note, style="dim"), (0, 0, 0, 2))


def _section(title: str, content: RenderableType) -> Iterator[RenderableType]:
    yield Text(f"\n{title}", style="bold")
    yield Padding(content, (0, 0, 0, 2))


def _findings(found: Sequence[Finding]) -> RenderableType:
    if not found:
        return Text("Nothing stands out in what is measured here; read the samples.", style="green")
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(overflow="fold")
    for finding in found:
        mark, style = _MARKS[finding.level]
        table.add_row(Text(mark, style=style), Text(visible(finding.sentence)))
        table.add_row("", Text(f"→ {finding.advice}", style="dim"))
    return table


def _lengths(facts: Facts) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False)
    for header in ("text", "unit"):
        table.add_column(header)
    for header in ("median", "95 %", "longest"):
        table.add_column(header, justify="right")
    table.add_column("from 0 on")
    groups = view.length_groups(facts)
    for name, units in groups.items():
        for index, (unit, lengths) in enumerate(units.items()):
            # One axis for all texts of a unit: prompts and completions can be compared at a glance.
            same_unit = [other[unit] for other in groups.values() if unit in other]
            numbers = (f"{value:,}" for value in (lengths.percentile(50), lengths.percentile(95), lengths.maximum))
            table.add_row("" if index else name, unit, *numbers, Text(_sparkline(lengths, same_unit)))
    return table


def _sparkline(lengths: Distribution, same_unit: Iterable[Distribution]) -> str:
    """One character per bin. All texts with the same unit share an axis, and a bin with any row is never blank."""
    counts = lengths.histogram(shared_edges(same_unit, BAR_CELLS))
    # Rounded up, so that a single row is seen beside a bin of thousands.
    heights = np.ceil(counts / max(1.0, counts.max(initial=0.0)) * len(_LEVELS)).astype(int)
    return "".join(_LEVELS[height - 1] if height else " " for height in heights)


def _bars(bars: Sequence[Bar]) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for bar in bars:
        table.add_row(one_line(bar.label, LABEL_CELLS), bar.tally, share_text(bar.share), Text(_block(bar.share)))
    return table


def _block(share: float) -> str:
    # At least one eighth: what occurs at all must be seen.
    eighths = max(1, round(8 * BAR_CELLS * share))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _facts(facts: Mapping[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in facts.items():
        table.add_row(name, Text(text, style="bold"))
    return table


def _clusters(facts: Facts) -> RenderableType:
    lines = []
    for cluster in facts.duplicates.largest[:CLUSTERS_SHOWN]:
        lines.append(Text(counted(cluster.size, "row")))
        (first_place, first), (other_place, other) = cluster.examples
        lines.append(Text(f"  {visible(first_place)}: {one_line(first, EXAMPLE_CELLS)}", style="dim"))
        lines.append(Text(f"  {visible(other_place)}: {one_line(_where_it_differs(first, other), EXAMPLE_CELLS)}", style="dim"))
    return Group(*lines)


def _where_it_differs(text: str, other: str) -> str:
    """The other text; where the first difference would be cut off, it begins shortly before that difference."""
    same = len(os.path.commonprefix([text, other]))
    return other if same < EXAMPLE_CELLS // 2 else "…" + other[same - EXAMPLE_CELLS // 3 :]


def _overlaps(facts: Facts) -> RenderableType:
    lines = []
    for overlap in facts.overlaps:
        of = f"{overlap.prompts_found:,} of {overlap.prompts:,} prompts"
        lines.append(Text(f"{visible(overlap.evaluation)}: {counted(overlap.rows, 'row')} overlap {of}"))
        for example in overlap.examples[:OVERLAPS_SHOWN]:
            note = f"  {visible(example.row)} has {share_text(example.found.share)} of prompt {visible(example.prompt)}: "
            lines.append(Text(note + f"“{one_line(example.found.ngram, EXAMPLE_CELLS)}”", style="dim"))
    return Group(*lines)


def _sample(sample: SampleView) -> RenderableType:
    lines = [Text(f"{visible(sample.place)}  {visible(sample.id)}", style="bold")]
    if sample.refused:
        lines.append(Text(f"cannot be trained on: {one_line(sample.refused, 200)}", style="red"))
    for part in sample.parts:
        length = view.length_text(part)
        lines.append(Text(f"{part.name}{': ' + length if length else ''}", style="bold dim"))
        lines.append(_part(part))
    return Group(*lines, Text(""))


def _part(part: TokenSequence) -> Text:
    """The tokens in a row. The part that the loss is taken on is in brackets, for terminals without colours."""
    if not part.tokens:
        return Text("\n").join(Text(shortened(visible(piece.text), SAMPLE_CHARACTERS)) for piece in part.pieces)
    text = Text()
    for trained, pieces in itertools.groupby(view.middle_left_out(part.pieces, PIECES_SHOWN), key=lambda piece: piece.trained):
        text.append(TRAINED_BEGINS if trained else "", style="bold")
        for piece in pieces:
            style = ("green" if trained else "dim") + (" underline" if piece.special else "")
            text.append(visible(piece.text).replace("\n", "⏎\n"), style=style)
        text.append(TRAINED_ENDS if trained else "", style="bold")
    return text
