"""The recipe: inputs and a graph of stages, read from YAML and checked completely before anything starts.

Every problem is reported, all at once and in the order of the file, each with its line and column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from align.config.base import Problem, StrictModel
from align.config.checks import check_decontamination, check_input_path, check_stage
from align.config.entry import FILLED, written_blocks
from align.config.expand import Expansion, expand
from align.config.explain import expected, problems_of, shortened, show_value
from align.config.form import NODE_NAME, SEED_LIMIT, Sweep
from align.config.graph import Draft, RecipeGraph, StageTypeLike, check_references, order_stages
from align.config.inputs import (
    AnyInput,
    ArtifactInput,
    CandidatesInput,
    DataInput,
    ModelInput,
    ModelKind,
    artifact_kind_names,
    data_kind_names,
)
from align.config.machine import MachineSettings
from align.config.misplaced import TOP_KEYS, put_right
from align.config.names import Place, listing, show_path, unknown, unknown_stage_type
from align.config.other_tools import value_here
from align.config.override import apply_override
from align.config.paths import advice_on_missing, exists, locate
from align.config.reference import FieldPath, iterate_references
from align.config.sections import JudgeScorer, RulesScorer
from align.config.shape import walk
from align.config.shipped import recipe_file
from align.config.source import Document, Position, read_document
from align.config.sweep import CHOICE_STAGE, FILLED_BY_SWEEP, spread_sweeps
from align.config.sweep import SECTION as SWEEP
from align.errors import RecipeError, several

DEFAULT_SEED = 17
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SCORER_FILES: tuple[tuple[type[StrictModel], str, Any], ...] = (
    (RulesScorer, "rules", [{"type": "numeric_answer", "name": "unreadable"}]),
    (JudgeScorer, "judge", {"base_url": "http://localhost", "model": "unreadable"}),
)
"""Scorers that may be a file: the key that names the file, and a replacement for an unreadable one."""

INPUT_SECTIONS: Mapping[str, type[StrictModel]] = {"inputs of models": ModelInput, "inputs of data": DataInput}
MACHINE_SECTION: Mapping[str, type[StrictModel]] = {"a machine file (`align docs scale`)": MachineSettings}

ModelT = TypeVar("ModelT", bound=StrictModel)


@dataclass(frozen=True)
class StageNode:
    """One stage of a recipe."""

    name: str
    type: str
    config: StrictModel
    references: tuple[tuple[FieldPath, str], ...]
    """Every field of the configuration that names an input or a stage, with the name."""


@dataclass(frozen=True)
class Recipe:
    """A recipe without problems. Stages come after what they need, otherwise in the order of the file."""

    name: str
    seed: int
    path: Path
    """The file it was read from."""
    folder: Path
    """Where relative paths of inputs start."""
    inputs: Mapping[str, AnyInput]
    stages: Mapping[str, StageNode]
    kinds: Mapping[str, str]
    """Kind of artifact by name of input or stage."""
    document: Document = field(repr=False, compare=False)
    """The document as written; `expansion` maps generated stages to it."""
    expansion: Expansion = field(repr=False, compare=False)

    def where(self, path: FieldPath) -> str:
        """`recipe.yaml:12:9`, the place of a value such as `("stages", "dpo", "beta")`."""
        return str(self.document.value_position(self.expansion.written(path)))

    def locate(self, written: str) -> Path:
        """A path of the recipe, relative to the current folder."""
        return locate(written, self.folder)

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain JSON: overrides applied, rule files put in place, forms written out, defaults filled in."""
        return {
            "name": self.name,
            "seed": self.seed,
            "inputs": {name: spec.model_dump(mode="json", exclude_none=True) for name, spec in self.inputs.items()},
            "stages": {name: {"stage": node.type, **node.config.model_dump(mode="json")} for name, node in self.stages.items()},
        }


