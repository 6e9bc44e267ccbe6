"""A model's report as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from align.report.model.check import WHY, State
from align.report.model.probe import ModelReport

_ORDER: tuple[State, ...] = ("problem", "info", "ok")


def lines_of(report: ModelReport, *, width: int) -> Iterator[str]:
    """The checks, problems first; why and what to do only where something is to be done.

    Args:
        width: columns.
    """
    margin = " " * (len("problem") + 2)
    indent = margin + " " * (max(map(len, WHY)) + 2)

    def wrapped(text: str, start: str) -> list[str]:
        return textwrap.wrap(text, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)

    yield str(report.folder)
    yield ""
    for check in sorted(report.checks, key=lambda check: _ORDER.index(check.state)):
        head = check.state.ljust(len(margin)) + check.name.ljust(len(indent) - len(margin))
        yield from wrapped(check.found, head)
        if check.state == "problem":
            yield from wrapped(WHY[check.name], indent)
        if check.advice:
            yield from wrapped(f"→ {check.advice}", indent)
    if report.skipped:
        yield from textwrap.wrap(f"Not looked at: {', '.join(report.skipped)}.", width)
    yield ""
    counts = {state: sum(check.state == state for check in report.checks) for state in _ORDER}
    verdict = "This model cannot be used as it is" if report.problems else "Nothing stands in the way of using this model"
    problems = "1 problem" if counts["problem"] == 1 else f"{counts['problem']} problems"
    yield f"{verdict}: {problems}, {counts['info']} to know of, {counts['ok']} ok."
