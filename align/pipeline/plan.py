"""The plan: every stage of a recipe, in order, each cached or to be run, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal

from align.config.base import execution_paths
from align.config.judge import iterate_judges
from align.config.machine_file import MachineFile
from align.config.names import ALL_CHARACTERS, MISSPELT, listing, nearest, show_path, stage_type_of
from align.config.recipe import Recipe, StageNode
from align.config.reference import FieldPath, iterate_parts, iterate_references
from align.config.rules import MathAnswerRule
from align.errors import RecipeError
from align.pipeline.checks.finding import Finding, refuse
from align.pipeline.inputs import ResolvedInput, resolve_inputs
from align.pipeline.owner import refuse_names_that_are_no_text, refuse_other_recipe
from align.runtime.bitsandbytes_check import require_for_optimizer, require_for_qlora
from align.scoring.math_answer import require_math_verify
from align.stage import StageConfig
from align.stages.registry import STAGES
from align.store.artifact import STORE_NAME, Entry, Manifest, Store
from align.store.fingerprint import fingerprint
from align.training.needs import Trains

LINKS_NAME = "stages"

Status = Literal["cached", "run", "skipped"]


@dataclass(frozen=True)
class PlannedStage:
    """What will happen to one stage."""

    name: str
    stage_type: str
    fingerprint: str
    status: Status
    reason: str
    seconds: float | None
    """Time that a cached stage took when it ran; None for other stages."""
    entry: Entry
    node: StageNode
    inputs: Mapping[str, str]
    """Fingerprint of everything it reads, by name."""
    seed: int
    """Decides every random draw of the stage: its own seed, or else the recipe's."""
    damage: str = ""
    """What is wrong with a damaged result; empty if there is none."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "stage": self.stage_type,
            "fingerprint": self.fingerprint,
            "status": self.status,
            "reason": self.reason,
            "seconds": self.seconds,
            "path": str(self.entry.path),
        }


@dataclass(frozen=True)
class Plan:
    """All stages in the order they run."""

    recipe: Recipe
    store: Store
    run_folder: Path
    inputs: Mapping[str, ResolvedInput]
    stages: list[PlannedStage] = field(default_factory=list)
    machine_file: MachineFile = field(default_factory=MachineFile)
    """How the work is spread over devices. No fingerprint depends on it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.name,
            "folder": str(self.run_folder),
            "inputs": {name: value.fingerprint for name, value in self.inputs.items()},
            "machine_file": {"source": self.machine_file.source, **self.machine_file.settings.model_dump(mode="json")},
            "stages": [stage.to_json() for stage in self.stages],
        }


def semantic_config(config: StageConfig) -> dict[str, Any]:
    """The part of a stage's configuration that can change a byte of its result.

    The seed is not part of it: the seed that the stage runs with counts, and it may come from the recipe.
    """
    pruned: dict[str, Any] = _pruned(config.model_dump(mode="json"), _outside(config))
    return pruned


def _outside(config: StageConfig) -> set[FieldPath]:
    """Paths of the entries of a configuration that are not in the fingerprint."""
    return {*execution_paths(config), ("seed",)}


def _pruned(value: Any, paths: set[FieldPath], here: FieldPath = ()) -> Any:
    """`value` without the entries at `paths`, which lead through mappings only."""
    if not isinstance(value, dict):
        return value
    return {key: _pruned(item, paths, (*here, key)) for key, item in value.items() if (*here, key) not in paths}


def effective_seed(node: StageNode, recipe: Recipe) -> int:
    """The seed that a stage runs with: its own, or else the recipe's."""
    assert isinstance(node.config, StageConfig)
    return recipe.seed if node.config.seed is None else node.config.seed


def stage_fingerprint(node: StageNode, recipe: Recipe, inputs: Mapping[str, str]) -> str:
    """Stage type and code version, semantic configuration, seed, and the content of every input in place of its name."""
    stage, config = STAGES[node.type], node.config
    assert isinstance(config, StageConfig)
    plain = semantic_config(config)
    # Names count only in a stage whose result shows them, such as compare.
    names = {"recipe": recipe.name} if config.labels_matter else {}
    references = {}
    for path, name in iterate_references(config):
        place = "/".join(map(str, path))
        references[place] = inputs[name]
        names |= {place: str(name)} if config.labels_matter else {}
        around: Any = reduce(getitem, path[:-1], plain)  # type: ignore[arg-type]  # mappings and lists
        around[path[-1]] = None
    code = {"stage": stage.name, "version": stage.version}
    # As text, because the order of scorers is the order of columns, and canonical JSON would sort it away.
    text = json.dumps(plain, ensure_ascii=False)
    return fingerprint({**code, "seed": effective_seed(node, recipe), "config": text, "inputs": references, "labels": names})


