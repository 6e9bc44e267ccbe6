"""What is worth knowing about rows that can be used, in words. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping

from align.config.row_checks import ROW_CHECKS, STATISTICS
from align.data.validation.scanned import Tally


def finding_note(name: str, tally: Tally, rows: int, *, single_file: bool) -> str:
    """One sentence about a finding, with the first lines where it is.

    Args:
        name: of a check; `trailing_white_space:COLUMN` and `conflicting:COLUMN` are about a column that no field took.
        rows: rows of which a statistic's count is a share.
        single_file: whether lines alone tell the place.
    """
    if name in STATISTICS:
        return f"{STATISTICS[name]}: {tally.count:,} of {rows:,} ({100 * tally.count / max(rows, 1):.0f} %)"
    kind, _, column = name.partition(":")
    if kind == "conflicting":
        what = f"prompts with different values in the unused column {column!r}"
    else:
        what = f"values of the unused column {column!r} that end in white space" if column else ROW_CHECKS[name].meaning
    return f"{what}: {tally.count:,} ({shown_places(tally, single_file=single_file)})"


def shown_places(tally: Tally, *, single_file: bool) -> str:
    """`line 3, 7, …`, or `a.jsonl:3, b.jsonl:7, …`."""
    places = [str(line) if single_file else f"{file}:{line}" for file, line in tally.places]
    more = ", …" if tally.count > len(places) else ""
    return ("line " if single_file else "") + ", ".join(places) + more


def catalogue_name(finding: str) -> str:
    """The check that a finding is of."""
    kind, _, column = finding.partition(":")
    return "conflicting_labels" if column and kind == "conflicting" else kind


def findings_in_order(findings: Mapping[str, Tally]) -> dict[str, Tally]:
    """The findings that occur, in the order of the catalogue, then statistics."""
    order = {name: number for number, name in enumerate([*ROW_CHECKS, *STATISTICS])}
    return {name: findings[name] for name in sorted(findings, key=lambda one: order[catalogue_name(one)]) if findings[name].count}
