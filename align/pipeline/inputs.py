"""Inputs of a recipe as artifacts: fingerprinted by content, checked before anything heavy starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config.inputs import ArtifactInput, DataInput, ModelInput
from align.config.recipe import Recipe
from align.data.ingest import ingest
from align.errors import AlignError, DataError, RecipeError
from align.models.folder import check_model_folder
from align.models.hub import fetch_model
from align.store.artifact import INPUT_STAGE, Artifact, Entry, Manifest, Store
from align.store.fingerprint import fingerprint
from align.store.lock import hold

# Raised whenever the same file would give other rows than before.
INGEST_VERSION = 1
# Files of a model folder that nothing reads.
NOT_MODEL_FILES = {".md", ".png", ".jpg", ".gitattributes", ".lock"}


@dataclass(frozen=True)
class ResolvedInput:
    """An input whose content is known. `artifact` is None while its rows are not in the store yet."""

    name: str
    fingerprint: str
    artifact: Artifact | None
    spec: ModelInput | DataInput | ArtifactInput
    source: Path | None
    shown_source: str


def resolve_inputs(recipe: Recipe, store: Store) -> dict[str, ResolvedInput]:
    """Find and fingerprint every input; reads model files and data files, writes nothing.

    Raises:
        RecipeError, EnvironmentProblem: every unusable model folder, hub id or artifact, all at once.
    """
    resolved: dict[str, ResolvedInput] = {}
    failures: list[AlignError] = []
    for name, spec in recipe.inputs.items():
        try:
            if isinstance(spec, ModelInput):
                resolved[name] = _resolve_model(recipe, name, spec, store)
            elif isinstance(spec, ArtifactInput):
                resolved[name] = _resolve_artifact(recipe, name, spec, store)
            else:
                resolved[name] = _resolve_data(recipe, name, spec, store)
        except AlignError as error:
            failures.append(error)
    _raise_all(failures)
    store.hashes.save()
    return resolved


def _raise_all(failures: list[AlignError]) -> None:
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise type(failures[0])("\n".join(failure.message for failure in failures), hint=failures[0].hint)


def _manifest(kind: str, digest: str, spec: Any, source: str, **more: Any) -> Manifest:
    config = spec.model_dump(mode="json", exclude_none=True)
    fields: dict[str, Any] = {"stage_version": INGEST_VERSION, "inputs": {}, "seed": None, **more}
    return Manifest(kind=kind, stage=INPUT_STAGE, fingerprint=digest, config=config, source=source, **fields)


def _resolve_model(recipe: Recipe, name: str, spec: ModelInput, store: Store) -> ResolvedInput:
    if spec.hub_id is not None:
        folder, commit = fetch_model(spec.hub_id, spec.revision or "main")
        shown = f"{spec.hub_id}@{commit}"
    else:
        folder = recipe.locate(spec.path or "")
        shown = str(folder)
    check_model_folder(folder)
    files = {
        path.name: store.hashes.of(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix not in NOT_MODEL_FILES and not path.name.startswith(".")
    }
    digest = fingerprint({"kind": spec.kind, "files": files})
    artifact = Artifact(name, folder.resolve(), _manifest(spec.kind, digest, spec, shown))
    return ResolvedInput(name, digest, artifact, spec, folder, shown)


def _resolve_artifact(recipe: Recipe, name: str, spec: ArtifactInput, store: Store) -> ResolvedInput:
    folder = recipe.locate(spec.artifact).resolve()
    entry = Entry(folder)
    state, problem = entry.check(store.hashes)
    manifest = entry.read_manifest()
    if state != "done" or manifest is None:
        raise RecipeError(
            f"{recipe.where(('inputs', name))}: {spec.artifact}: {problem or 'holds no finished result of align'}",
            hint="Run the recipe that makes it again; it repairs what is damaged.",
        )
    return ResolvedInput(name, manifest.fingerprint, Artifact(name, folder, manifest), spec, folder, str(folder))


def _resolve_data(recipe: Recipe, name: str, spec: DataInput, store: Store) -> ResolvedInput:
    how = spec.model_dump(mode="json", exclude={"path"})
    path = recipe.locate(spec.path) if spec.path is not None else None
    content = {"sha256": store.hashes.of(path), "suffixes": path.suffixes} if path is not None else None
    digest = fingerprint({"ingest": INGEST_VERSION, "how": how, "content": content})
    entry = store.entry(INPUT_STAGE, digest)
    artifact = store.load(name, entry) if entry.check(store.hashes)[0] == "done" else None
    return ResolvedInput(name, digest, artifact, spec, path, str(path) if path is not None else str(spec.dataset))


def import_inputs(
    inputs: Mapping[str, ResolvedInput], store: Store, report: Callable[[dict[str, Any]], None]
) -> dict[str, Artifact]:
    """Every input as an artifact; the rows of data inputs are read, validated and written to the store where they are not yet.

    Raises:
        DataError: the unusable rows of all files, before anything heavy is started.
    """
    artifacts: dict[str, Artifact] = {}
    failures: list[AlignError] = []
    for name, resolved in inputs.items():
        if resolved.artifact is not None:
            artifacts[name] = resolved.artifact
            continue
        try:
            artifacts[name] = _import_rows(resolved, store, report)
        except DataError as error:
            failures.append(error)
    _raise_all(failures)
    return artifacts


def _import_rows(resolved: ResolvedInput, store: Store, report: Callable[[dict[str, Any]], None]) -> Artifact:
    spec = resolved.spec
    assert isinstance(spec, DataInput)  # only data inputs can be without an artifact
    entry = store.entry(INPUT_STAGE, resolved.fingerprint)

    def waiting(holder: str) -> None:
        report({"event": "waiting", "stage": resolved.name, "holder": holder})

    with hold(entry.lock_path, on_wait=waiting):
        state, problem = entry.check(store.hashes)
        if state == "damaged":
            report({"event": "quarantined", "stage": resolved.name, "path": str(entry.quarantine()), "problem": problem})
        if state != "done":
            started = time.perf_counter()
            entry.begin()
            result = ingest(spec, resolved.source, resolved.shown_source, entry.path)
            entry.commit(
                _manifest(
                    spec.kind,
                    resolved.fingerprint,
                    spec,
                    result.source,
                    rows_in=result.rows_in,
                    rows_out=result.rows_out,
                    dropped=result.dropped,
                    metrics={"findings": result.findings, "notes": result.notes},
                    seconds=time.perf_counter() - started,
                )
            )
            for note in result.notes:
                report({"event": "note", "stage": resolved.name, "text": note})
    return store.load(resolved.name, entry)
