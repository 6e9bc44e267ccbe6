"""Writes out the forms of a recipe before anything is checked: entries of `stages` that stand for several stages.

`rounds` repeats generate, score, pairs and dpo; `seeds` makes one copy of a stage per seed, and of every stage that needs it.
The result is plain stages, and a map from every path in them to the path in the recipe's file, where messages point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from align.config.base import Problem
from align.config.entry import FILLED, Entry, is_rounds, round_names, spread_seeds, written_blocks, written_path
from align.config.explain import problems_of
from align.config.form import NODE_NAME, Copies, Rounds
from align.config.graph import StageTypeLike
from align.config.names import Place, listing
from align.config.reference import FieldPath
from align.config.shape import references_in
from align.config.trials import Sweeps


@dataclass
class Expansion:
    """Plain stages, and the place in the file of each of their parts."""

    stages: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    """Kind by name, of written names that stand for several stages; empty for stages that could not be made."""
    block: dict[str, str] = field(default_factory=dict)
    """For stages of rounds: the block that holds their fields."""
    problems: list[Problem] = field(default_factory=list)
    """Problems of the forms themselves, by their paths in the file."""
    origins: dict[FieldPath, FieldPath] = field(default_factory=dict)
    sweeps: Sweeps = field(default_factory=Sweeps)
    """What was written out before."""

    def written(self, path: FieldPath) -> FieldPath:
        """The path in the file of what became the value at `path` of the plain stages."""
        return self.sweeps.written(written_path(self.origins, path))


def expand(stages: Mapping[str, Any], inputs: Sequence[str], stage_types: Mapping[str, StageTypeLike]) -> Expansion:
    """Write out every form.

    Args:
        stages: the entries as they were written; those that are not mappings stay as they are.
        inputs: names that are taken already.
        stage_types: every stage type there is, by name.
    """
    result = Expansion()
    entries = {name: _read(name, value, stage_types, result) for name, value in stages.items()}
    _spread_seeds(entries, result)
    writer = _Writer(entries, {*stages, *inputs}, result)
    for name, entry in entries.items():
        if entry is None or entry.is_plain:
            writer.plain(name, stages[name])
        else:
            writer.copies(entry)
    return result


def _read(name: str, value: Any, stage_types: Mapping[str, StageTypeLike], result: Expansion) -> Entry | None:
    """The entry, with harmless values in place of wrong ones; None if it is not a mapping."""
    if not isinstance(value, dict):
        return None
    path = ("stages", name)
    form = is_rounds(value)
    # A plain entry's other fields are its stage's, which checks them itself.
    given: Mapping[str, Any] = value if form else {key: value[key] for key in ("seeds",) if key in value}
    wrong: set[FieldPath] = set()
    reader = Rounds if form else Copies
    try:
        reader.model_validate(given)
    except ValidationError as error:
        blocks = {block: stage_types[block].config_type for block in FILLED if block in stage_types}
        place = Place(path, inner=blocks if form else {})
        for problem in problems_of(error, reader, given, place):
            wrong.add(problem.path[:1])
            result.problems.append(problem._replace(path=(*path, *problem.path)))
    given_seeds: list[int] = [] if ("seeds",) in wrong else value.get("seeds") or []
    for index, seed in enumerate(given_seeds):
        if seed in given_seeds[:index]:
            result.problems.append(Problem((*path, "seeds", index), f"{seed} is here twice"))
    if given_seeds and "seed" in value:
        result.problems.append(Problem((*path, "seed"), "give either seed or seeds"))
    # Without the repeated ones, which would make two stages of one name.
    seeds = list(dict.fromkeys(given_seeds)) or None
    fields = {key: item for key, item in value.items() if key != "seeds"}
    references, kind = references_of(value, stage_types), kind_of_entry(value, stage_types)
    if kind == "comparison" and seeds:
        result.problems.append(Problem((*path, "seeds"), "a comparison is not copied; give seeds to the stages before it"))
        seeds = None
    # One round where the number is wrong or its key is misspelt, so that the blocks are still checked.
    rounds = (1 if ("rounds",) in wrong else int(value.get("rounds", 1))) if form else None
    return Entry(name, fields, kind, references, seeds, rounds, own_seeds=seeds is not None)


def kind_of_entry(entry: Mapping[str, Any], stage_types: Mapping[str, StageTypeLike]) -> str:
    """Kind of what an entry of `stages` makes; empty where its stage type is unknown."""
    if is_rounds(entry):
        return "model"
    stage_type = stage_types.get(entry["stage"]) if isinstance(entry.get("stage"), str) else None
    return stage_type.produces if stage_type else ""


def references_of(entry: dict[str, Any], stage_types: Mapping[str, StageTypeLike]) -> list[tuple[FieldPath, str]]:
    """Every name in an entry of `stages`, with its path from there."""
    found: list[tuple[FieldPath, str]] = []
    if is_rounds(entry) and isinstance(entry.get("model"), str):
        found.append((("model",), entry["model"]))
    for block, stage, inner in written_blocks("", entry):
        if stage in stage_types:
            names = references_in(stage_types[stage].config_type, inner)
            found += [((*block[2:], *path), reference) for path, _, reference in names]
    return found


def _spread_seeds(entries: Mapping[str, Entry | None], result: Expansion) -> None:
    for where, name, entry, source in spread_seeds(entries):
        if entry.is_comparison:
            copies = listing(source.result_of(copy) for copy in source.copy_names())
            text = f"'{name}' has a copy per seed; name one of {copies}"
        else:
            seeds, others = (", ".join(map(str, item.seeds or ())) for item in (entry, source))
            text = f"'{name}' has copies for the seeds {others}, but this stage for {seeds}; they must be the same"
        result.problems.append(Problem(where, text))


def _in_list(path: FieldPath) -> bool:
    return isinstance(path[-1], int)


class _Writer:
    """Puts plain stages into the expansion."""

    def __init__(self, entries: Mapping[str, Entry | None], taken: set[str], result: Expansion) -> None:
        self._entries = entries
        self._taken = taken
        self._result = result

    def plain(self, name: str, value: Any) -> None:
        """An entry that stays one stage; names in it that stand for several are replaced."""
        entry = self._entries[name]
        if entry is None or not ("seeds" in value or any(self._is_several(other) for _, other in entry.references)):
            self._result.stages[name] = value
            return
        fields = self._resolved(entry, ("stages", name), None)
        if entry.is_comparison:
            self._add_methods(entry, fields)
        self._result.stages[name] = fields

    def copies(self, entry: Entry) -> None:
        """An entry that becomes several stages."""
        self._result.kinds[entry.name] = entry.kind
        for index, name in enumerate(entry.copy_names()):
            fields = self._resolved(entry, ("stages", name), index if entry.seeds is not None else None)
            origin: FieldPath = ("stages", entry.name, "seed")
            # An entry with both seed and seeds has its problem already.
            if entry.seeds is not None and "seed" not in fields:
                fields["seed"] = entry.seeds[index]
                origin = ("stages", entry.name, "seeds", index) if entry.own_seeds else ("stages", entry.name)
            if entry.rounds is not None:
                self._rounds(entry, name, fields, origin)
            elif self._claim(entry, name):
                self._put(name, fields, ("stages", entry.name), {"seed": origin})

    def _rounds(self, entry: Entry, name: str, fields: dict[str, Any], seed_origin: FieldPath) -> None:
        base: FieldPath = ("stages", entry.name)
        before = {"model": fields["model"]} if "model" in fields else {}
        start, count = before, entry.rounds or 1
        # Before the loop, since the problems of a block are the same in every round.
        blocks = {key: self._block(entry, key, fields, count) for key in FILLED}
        for number in range(1, count + 1):
            names = round_names(name, number)
            links: dict[str, dict[str, Any]] = {
                "generate": before,
                "score": {"candidates": names["generate"]},
                "pairs": {"scored": names["score"]},
                "dpo": {**before, "pairs": names["pairs"]},
            }
            if fields.get("reference") == "first" and start and number > 1:  # the first round's is its model anyway
                links["dpo"]["reference"] = start["model"]
            for key, block in blocks.items():
                if not self._claim(entry, names[key]):
                    continue
                # An empty kind: the lack of the block is reported, and references to its stages are not.
                if block is None:
                    self._result.kinds[names[key]] = ""
                    continue
                # The model is written once, for all rounds, and may be the reference too: problems of it point there.
                inner, origins = dict(block), {link: (*base, "model") for link in FILLED[key] if link in ("model", "reference")}
                if key == "generate" and isinstance(block.get("prompts"), list) and block["prompts"]:
                    # A list that is too short is reported; its last name serves the other rounds meanwhile.
                    index = min(number, len(block["prompts"])) - 1
                    inner["prompts"], origins["prompts"] = block["prompts"][index], (*base, key, "prompts", index)
                if "seed" in fields and "seed" not in block:
                    inner["seed"], origins["seed"] = fields["seed"], seed_origin
                self._result.block[names[key]] = key
                self._put(names[key], {"stage": key, **inner, **links[key]}, (*base, key), origins)
            before = {"model": names["dpo"]}

    def _block(self, entry: Entry, key: str, fields: Mapping[str, Any], rounds: int) -> dict[str, Any] | None:
        """The fields of one of the four stages, without those that rounds fill in; None if the entry has no such mapping."""
        block, path = fields.get(key), ("stages", entry.name, key)
        if not isinstance(block, dict):
            return None
        for filled in FILLED[key]:
            if filled in block:
                advice = "; write reference: first or previous beside rounds" if filled == "reference" else ""
                self._tell(Problem((*path, filled), f"rounds fill this in; remove it{advice}", at_key=True))
        prompts = block.get("prompts")
        if key == "generate" and isinstance(prompts, list) and len(prompts) != rounds:
            self._tell(
                Problem((*path, "prompts"), f"expected one name, or a list of {rounds} (one per round), got {len(prompts)}")
            )
        return {inner: value for inner, value in block.items() if inner not in FILLED[key]}

    def _tell(self, problem: Problem) -> None:
        if problem not in self._result.problems:  # every copy of an entry has the same
            self._result.problems.append(problem)

    def _claim(self, entry: Entry, name: str) -> bool:
        """Whether a name is free and usable; it is taken then."""
        path = ("stages", entry.name)
        if not NODE_NAME.fullmatch(entry.name):
            pass  # reported already
        elif name in self._taken:
            self._tell(Problem(path, f"this makes a stage called '{name}', and that name is in use; rename one", at_key=True))
        elif not NODE_NAME.fullmatch(name):
            self._tell(Problem(path, "the stages that this makes have names longer than 64; shorten it", at_key=True))
        else:
            self._taken.add(name)
            return True
        # Known but of no kind, so that references to it are not reported as well.
        self._result.kinds[name] = ""
        return False

    def _put(self, name: str, fields: dict[str, Any], written: FieldPath, origins: Mapping[str, FieldPath]) -> None:
        self._result.stages[name] = fields
        self._result.origins[("stages", name)] = written
        self._result.origins.update({("stages", name, key): origin for key, origin in origins.items()})

    def _is_several(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and not entry.is_plain

    def _resolved(self, entry: Entry, place: FieldPath, copy: int | None) -> dict[str, Any]:
        """The fields with real stages in place of the names that stand for several; `copy` is the index of a seed."""
        names: dict[FieldPath, list[str]] = {}
        for path, name in entry.references:
            source = self._entries.get(name)
            if source is None or source.is_plain:
                continue
            if _in_list(path):
                names[path] = [one for results in source.results().values() for one in results]
            # Copy n of a stage takes copy n of what it names. Different seeds have been reported, and the name stays.
            elif source.seeds is None or (copy is not None and source.seeds == entry.seeds):
                names[path] = [source.result_of(source.copy_names()[copy if source.seeds and copy is not None else 0])]
        fields: dict[str, Any] = self._replaced(entry.fields, (), (), names, place, ("stages", entry.name))
        return fields

    def _replaced(
        self, value: Any, old: FieldPath, new: FieldPath, names: Mapping[FieldPath, list[str]], place: FieldPath, base: FieldPath
    ) -> Any:
        """A copy of `value` with the names put in; `old` and `new` are its paths before and after lists have grown."""
        if isinstance(value, dict):
            return {key: self._replaced(item, (*old, key), (*new, key), names, place, base) for key, item in value.items()}
        if not isinstance(value, list):
            return names[old][0] if old in names else value
        grown: list[Any] = []
        for index, item in enumerate(value):
            for part in names.get((*old, index), [item]):
                here: FieldPath = (*new, len(grown))
                # Places have moved only behind an entry that became several.
                if len(grown) != index:
                    self._result.origins[(*place, *here)] = (*base, *old, index)
                nested = isinstance(part, (dict, list))
                grown.append(self._replaced(part, (*old, index), here, names, place, base) if nested else part)
        return grown

    def _add_methods(self, entry: Entry, fields: dict[str, Any]) -> None:
        """Make copies of a model in `models` one method, shown as one row, unless the recipe groups them itself."""
        methods = fields.get("methods") or {}
        if not isinstance(methods, dict):
            return
        # Copies that the recipe has put into a method must not be counted in a second one.
        placed = {
            member for members in methods.values() if isinstance(members, list) for member in members if isinstance(member, str)
        }
        found: dict[str, list[str]] = {}
        for path, name in entry.references:
            source = self._entries.get(name)
            if path[0] == "models" and source is not None and source.seeds is not None:
                for method, copies in source.results().items():
                    if method not in methods and placed.isdisjoint(copies):
                        found[method] = copies
                        self._result.origins[("stages", entry.name, "methods", method)] = ("stages", entry.name, *path)
        if found:
            fields["methods"] = {**methods, **found}