def make_plan(
    recipe: Recipe,
    out: Path,
    *,
    only: str | None = None,
    start: str | None = None,
    until: str | None = None,
    store: Path | None = None,
    sizes_only: bool = False,
    look: Callable[[Plan], list[Finding]] | None = None,
    machine_file: MachineFile | None = None,
) -> Plan:
    """Decide for every stage whether its result exists. Reads and hashes files; writes nothing but the cache of hashes.

    Args:
        out: folder of all runs; this recipe's is `out/<name>`.
        only: run this stage alone; not together with the next two.
        start: run this stage and what needs it.
        until: run this stage and what it needs.
        store: folder of the artifacts; `out/.store` when not given.
        sizes_only: a model's configuration is enough; what comes of it can be estimated, and not run.
        look: what to report beside inputs that cannot be used, from a plan without stages that has the other inputs.
        machine_file: how the work is spread over devices; default: as without a machine file.
    Raises:
        RecipeError, DataError, EnvironmentProblem: if inputs cannot be used; all of them at once.
        RecipeError: if a named stage does not exist, something needed is neither there nor chosen, a
            judge may not be asked, or the folder belongs to another recipe of the same name.
        EnvironmentProblem: if a stage to run needs bitsandbytes, and that is missing or cannot use the GPU; if the name of a
            folder is not UTF-8.
    """
    refuse_names_that_are_no_text(recipe.path.parent, out)
    artifact_store = Store(store or out / STORE_NAME)
    run_folder = out / recipe.name
    refuse_other_recipe(recipe, run_folder)
    # Before the inputs, since it needs no file.
    chosen = _chosen(recipe, only=only, start=start, until=until)
    resolved, failures = resolve_inputs(recipe, artifact_store, sizes_only=sizes_only)
    plan = Plan(recipe, artifact_store, run_folder, resolved, machine_file=machine_file or MachineFile())
    if failures:
        names = list(recipe.inputs)
        others = [] if look is None else look(plan)
        refuse(sorted([*failures, *others], key=lambda finding: names.index(finding.name)))
    known = {name: value.fingerprint for name, value in resolved.items()}
    running: set[str] = set()
    for name, node in recipe.stages.items():
        inputs = {reference: known[reference] for _, reference in node.references}
        digest, seed = stage_fingerprint(node, recipe, inputs), effective_seed(node, recipe)
        # A fingerprint needs no result, so later stages have theirs before anything has run.
        known[name] = digest
        entry = artifact_store.entry(node.type, digest)
        state, problem = entry.check(artifact_store.hashes)
        manifest = entry.read_manifest() if state == "done" else None
        status: Status = "cached" if state == "done" else ("run" if name in chosen else "skipped")
        if status == "cached":
            reason = "the result is there"
        else:
            running.add(name)
            # The link still leads to the result of the previous run, whose manifest says what it was made from.
            previous = Entry(run_folder / LINKS_NAME / name).read_manifest()
            changed = [reference for reference in inputs if reference in running]
            reason = f"damaged: {problem}" if problem else why_run(node, inputs, previous, changed, seed=seed)
            # Two names for one result: the first stage makes it, the second finds it in the store.
            twin = next((stage.name for stage in plan.stages if stage.entry.path == entry.path), None)
            reason = f"the same as {twin}" if twin else reason
        seconds = manifest.seconds if manifest else None
        planned = PlannedStage(name, node.type, digest, status, reason, seconds, entry, node, inputs, seed, problem)
        plan.stages.append(planned)
    # Before the checks: a plan that is refused has hashed large files too.
    artifact_store.hashes.save()
    _check_complete(plan)
    _check_judges(plan)
    _check_packages(plan)
    return plan


def why_run(node: StageNode, inputs: Mapping[str, str], previous: Manifest | None, changed: list[str], *, seed: int) -> str:
    """In a few words, what differs from the result that this stage had in the previous run."""
    if previous is None:
        return "no result yet"
    assert isinstance(node.config, StageConfig)
    differences = []
    if previous.stage_version != STAGES[node.type].version:
        differences.append("the code of this stage changed")
    # A manifest has the whole configuration; fields that do not count must not show as differences.
    before = _pruned(previous.config, _outside(node.config))
    differences += list(_differences(before, semantic_config(node.config)))
    differences += list(_differences({"seed": previous.seed}, {"seed": seed}))
    differences += [f"{name} changes" for name in inputs if name in changed]
    differences += [
        f"{name} changed" for name, digest in inputs.items() if name not in changed and previous.inputs.get(name) != digest
    ]
    # Nothing differs if the old result was removed from the store.
    return ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "") or "no result yet"


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        short = len(str(old)) + len(str(new)) <= 60
        yield f"{path}: {old} → {new}" if short else f"{path} changed"


