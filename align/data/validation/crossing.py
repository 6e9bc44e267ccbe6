"""What rows have in common, from their hashes: repetitions and contradictions. Pure functions of sorted tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from align.data.validation.ledger import Table, starts_of

Indexes = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Crossing:
    """Rows of a table that repeat or contradict another one."""

    rows: Indexes
    """The rows concerned; those that leave, if they are to leave."""
    others: Indexes
    """For each, the row that it repeats or contradicts."""
    counted: Indexes
    """The rows by which the finding is counted, and whose places are shown."""


def repetitions(table: Table, *columns: str) -> Crossing:
    """Every row that equals an earlier one in `columns`; the other is the first of them."""
    table_order, group = _grouped(table, columns)
    first_of_group = table_order[np.flatnonzero(starts_of(group))]
    later = np.flatnonzero(~starts_of(group))
    rows, others = table_order[later], first_of_group[group[later]]
    return Crossing(rows, others, rows)


def contradictions(table: Table, columns: tuple[str, ...], value: str) -> Crossing:
    """Rows that are equal in `columns` and not all equal in `value`: every row of such a group, which is counted once.

    It is counted by its first row that differs from the group's first row. A row's other is the first that differs from it.
    """
    order, group = _grouped(table, columns)
    values = table[value][order]
    starts = np.flatnonzero(starts_of(group))
    differs = values != values[starts][group]
    groups, first_differing = np.unique(group[differs], return_index=True)
    differing = np.flatnonzero(differs)[first_differing]
    concerned = np.flatnonzero(np.isin(group, groups))
    of_group = np.searchsorted(groups, group[concerned])
    others = np.where(differs[concerned], starts[groups][of_group], differing[of_group])
    return Crossing(order[concerned], order[others], order[differing])


def mirrored(table: Table) -> Crossing:
    """Pairs that occur both ways round, as `contradictions`; the table has `key`, `first` (chosen) and `second` (rejected)."""
    pairs = np.empty(len(table), [("key", "u8"), ("low", "u8"), ("high", "u8"), ("way", "?"), ("seq", "u8")])
    pairs["key"], pairs["seq"] = table["key"], table["seq"]
    pairs["low"] = np.minimum(table["first"], table["second"])
    pairs["high"] = np.maximum(table["first"], table["second"])
    pairs["way"] = table["first"] < table["second"]
    return contradictions(pairs, ("key", "low", "high"), "way")


def _grouped(table: Table, columns: tuple[str, ...]) -> tuple[Indexes, Indexes]:
    """Row indexes in the order of `columns` and seq, and for each the number of its group from 0."""
    keys = [table[name] for name in columns]
    order = np.lexsort([table["seq"], *reversed(keys)])
    starts = starts_of(*(key[order] for key in keys))
    return order, np.cumsum(starts) - 1