def parse_recipe(path: str | Path, *, overrides: Sequence[str] = (), stage_types: Mapping[str, StageTypeLike]) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file, a folder with a `recipe.yaml`, or the name of a recipe that comes with align.
        overrides: `KEY=VALUE` texts that win over the file, such as `stages.sft.num_epochs=2`.
        stage_types: every stage type there is, by name.
    Raises:
        RecipeError: with every problem on a line of its own, in the order of the file.
    """
    path = recipe_file(path)
    document = read_document(path)
    return parse_document(document, path=path, folder=path.parent, overrides=overrides, stage_types=stage_types)


def parse_document(
    document: Document, *, path: Path, folder: Path, overrides: Sequence[str] = (), stage_types: Mapping[str, StageTypeLike]
) -> Recipe:
    """Check a document that need not come from a file; `path` names its source in the recipe."""
    return _Parser(document, folder, stage_types).parse(path, overrides)


class _Parser:
    """Collects valid parts into a recipe, and all problems into one error."""

    def __init__(self, document: Document, folder: Path, stage_types: Mapping[str, StageTypeLike]) -> None:
        self.document = document
        self.folder = folder
        self.stage_types = stage_types
        self.problems: list[tuple[Position, str]] = []
        self.expansion = Expansion()
        self.said: dict[FieldPath, FieldPath | None] = {}
        """Written path → the path first reported for it: all copies of a stage have the same problems."""
        self.unreadable = False
        """Whether inputs or stages are no mapping, so that the names in it are not known."""
        self.ranks = 0
        """Files and options read so far; they order the problems."""

    def parse(self, path: Path, overrides: Sequence[str]) -> Recipe:
        if not isinstance(self.document.value, dict):
            got = show_value(self.document.value)
            found = "the file is empty" if self.document.value is None else f"expected a mapping, got {got}"
            raise RecipeError(
                f"{self.document.value_position(())}: {found}",
                hint=f"A recipe has the keys {listing(TOP_KEYS)}.",
            )
        # Ranks order the problems: the file is 0, the files that it names are 1, 2, …, and options come last.
        for rank, text in enumerate(overrides):
            if refused := apply_override(self.document, text, self.stage_types, rank=len(overrides) * 1000 + rank):
                self.problems.append(refused)
        name, seed = self.top()
        written_inputs, written_stages = self.section("inputs"), self.section("stages")
        ambiguous = [key for key in written_stages if key in written_inputs]
        for key in ambiguous:
            self.add(Problem(("stages", key), "an input has this name too; names are used once", at_key=True))
        inputs = {key: spec for key, value in written_inputs.items() if (spec := self.input(key, value))}
        for problem in check_decontamination(inputs, list(written_inputs)):
            self.add(problem)
        self.write_out(written_stages, list(written_inputs), seed)
        drafts = {key: draft for key, value in self.expansion.stages.items() if (draft := self.draft(key, value))}
        graph = RecipeGraph(drafts, inputs, self.folder)
        # Before the types are checked: a validator of the whole stage says the same, and is then left out.
        checked = {key: list(check_stage(key, draft, graph)) for key, draft in drafts.items()}
        configs = {key: config for key, draft in drafts.items() if (config := self.config(key, draft, checked[key]))}
        # A name whose own entry is invalid has no kind: one problem is enough, and its uses are not reported.
        kinds = dict.fromkeys((*written_inputs, *self.expansion.stages), "")
        kinds |= {key: spec.kind for key, spec in inputs.items()}
        kinds |= {key: draft.stage_type.produces for key, draft in drafts.items()}
        for key in ambiguous:
            kinds[key] = ""
            # References to an ambiguous name cannot be checked, nor can its stage be put in order.
            drafts.pop(key, None)
        if self.unreadable:
            kinds |= {named: kinds.get(named, "") for draft in drafts.values() for _, _, named in draft.references()}
        for problem in check_references(drafts, list(written_inputs), {**kinds, **self.expansion.kinds}, self.stage_types):
            self.add(problem)
        order, circles = order_stages(drafts)
        for problem in circles:
            self.add(problem)
        for problem in (problem for key in drafts for problem in checked[key]):
            self.add(problem)
        # From here on, every entry is valid and every name has a kind.
        self.raise_problems(path)
        nodes = {key: self.node(key, drafts[key], configs[key]) for key in order}
        return Recipe(name, seed, path, self.folder, inputs, nodes, kinds, self.document, self.expansion)

    def elsewhere(self) -> dict[str, type[StrictModel]]:
        """Every section of a recipe, and what stands in a file of its own, by what it is."""
        stages: dict[str, type[StrictModel]] = {name: stage_type.config_type for name, stage_type in self.stage_types.items()}
        return {**stages, **INPUT_SECTIONS, **MACHINE_SECTION}

    def add(self, problem: Problem, *, written: bool = False) -> None:
        """Record a problem at its position in the file; `written` says that its path is one of the file already."""
        path = problem.path if written else self.expansion.written(problem.path)
        source = None if written else problem.path
        # One value may have several problems; the same place reported for another copy of the stage is a repetition.
        if self.said.setdefault(path, source) != source:
            return
        find = self.document.key_position if problem.at_key else self.document.value_position
        self.problems.append((find(path), f"{show_path(path)}: {problem.text}"))

    def raise_problems(self, path: Path) -> None:
        if self.problems:
            # Sorted by place: checks run by subject, but people fix a file from top to bottom.
            lines = [f"{position}: {text}" for position, text in sorted(set(self.problems))]
            raise RecipeError(several(lines, f"problems in {path}"))

    def top(self) -> tuple[str, int]:
        """Check the keys at the top; invalid values are replaced by harmless ones, so that checking can go on."""
        recipe = self.document.value
        for problem in put_right(self.document, self.elsewhere):
            self.add(problem)
        name, seed = recipe.get("name"), recipe.get("seed", DEFAULT_SEED)
        if "name" not in recipe:
            self.add(Problem(("name",), "this key is missing; expected a text that can be a file name", at_key=True))
        elif not isinstance(name, str):
            self.add(Problem(("name",), expected((str,), name)))
        elif not FILE_NAME.fullmatch(name):
            self.add(Problem(("name",), f"expected letters, digits, '.', '_' and '-', at most 100, got {show_value(name)}"))
        # A bool is an int in Python, and `seed: true` is a mistake.
        if isinstance(seed, bool) or not isinstance(seed, int):
            self.add(Problem(("seed",), expected((int,), seed)))
        elif not 0 <= seed < SEED_LIMIT:
            self.add(Problem(("seed",), f"must be from 0 to {SEED_LIMIT - 1}, got {seed}"))
        return str(name), seed if isinstance(seed, int) else DEFAULT_SEED

    def write_out(self, written_stages: Mapping[str, Any], inputs: Sequence[str], seed: int) -> None:
        """Write out sweeps, then rounds and seeds."""
        sweeps = self.document.value.get(SWEEP) or {}
        if not isinstance(sweeps, dict):
            self.add(Problem((SWEEP,), f"expected a mapping of stages to sweeps, got {show_value(sweeps)}"))
            sweeps = {}
        # Before forms are written out, so that each file is read once and not once for every copy of a stage.
        self.read_rule_files(written_stages)
        for name, form in sweeps.items():
            if isinstance(form, dict):
                self.read_files_of(self.stage_types[CHOICE_STAGE].config_type, form, (SWEEP, name))
        swept = spread_sweeps(sweeps, written_stages, inputs, self.stage_types, seed=seed)
        self.expansion = expand(swept.stages, inputs, self.stage_types)
        self.expansion.sweeps = swept
        for problem in swept.problems:
            self.add(problem, written=True)
        for problem in self.expansion.problems:
            self.add(problem._replace(path=swept.written(problem.path)), written=True)

    def section(self, key: str) -> dict[str, Any]:
        """The entries of `inputs` or `stages` that have a usable name and are mappings."""
        value = self.document.value.get(key)
        if value is None and key == "inputs":
            stages = self.document.value.get("stages")
            if isinstance(stages, dict) and any(isinstance(entry, dict) for entry in stages.values()):
                # In place of one problem for every name in the stages.
                text = "at least one input is needed, such as {base: {kind: model, path: …}}"
                self.add(Problem((key,), text, at_key=True))
                self.unreadable = True
            return {}
        if key not in self.document.value or value in (None, {}):
            self.add(Problem((key,), "at least one stage is needed, such as {sft: {stage: sft, model: …, data: …}}", at_key=True))
            return {}
        if not isinstance(value, dict):
            hint = " (write NAME: {…} for each entry)" if isinstance(value, list) else ""
            self.add(Problem((key,), f"expected a mapping of names to {key}, got {show_value(value)}{hint}"))
            self.unreadable = True
            return {}
        for name, entry in value.items():
            if not NODE_NAME.fullmatch(name):
                text = "a name starts with a letter and has only letters, digits, '_' and '-', at most 64"
                self.add(Problem((key, name), text, at_key=True))
            if not isinstance(entry, dict):
                self.add(Problem((key, name), f"expected a mapping, got {show_value(entry)}{self._as_entry(key, entry)}"))
        return value

    def _as_entry(self, section: str, entry: Any) -> str:
        """How to write an entry of which only the path or the type is given."""
        if not isinstance(entry, str):
            return ""
        if section == "inputs":
            return f" (write {{kind: …, path: {entry}}})"
        return f" (write {{stage: {entry}, …}})" if entry in self.stage_types else ""

    def input(self, name: str, value: Any) -> AnyInput | None:
        """The input, if it is valid. Its kind and the key `artifact` decide which class reads it."""
        path = ("inputs", name)
        if not isinstance(value, dict):
            return None
        kind = self.choice((*path, "kind"), value, artifact_kind_names(), what="kind")
        if kind is None:
            return None
        reader: type[AnyInput] = ArtifactInput
        if "artifact" not in value and kind in get_args(ModelKind):
            reader = ModelInput
        elif "artifact" not in value and kind in data_kind_names():
            reader = DataInput
        elif "artifact" not in value and kind == "scored_candidates" and "path" in value:
            reader = CandidatesInput
        spec = self.validated(reader, value, path)
        for problem in check_input_path(spec, self.folder, path) if spec else ():
            self.add(problem)
        return spec

    def draft(self, name: str, value: Any) -> Draft | None:
        """The stage as it is written, if its type exists."""
        path = ("stages", name)
        if not isinstance(value, dict):
            return None
        example = f" (add stage: {name})" if name in self.stage_types else ""
        written = self.choice((*path, "stage"), value, list(self.stage_types), what="stage type", example=example)
        if written is None:
            return None
        return Draft(self.stage_types[written], {key: field for key, field in value.items() if key != "stage"})

    def choice(
        self, path: FieldPath, fields: dict[str, Any], choices: Sequence[str], *, what: str, example: str = ""
    ) -> str | None:
        """The value of a required key with a few possible texts."""
        key = path[-1]
        if key not in fields:
            self.add(Problem(path, f"this key is missing; expected one of {listing(choices)}{example}", at_key=True))
        elif not isinstance(value := fields[str(key)], str):
            self.add(Problem(path, f"expected one of {listing(choices)}, got {show_value(value)}"))
        elif value not in choices:
            known = value_here(str(key), value)
            near = f"unknown {what}; did you mean '{known}'?" if known in choices else unknown(value, choices, what=what)
            self.add(Problem(path, f"'{shortened(value)}': {unknown_stage_type(value, choices) if key == 'stage' else near}"))
        else:
            return value
        return None

    def read_rule_files(self, written_stages: Mapping[str, Any]) -> None:
        """Replace every `{rules: file.yaml}` and `{judge: file.yaml}` by the file's content, to check and fingerprint it."""
        for name, entry in written_stages.items():
            for path, stage, fields in written_blocks(name, entry) if isinstance(entry, dict) else ():
                if stage in self.stage_types:
                    self.read_files_of(self.stage_types[stage].config_type, fields, path)

    def read_files_of(self, config_type: type[StrictModel], fields: dict[str, Any], path: FieldPath) -> None:
        # A list, since grafting changes the value that is walked.
        for inner, alternatives, part in list(walk((config_type,), fields)):
            for scorer, key, harmless in SCORER_FILES:
                if scorer not in alternatives or not isinstance(part, dict) or not isinstance(part.get(key), str):
                    continue
                where = (*path, *inner, key)
                file = locate(part[key], self.folder)
                self.ranks += 1
                try:
                    self.document.graft(where, read_document(file, rank=self.ranks))
                except RecipeError as error:
                    advice = "" if exists(file) else advice_on_missing(part[key], self.folder)
                    self.add(Problem(where, f"{error.message}{advice}"))
                    part[key] = harmless  # one message is enough

    def config(self, name: str, draft: Draft, checked: Sequence[Problem]) -> StrictModel | None:
        """The stage's configuration, if it is valid.

        If checks have found problems, those of a validator of the whole stage are left out: they are the same, less precise.
        """
        block = self.expansion.block.get(name)
        extra: Sequence[str] = () if block else ("stage", "seeds")
        hidden: Sequence[str] = FILLED[block] if block else ()
        if self.expansion.written(("stages", name))[0] == SWEEP:
            extra, hidden = list(Sweep.model_fields), FILLED_BY_SWEEP
        return self.validated(
            draft.stage_type.config_type,
            draft.fields,
            ("stages", name),
            extra_keys=extra,
            hidden_keys=hidden,
            as_a_whole=not checked,
        )

    def validated(
        self,
        reader: type[ModelT],
        value: Mapping[str, Any],
        path: FieldPath,
        *,
        extra_keys: Sequence[str] = (),
        hidden_keys: Sequence[str] = (),
        as_a_whole: bool = True,
    ) -> ModelT | None:
        try:
            return reader.model_validate(value)
        except ValidationError as error:
            place = Place(self.expansion.written(path), extra_keys, hidden_keys, elsewhere=self.elsewhere)
            for problem in problems_of(error, reader, value, place):
                if problem.path or as_a_whole:
                    self.add(problem._replace(path=(*path, *problem.path)))
        return None

    def node(self, name: str, draft: Draft, config: StrictModel) -> StageNode:
        references = tuple((path, str(reference)) for path, reference in iterate_references(config))
        return StageNode(name, draft.stage_type.name, config, references)