def _chosen(recipe: Recipe, *, only: str | None, start: str | None, until: str | None) -> set[str]:
    if only is not None and (start is not None or until is not None):
        # Their intersection would be that stage or nothing, and who writes both expects more.
        text = f"--only {only}: not together with {'--from' if start is not None else '--until'}"
        raise RecipeError(text, hint="--only runs one stage; --from A --until B runs what is between the two, both included.")
    for name in (only, start, until):
        if name is not None and name not in recipe.stages:
            raise RecipeError(f"{name}: the recipe has no such stage{_stage_meant(name, recipe)}", hint=_stages_hint(recipe))
    names = set(recipe.stages)
    if only is not None:
        names &= {only}
    if until is not None:
        names &= needed_by(recipe, until)
    if start is not None:
        names &= {name for name in recipe.stages if start in needed_by(recipe, name)}
    return names


def _stage_meant(name: str, recipe: Recipe) -> str:
    # The name of rounds, or of a stage with several seeds, stands for the last of its stages.
    last = {str(recipe.expansion.written(("stages", stage))[1]): stage for stage in recipe.stages}
    names = {**last, **{stage: stage for stage in recipe.stages}}
    # Or the type of a stage that has another name.
    kind = stage_type_of(name, STAGES)
    typed = [key for key, stage in recipe.stages.items() if stage.type == kind]
    misspelt = name if name in last else nearest(name, names, likeness=MISSPELT)
    near = names.get(misspelt or "") or next(iter(typed), None) or names.get(nearest(name, names) or "")
    return f"; did you mean '{near}'?" if near else ""


def _stages_hint(recipe: Recipe) -> str:
    return f"Its stages are {listing(recipe.stages, limit=ALL_CHARACTERS)}."


def needed_by(recipe: Recipe, name: str) -> set[str]:
    """A stage and every stage and input it needs, directly or not."""
    found, open_names = set(), [name]
    while open_names:
        if (current := open_names.pop()) not in found:
            found.add(current)
            open_names += [reference for _, reference in recipe.stages[current].references] if current in recipe.stages else []
    return found


def _check_complete(plan: Plan) -> None:
    """A chosen stage can run only if each stage that it needs has a result or is chosen too."""
    missing = {stage.name for stage in plan.stages if stage.status == "skipped"}
    for stage in plan.stages:
        lacking = [name for name in stage.inputs if name in missing]
        if stage.status == "run" and lacking:
            *others, last = lacking
            names, none = f"{', '.join(others)} and {last}", "which have no result yet and are"
            if not others:
                names, none = last, "which has no result yet and is"
            needed = needed_by(plan.recipe, stage.name) & missing
            behind = [name for name in plan.recipe.stages if name in needed]
            raise RecipeError(
                f"{stage.name} needs {names}, {none} not among the chosen stages",
                hint=f"`--until {stage.name}` runs it after what it needs: {listing(behind)}.",
            )


def _check_judges(plan: Plan) -> None:
    """Texts and a key leave the machine only where the user allowed it. Cached stages send nothing, so they are not checked."""
    for stage in plan.stages:
        for path, judge in iterate_judges(stage.node.config) if stage.status == "run" else ():
            if refusal := judge.refusal(os.environ):
                field, problem, hint = refusal
                place = ("stages", stage.name, *path, field)
                raise RecipeError(f"{plan.recipe.where(place)}: {show_path(place)}: {problem}", hint=hint)


def _check_packages(plan: Plan) -> None:
    """Hours before a stage would find out."""
    for stage in plan.stages:
        config = stage.node.config
        if stage.status == "run" and isinstance(config, Trains):
            needs = config.training_needs()
            require_for_optimizer(needs.memory.optimizer, stage.name)
            if needs.peft is not None and needs.peft.method == "qlora":
                require_for_qlora(stage.name)
        if stage.status == "run" and any(isinstance(part, MathAnswerRule) for _, part in iterate_parts(config)):
            require_math_verify(f"{stage.name}: a rule of the type math_answer")
