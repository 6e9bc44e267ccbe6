"""What a model was made from, and the comparisons it was measured in: read from manifests, by fingerprint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import EnvironmentProblem
from align.export.source import STAGES_NAME, ModelSource
from align.report.results import ModelResult, Results
from align.runtime.plain_file import read_small_file
from align.store.artifact import INPUT_STAGE, ROWS_NAME, Artifact, Entry, Manifest

RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class Step:
    """One thing the model was made from, or the model itself."""

    name: str
    """What the recipe calls it."""
    fingerprint: str
    manifest: Manifest | None
    """None where it is not in the store: models that came from outside, and what was removed since."""
    source: str | None
    """Where it came from, if from outside."""
    path: Path | None = None
    """Its entry in the store."""
    outside_kind: str = "model"
    """Its kind where it has no entry: models and files of scored candidates from outside are read where they lie."""

    @property
    def stage(self) -> str:
        """Type of the stage, or `input`."""
        return INPUT_STAGE if self.manifest is None else self.manifest.stage

    @property
    def kind(self) -> str:
        """Kind of the artifact."""
        if self.manifest is not None:
            return self.manifest.kind
        return self.outside_kind if self.source is not None else "no longer in the store"

    @property
    def rows(self) -> int | None:
        return None if self.manifest is None else self.manifest.rows_out

    @property
    def rows_sha256(self) -> str | None:
        """sha256 of the rows of data."""
        entry = None if self.manifest is None else self.manifest.files.get(ROWS_NAME)
        return None if entry is None else entry.sha256


@dataclass(frozen=True)
class Comparison:
    """A comparison that includes the model, and the model's name in it."""

    name: str
    """Name of the stage."""
    manifest: Manifest
    results: Results
    model: str

    @property
    def row(self) -> ModelResult:
        """The model's own numbers."""
        row = self.results.models.get(self.model)
        if row is not None:
            return row
        methods = self.results.models.values()
        return next(method.replicates[self.model] for method in methods if method.replicates and self.model in method.replicates)

    @property
    def baseline_row(self) -> ModelResult:
        return self.results.models[self.results.baseline]

    def is_trained_scorer(self, scorer: str) -> bool:
        """Whether the scorer is a reward model, or an ensemble of them, rather than a set of rules."""
        return bool(self._reward_models(scorer))

    def scorer_fingerprints(self, scorer: str) -> set[str]:
        """Fingerprints of the reward models that a scorer is made of."""
        return {self.manifest.inputs[name] for name in self._reward_models(scorer) if name in self.manifest.inputs}

    def _reward_models(self, scorer: str) -> list[str]:
        config = self.manifest.config["scorers"][scorer]
        return [config] if isinstance(config, str) else config.get("ensemble", [])


def trace(artifact: Artifact) -> list[Step]:
    """Everything the artifact was made from, each input before its users; the artifact itself is last."""
    entries = _entries_by_fingerprint(artifact.path.parent)
    steps: dict[str, Step] = {}

    def visit(
        name: str, fingerprint: str, manifest: Manifest | None, source: str | None, path: Path | None, outside_kind: str = "model"
    ) -> None:
        # Stages share inputs: each is listed once, where it is first needed.
        if fingerprint in steps:
            return
        for input_name, digest in () if manifest is None else manifest.inputs.items():
            entry = entries.get(digest)
            found = None if entry is None else entry.read_manifest()
            outside = None if manifest is None else manifest.input_sources.get(input_name)
            kind = "scored_candidates" if manifest is not None and manifest.config.get("scored") == input_name else "model"
            visit(input_name, digest, found, outside, entry.path if entry and found else None, kind)
        # After its inputs, which gives the order in which things were made.
        steps[fingerprint] = Step(name, fingerprint, manifest, source, path, outside_kind)

    visit(artifact.name, artifact.fingerprint, artifact.manifest, artifact.manifest.source, artifact.path)
    return list(steps.values())


def _refuse_damaged(comparison: Entry) -> None:
    state, problem = Entry.given(comparison.path).verify(lambda name: name == RESULTS_NAME)
    if state != "done":
        raise EnvironmentProblem(
            f"{comparison.path}: {problem}", hint="Run the recipe that makes it again; it repairs what is damaged."
        )


def comparisons_with(source: ModelSource) -> list[Comparison]:
    """The comparisons of the model's run whose models have its fingerprint.

    Raises:
        EnvironmentProblem: if one is damaged.
    """
    if source.artifact is None or source.run is None:
        return []
    found = []
    for entry in _entries_of_run(source.run):
        manifest = entry.read_manifest()
        if manifest is None or manifest.kind != "comparison":
            continue
        _refuse_damaged(entry)
        named = [name for name in manifest.config.get("models", ()) if manifest.inputs.get(name) == source.artifact.fingerprint]
        results = _read_results(entry.path / RESULTS_NAME)
        # One model may have several names in a comparison; one row of numbers is enough.
        if named and results is not None and named[0] in _rows_of(results):
            found.append(Comparison(entry.path.name, manifest, results, named[0]))
    return found


def prompts_of(source: ModelSource, steps: list[Step], comparisons: list[Comparison]) -> Path | None:
    """File of the prompts that the model was compared on, or else trained on; None if there are none."""
    if source.artifact is None:
        return None
    entries = _entries_by_fingerprint(source.artifact.path.parent)
    compared = [entries.get(one.manifest.inputs.get(one.manifest.config["prompts"], "")) for one in comparisons]
    used = [Entry(step.path) for step in steps if step.kind == "prompts" and step.path is not None]
    for entry in [*compared, *used]:
        if entry is not None and (entry.path / ROWS_NAME).exists():
            return entry.path / ROWS_NAME
    return None


def _entries_by_fingerprint(store_root: Path) -> dict[str, Entry]:
    paths = [path for path in sorted(store_root.iterdir()) if path.is_dir() and not path.name.startswith("quarantine-")]
    # Names are <type>-<fingerprint>. Quarantined entries, left out above, end with a time instead.
    return {path.name.rpartition("-")[2]: Entry(path) for path in paths}


def _entries_of_run(run: Path) -> Iterator[Entry]:
    folder = run / STAGES_NAME
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        yield Entry(path)


def _read_results(path: Path) -> Results | None:
    """The results, or None where another version of align wrote them in another form."""
    try:
        value: Any = json.loads(read_small_file(path))
        return Results.from_json(value)
    except (OSError, ValueError, RecursionError):
        return None


def _rows_of(results: Results) -> set[str]:
    return {*results.models, *(name for row in results.models.values() for name in row.replicates or ())}
