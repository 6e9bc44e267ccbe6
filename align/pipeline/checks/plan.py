"""Every check of a plan. What a stage would make does not exist yet, so only inputs are looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from align.config.inputs import DataInput, ModelInput
from align.config.names import show_path
from align.config.recipe import Recipe
from align.config.row_need import RowNeed
from align.data.template import ChatFormat
from align.errors import AlignError
from align.models.chat_format import load_format
from align.models.file_tokenizer import read_format
from align.models.files import ADDITIONAL_TEMPLATES_NAME, TOKENIZER_NAME, weight_files
from align.models.folder import ModelFolder
from align.pipeline.checks.cache import FindingCache
from align.pipeline.checks.finding import Finding, refuse
from align.pipeline.checks.held_out import check_held_out, choices_and_comparisons
from align.pipeline.checks.limits import Reading, Rows, check_fit, check_limits, check_rate
from align.pipeline.checks.model import check_model, check_teacher
from align.pipeline.checks.needs import artifact_rows, check_need, needs_of
from align.pipeline.checks.rows import Head, check_rows, is_local, keeps_all, read_head
from align.pipeline.checks.spread import check_spread
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import starting_folder
from align.pipeline.inputs import ResolvedInput
from align.pipeline.plan import Plan, PlannedStage, make_plan
from align.training.needs import Trains

MODEL_FIELDS = ("model", "models")
"""Fields of a stage that name the models whose prompts it renders."""
SMALL_FILES = (".json", ".jinja", ".model", ".txt")
"""Endings of the files that decide a chat format."""


def checked_plan(
    recipe: Recipe, out: Path, *, quick: bool = False, machine: Machine | None = None, **choice: Any
) -> tuple[Plan, list[Finding]]:
    """A plan that nothing stands in the way of, and what is worth knowing before it runs.

    Args:
        quick: do not look into rows and models.
        machine: whose devices would do the work; default: this one.
        choice: see `make_plan`.
    Raises:
        RecipeError, DataError, EnvironmentProblem: everything that stands in the way, all at once; and see `make_plan`.
    """
    plan = make_plan(recipe, out, look=None if quick else check_inputs, **choice)
    findings = [*check_spread(plan, machine), *([] if quick else check_plan(plan))]
    refuse(findings)
    return plan, findings


def check_plan(plan: Plan) -> list[Finding]:
    """What stands in the way of the stages to run, and what is worth knowing before."""
    return list(_PlanChecker(plan).findings())


def check_inputs(plan: Plan) -> list[Finding]:
    """What stands in the way in the inputs alone, of whose stages nothing is known."""
    return list(_PlanChecker(plan).of_inputs(list(plan.inputs)))


class _PlanChecker:
    """The checks of one plan, each file read once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._cache = FindingCache(plan.store.root)
        self._to_run = [stage for stage in plan.stages if stage.status == "run"]
        self._head = cache(self._read_head)
        self._format = cache(_format_or_none)
        self._content = cache(self._read_content)

    def findings(self) -> Iterator[Finding]:
        """All findings: of rows, of models, then of stages."""
        found: list[Finding] = []
        if self._to_run:
            found += self.of_inputs(self._named())
            refused = {finding.name for finding in found if finding.action == "refuse"}
            for stage in self._to_run:
                found += self._of_stage(stage, refused)
        self._plan.store.hashes.save()
        self._cache.save()
        # Two stages of one form may say the same.
        yield from dict.fromkeys(found)

    def of_inputs(self, models: Sequence[str]) -> Iterator[Finding]:
        """Findings of all rows, then of these models."""
        for name, resolved in self._plan.inputs.items():
            yield from self._of_rows(name, resolved)
        for name in models:
            if isinstance(self._spec(name), ModelInput):
                yield from self._of_model(name, self._plan.inputs[name])

    def _place(self, *path: str | int) -> str:
        return f"{self._plan.recipe.where(path)}: {show_path(path)}"

    def _of_rows(self, name: str, resolved: ResolvedInput) -> list[Finding]:
        spec, source = resolved.spec, resolved.source
        # Rows in the store were validated in full.
        if resolved.artifact is not None or not isinstance(spec, DataInput) or source is None:
            return []
        where = self._place("inputs", name)
        key = [resolved.fingerprint, where, source.shown, [file.shown for file in source.files]]
        return self._cache.findings(key, lambda: check_rows(name, where, spec, source))

    def _named(self) -> list[str]:
        """Inputs and stages that a stage to run names."""
        named = [name for stage in self._to_run for name in stage.inputs]
        return list(dict.fromkeys(named))

    def _spec(self, name: str) -> Any:
        resolved = self._plan.inputs.get(name)
        return None if resolved is None else resolved.spec

    def _of_model(self, name: str, resolved: ResolvedInput) -> list[Finding]:
        folder = resolved.model
        assert folder is not None  # every model input has one
        where = self._place("inputs", name)
        scores = resolved.spec.kind == "reward_model"
        key = [self._content(folder), where, str(folder.path), scores]
        found = self._cache.findings(key, lambda: check_model(name, where, folder, scores=scores))
        return [self._for_these_rows(finding) for finding in found]

    def _for_these_rows(self, finding: Finding) -> Finding:
        """A finding about rows of some kind refuses a run only where the first rows are of that kind."""
        is_moot = finding.feature and finding.feature not in self._row_features()
        return replace(finding, action="warn") if is_moot else finding

    def _read_content(self, folder: ModelFolder) -> list[Any]:
        """Everything that its chat format and its facts depend on."""
        hashes = self._plan.store.hashes
        places = [*folder.path.iterdir(), *(folder.path / ADDITIONAL_TEMPLATES_NAME).glob("*")]
        files = [file for file in sorted(places) if file.is_file() and file.suffix in SMALL_FILES]
        chat = folder.chat_settings.model_dump(mode="json", exclude_defaults=True)
        weights = [] if folder.is_configuration_alone or folder.is_adapter else weight_files(folder.path)
        headers = [[name, (folder.path / name).stat().st_size, _header_digest(folder.path / name)] for name in weights]
        return [[[file.name, hashes.of(file)] for file in files], headers, chat]

    def _row_features(self) -> frozenset[str]:
        """Which features of `OF_SOME_ROWS` the first rows have."""
        records = [record for name in self._plan.inputs if (head := self._head(name)) is not None for record in head.records]
        prompts = [record.prompt for record in records if hasattr(record, "prompt")]
        system = any(message.role == "system" for prompt in prompts for message in prompt)
        turns = any(message.role == "assistant" for prompt in prompts for message in prompt)
        return frozenset(name for name, there in (("system_message", system), ("two_turns", turns)) if there)

    def _read_head(self, name: str) -> Head | None:
        """The first rows of a data input; None where there are none to read."""
        resolved = self._plan.inputs[name]
        if not isinstance(resolved.spec, DataInput) or resolved.source is None or not is_local(resolved.source):
            return None
        try:
            return read_head(resolved.source, resolved.spec)
        except AlignError:  # `check_rows` reports it
            return None

    def _of_stage(self, stage: PlannedStage, refused: set[str]) -> list[Finding]:
        config, where = stage.node.config, self._place("stages", stage.name)
        found = check_rate(stage.name, where, config)
        models = {name: folder for name in self._model_names(stage) if (folder := starting_folder(self._plan, name)) is not None}
        folders = {folder.path: folder for folder in models.values()}
        for folder in folders.values():
            reading = Reading(stage.name, config, folder)
            found += check_limits(reading, where)
            if any(finding.action == "refuse" for finding in found) or not self._is_readable(folder, refused):
                continue
            for name in dict.fromkeys(stage.inputs):
                if name not in refused and isinstance(self._spec(name), DataInput):
                    found += self._of_reading(reading, name)
        found += self._of_teacher(stage, refused)
        for need, name in needs_of(self._plan, stage):
            if name not in refused:
                found += self._of_need(stage.name, need, name)
        for own, held, comparison in choices_and_comparisons(self._plan, stage):
            if own not in refused and held not in refused:
                found += self._of_held_out(stage.name, own, held, comparison)
        return found

    def _of_teacher(self, stage: PlannedStage, refused: set[str]) -> list[Finding]:
        """Whether a teacher and its student have the same tokens, where the stage has a teacher."""
        needs = stage.node.config.training_needs() if isinstance(stage.node.config, Trains) else None
        if needs is None or needs.teacher is None:
            return []
        names = needs.model, needs.teacher.model
        folders = [starting_folder(self._plan, name) for name in names]
        student, teacher = (folder if folder is not None and self._is_readable(folder, refused) else None for folder in folders)
        if student is None or teacher is None:
            return []
        where = self._place("stages", stage.name, "teacher")
        key = [where, *names, self._content(student), self._content(teacher)]
        formats = self._format(student), self._format(teacher)
        return self._cache.findings(key, lambda: check_teacher(stage.name, where, names, (student, teacher), formats))

    def _is_readable(self, folder: ModelFolder, refused: set[str]) -> bool:
        return not self._is_refused(folder, refused) and (folder.path / TOKENIZER_NAME).is_file()

    def _model_names(self, stage: PlannedStage) -> list[str]:
        return [name for path, name in stage.node.references if path[0] in MODEL_FIELDS]

    def _is_refused(self, folder: ModelFolder, refused: set[str]) -> bool:
        return any(
            resolved.model is not None and resolved.model.path == folder.path and name in refused
            for name, resolved in self._plan.inputs.items()
        )

    def _of_reading(self, reading: Reading, name: str) -> list[Finding]:
        """The first rows of an input as the stage encodes them."""
        resolved = self._plan.inputs[name]
        limits = {field: getattr(reading.config, field, None) for field in _LIMIT_FIELDS}
        where = self._place("stages", reading.stage)
        key = [
            self._content(reading.folder),
            resolved.fingerprint,
            where,
            name,
            limits,
            reading.context,
            str(resolved.source and resolved.source.shown),
        ]

        def look() -> list[Finding]:
            head, source, chat_format = self._head(name), resolved.source, self._format(reading.folder)
            if head is None or not head.records or source is None or chat_format is None:
                return []
            spec, folder = resolved.spec, reading.folder
            assert isinstance(spec, DataInput)
            rows = Rows(spec.kind, head.records, source.shown, head.is_whole, keeps_all(source, spec))
            # transformers' format; without weights nothing can be loaded with it.
            again = None if folder.is_configuration_alone else partial(load_format, folder)
            return check_fit(reading, where, rows, chat_format, again)

        return self._cache.findings(key, look)

    def _of_held_out(self, stage: str, own: str, held: str, comparison: str) -> list[Finding]:
        """The prompts of a choice against those of a comparison."""
        recipe, inputs = self._plan.recipe, self._plan.inputs
        path = ("stages", stage, "prompts")
        where = f"{recipe.where(path)}: {show_path(recipe.expansion.written(path))}"
        key = [where, own, held, comparison, inputs[own].fingerprint, inputs[held].fingerprint, inputs[own].artifact is None]
        return self._cache.findings(key, lambda: check_held_out(stage, where, inputs[own], inputs[held], comparison))

    def _of_need(self, stage: str, need: RowNeed, name: str) -> list[Finding]:
        """The first rows of an input, for what the stage reads beyond their kind."""
        resolved, source = self._plan.inputs[name], self._plan.inputs[name].source
        where = self._place("stages", stage, *need.reader)
        said = [need.field, need.reason, need.alternative]
        key = [resolved.fingerprint, where, *said, name, [file.shown for file in source.files] if source else []]

        def look() -> list[Finding]:
            head, spec, artifact = self._head(name), resolved.spec, resolved.artifact
            if head is not None and source is not None and isinstance(spec, DataInput):
                rows = Rows(spec.kind, head.records, source.shown, head.is_whole, keeps_all(source, spec))
                there = dict.fromkeys(str(column) for row in head.raw for column in row)
                used = {*spec.row_kind.fields, *spec.columns.values()}
                # Where the field is there, it holds something else than the stage needs.
                unused = [] if need.field in there else [column for column in there if column not in used]
                return check_need(stage, where, need, rows, unused)
            try:
                # Rows of a hub's dataset that are in the store, candidates in files, and results of other runs.
                return [] if artifact is None else check_need(stage, where, need, artifact_rows(artifact, need))
            except AlignError as error:
                of = "" if artifact is None or artifact.where(None) in error.message else f"{artifact.where(None)}: "
                return [Finding(stage, f"{where}: {of}{error.message}", error.hint or "")]

        return self._cache.findings(key, look)


_LIMIT_FIELDS = ("max_tokens", "max_prompt_tokens", "max_completion_tokens", "train_on", "on_invalid")


def _format_or_none(folder: ModelFolder) -> ChatFormat | None:
    try:
        return read_format(folder)
    except Exception:  # tokenizers raises bare Exceptions; of an input `check_model` says what is wrong
        return None


def _header_digest(file: Path) -> str:
    """Of the names and shapes of a weight file, which is not read beyond them."""
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read(int.from_bytes(stream.read(8), "little"))).hexdigest()
