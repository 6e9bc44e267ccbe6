"""An entry of `stages` as it was written, and the names of the stages that it stands for. Loads no pydantic, for completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.config.reference import FieldPath

MAX_COPIES = 100
"""Most rounds, and most seeds, of one entry."""
FILLED: Mapping[str, tuple[str, ...]] = {
    "generate": ("stage", "model"),
    "score": ("stage", "candidates"),
    "pairs": ("stage", "scored"),
    "dpo": ("stage", "model", "pairs", "reference"),
}
"""The stages of a round in their order, and the fields that the form fills in."""


def is_rounds(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of `stages` is meant to be rounds."""
    # Blocks without `rounds` count too, so that the message is about the missing key and not about `stage`.
    return "stage" not in entry and ("rounds" in entry or any(isinstance(entry.get(key), dict) for key in FILLED))


def written_blocks(name: str, entry: dict[str, Any]) -> Iterator[tuple[FieldPath, str, dict[str, Any]]]:
    """The mappings of an entry that hold the fields of one stage: path, name of the stage type, mapping."""
    if is_rounds(entry):
        yield from ((("stages", name, key), key, entry[key]) for key in FILLED if isinstance(entry.get(key), dict))
    elif isinstance(entry.get("stage"), str):
        yield ("stages", name), entry["stage"], entry


def round_names(copy: str, number: int) -> dict[str, str]:
    """The stages of one round, by block. The DPO stage has the round's own name, so that the next round starts from its model."""
    stem = f"{copy}-{number}"
    return {key: stem if key == "dpo" else f"{stem}-{key}" for key in FILLED}


def written_path(origins: Mapping[FieldPath, FieldPath], path: FieldPath) -> FieldPath:
    """The place of what became the value at `path`, by the places of the parts that have moved."""
    # The longest known path wins: a part may come from another place than the stage around it.
    for length in range(len(path), 1, -1):
        if origin := origins.get(path[:length]):
            return (*origin, *path[length:])
    return path


@dataclass
class Entry:
    """An entry of `stages` as it was written."""

    name: str
    fields: dict[str, Any]
    """Without `seeds`."""
    kind: str
    """Kind of what it makes; empty where its stage type is unknown."""
    references: list[tuple[FieldPath, str]]
    seeds: list[int] | None
    rounds: int | None
    own_seeds: bool

    @property
    def is_plain(self) -> bool:
        """Whether it stands for one stage. Names in it may still have to be replaced."""
        return self.seeds is None and self.rounds is None

    @property
    def is_comparison(self) -> bool:
        return self.kind == "comparison"

    def copy_names(self) -> list[str]:
        return [self.name] if self.seeds is None else [f"{self.name}-s{seed}" for seed in self.seeds]

    def stage_names(self) -> list[str]:
        """Every stage that it stands for."""
        if self.rounds is None:
            return self.copy_names()
        rounds = range(1, self.rounds + 1)
        return [name for copy in self.copy_names() for number in rounds for name in round_names(copy, number).values()]

    def result_of(self, copy: str) -> str:
        """The stage that makes the result of a copy."""
        return copy if self.rounds is None else f"{copy}-{self.rounds}"

    def results(self) -> dict[str, list[str]]:
        """The results that the name stands for in a list, by method. Those of one method differ only in their seed."""
        if self.rounds is None:
            return {self.name: self.copy_names()}
        rounds = range(1, self.rounds + 1)
        return {f"{self.name}-{number}": [f"{copy}-{number}" for copy in self.copy_names()] for number in rounds}


def spread_seeds(entries: Mapping[str, Entry | None]) -> Iterable[tuple[FieldPath, str, Entry, Entry]]:
    """Give `seeds` to entries that need a copied one: they are copied too, and so on. A comparison takes all copies instead.

    Returns:
        References to copied stages that cannot be resolved: path, name, the entry that has it, and the one that it names.
    """
    refused: dict[FieldPath, tuple[FieldPath, str, Entry, Entry]] = {}
    open_names = list(entries)
    while open_names:
        entry = entries[open_names.pop(0)]
        for path, name in entry.references if entry else ():
            source = entries.get(name)
            where = ("stages", entry.name, *path) if entry else ()
            if entry is None or source is None or source.seeds is None or source is entry or isinstance(path[-1], int):
                continue
            if entry.is_comparison:
                refused.setdefault(where, (where, name, entry, source))
            elif entry.seeds is None:
                entry.seeds = source.seeds
                # Entries that were looked at before may need this one.
                open_names = list(entries)
            elif entry.seeds != source.seeds:
                refused.setdefault(where, (where, name, entry, source))
    return refused.values()
