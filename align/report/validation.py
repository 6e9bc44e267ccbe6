"""The output of `align data validate`: each problem as it is found, then a summary by kind of problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align.config.row_checks import ROW_CHECKS, STATISTICS
from align.data.validation.summary import Problem, Summary, Tally, catalogue_name, shown_places
from align.records import place_word
from align.visible import visible

if TYPE_CHECKING:
    from rich.table import Table

LABEL_ADVICE = "trim it: as labels such values look equal and are not"


def problem_line(problem: Problem) -> str:
    """`file:line: field: message → what to do`. Control characters become visible signs."""
    left = "" if problem.action == "error" else " (left out)"
    return visible(f"{problem.render()}{left} → {problem.advice}")


def problem_json(problem: Problem) -> dict[str, Any]:
    """One problem for `--json`."""
    return {
        "file": problem.file,
        "line": problem.line or None,
        "element": problem.element or None,
        "pointer": problem.pointer or None,
        "row": problem.row_number,
        "id": problem.row_id,
        "field": problem.field,
        "reason": problem.reason,
        "message": problem.message,
        "action": problem.action,
        "advice": problem.advice,
    }


def summary_json(summary: Summary) -> dict[str, Any]:
    """Everything but the problems, for `--json`."""
    return {
        "source": summary.shown,
        "kind": summary.kind.name,
        "usable": summary.usable,
        "rows_in": summary.rows_in,
        "rows_out": summary.rows_out,
        "errors": summary.errors,
        "dropped": dict(summary.dropped.most_common()),
        "checks": [
            {
                "name": name,
                "count": tally.count,
                "action": action,
                "meaning": meaning,
                "advice": advice,
                "places": [{"file": file, place_word(file): number} for file, number in tally.places],
            }
            for name, tally, action, meaning, advice in _found(summary)
        ],
        "columns_unused": list(summary.unused),
        "notes": summary.notes(),
        "cut_short": summary.cut_short,
        "near_duplicates_searched": summary.near_duplicates,
    }


def summary_table(summary: Summary) -> Table | None:
    """Every kind of problem and finding with its count, action, places and advice; None without any."""
    from rich import box
    from rich.table import Table

    found = _found(summary)
    if not found:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("found", overflow="fold")
    table.add_column("times", justify="right")
    table.add_column("action")
    table.add_column("what it is, where, and what to do", overflow="fold", ratio=1)
    for name, tally, action, meaning, advice in found:
        where = shown_places(tally, single_file=len(summary.files) < 2) if tally.places else ""
        description = "; ".join(part for part in (meaning, where) if part)
        table.add_row(visible(name), f"{tally.count:,}", action, visible(description + (f" → {advice}" if advice else "")))
    return table


def closing_lines(summary: Summary) -> list[str]:
    """The result in words."""
    bad = summary.dropped.total()
    lines = [
        f"{summary.shown}: {summary.rows_in:,} rows of {summary.kind.name}, {summary.rows_out:,} can be used, {bad:,} cannot"
    ]
    lines += summary.reading.notes(summary.kind)
    lines += summary.unused_note()
    if not summary.near_duplicates:
        lines.append("near duplicates were not searched for: --near-duplicates does it, in memory and minutes")
    if summary.cut_short:
        lines.append("a file cannot be read to its end: rows may be missing")
    elif summary.dropped and all(ROW_CHECKS[catalogue_name(name)].found == "model" for name in summary.dropped):
        if not summary.rows_out:
            lines.append("no row can be used with this model; the rows fit their kind")
    elif not summary.rows_out:
        lines.append("no row can be used: does --kind fit the file? --columns maps fields to its columns")
    return [visible(line) for line in lines]


def _found(summary: Summary) -> list[tuple[str, Tally, str, str, str]]:
    """Name, tally, action, meaning and advice of everything that was found; problems that drop rows come first."""
    found = []
    # In the order of the catalogue, not of the file: two runs on similar files can be compared.
    for name in [*(one for one in ROW_CHECKS if one in summary.problems), *summary.findings]:
        tally = summary.problems.get(name) or summary.findings[name]
        action = summary.actions.get(name, "")
        if name in STATISTICS:
            share = f", {100 * tally.count / max(summary.rows_read, 1):.0f} %"
            found.append((name, tally, action, STATISTICS[name] + share, ""))
            continue
        check = ROW_CHECKS[catalogue_name(name)]
        meaning, advice = check.meaning, check.advice
        # A finding about a column of the file has the column's name behind a colon.
        if ":" in name:
            meaning += f" (column {name.partition(':')[2]!r})"
            advice = LABEL_ADVICE if check.name == "trailing_white_space" else advice
        found.append((name, tally, action, meaning, advice))
    return found
