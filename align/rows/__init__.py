"""Reads one row of a file: its kind, its shape, its fields and its conversations."""

from align.rows.kind import ROW_KINDS, DataKind, RowKind, data_kinds, kind_of, register
from align.rows.table import CANDIDATES, INSTRUCTIONS, LABELLED, PREFERENCES, PROMPTS, SCORED_CANDIDATES, TEXT

__all__ = [
    "CANDIDATES",
    "INSTRUCTIONS",
    "LABELLED",
    "PREFERENCES",
    "PROMPTS",
    "ROW_KINDS",
    "SCORED_CANDIDATES",
    "TEXT",
    "DataKind",
    "RowKind",
    "data_kinds",
    "kind_of",
    "register",
]
