"""Inputs of a recipe as artifacts: fingerprinted by content, and checked before expensive work starts."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.config.inputs import ArtifactInput, CandidatesInput, DataInput, ModelInput
from align.config.recipe import Recipe
from align.data.evaluation import evaluation_index
from align.data.quality.overlap import EvaluationIndex
from align.data.source import HubRows, Source, SourceFile, find_files, find_source
from align.errors import AlignError, DataError, EnvironmentProblem, RecipeError
from align.models.added_tokens import refuse_added, write_with_tokens
from align.models.chat_settings import resolve_chat
from align.models.files import is_configuration_alone
from align.models.folder import ModelFolder
from align.models.hub import fetch_model
from align.pipeline.checks.finding import Finding, found_by, refuse
from align.records import is_list
from align.runtime.events import Emit, Note, Quarantined, Waiting
from align.selection.files.open import open_file
from align.selection.files.reader import RowFile
from align.store.artifact import INPUT_STAGE, Artifact, Entry, FileEntry, Manifest, Store
from align.store.atomic import sync_tree
from align.store.fingerprint import fingerprint
from align.store.lock import hold
from align.system_errors import explained, refuse_unreadable

# Raised whenever the same file would give other rows than before.
INGEST_VERSION = 4
TOKENS_VERSION = 1
"""Raised whenever the same tokens would get other rows than before."""
# Files of a model folder that nothing reads.
NOT_MODEL_FILES = {".md", ".png", ".jpg", ".gitattributes", ".lock"}


@dataclass(frozen=True)
class ResolvedInput:
    """An input whose content is known."""

    name: str
    fingerprint: str
    artifact: Artifact | None
    """None while its rows, or a model with added tokens, are not in the store yet."""
    spec: ModelInput | DataInput | CandidatesInput | ArtifactInput
    source: Source | None
    """Where the rows of a data input are; None for any other input."""
    evaluations: tuple[ResolvedInput, ...] = ()
    """Prompts that its rows must not overlap."""
    model: ModelFolder | None = None
    """None for rows."""


def resolve_inputs(recipe: Recipe, store: Store, *, sizes_only: bool = False) -> tuple[dict[str, ResolvedInput], list[Finding]]:
    """Find and fingerprint every input; reads model files and data files, writes nothing.

    Args:
        sizes_only: take a model's configuration without weights too, and fetch no weights from a hub.
    Returns:
        the inputs that can be used, and why each of the others cannot.
    """
    resolved: dict[str, ResolvedInput] = {}
    failures: list[Finding] = []
    for name, spec in recipe.inputs.items():
        try:
            with explained(recipe.folder):
                resolved[name] = _resolve(recipe, name, spec, store, sizes_only=sizes_only)
        except AlignError as error:
            failures.append(found_by(name, _with_place(error, recipe, name, spec)))
    store.hashes.save()
    return resolved, failures


def _resolve(recipe: Recipe, name: str, spec: Any, store: Store, *, sizes_only: bool) -> ResolvedInput:
    if isinstance(spec, ModelInput):
        return _resolve_model(recipe, name, spec, store, sizes_only=sizes_only)
    if isinstance(spec, ArtifactInput):
        return _resolve_artifact(recipe, name, spec, store)
    if isinstance(spec, CandidatesInput):
        return _resolve_candidates(recipe, name, spec, store)
    return _resolve_data(recipe, name, spec, store)


def _hash_of(path: Path, store: Store) -> str:
    refuse_unreadable(path)
    return store.hashes.of(path)


def _with_place(error: AlignError, recipe: Recipe, name: str, spec: Any) -> AlignError:
    """The error with the line of the recipe that names the file, folder or id, where it has none."""
    key = next((key for key in ("path", "hub_id", "artifact", "dataset") if getattr(spec, key, None)), "kind")
    where = recipe.where(("inputs", name, key))
    if error.message.startswith((where.partition(":")[0], "--")):  # a line of the file, or an option, is named already
        return error
    return type(error)(f"{where}: inputs.{name}.{key}: {error.message}", hint=error.hint)


def _manifest(kind: str, digest: str, spec: Any, source: str, **more: Any) -> Manifest:
    config = spec.model_dump(mode="json", exclude_none=True)
    fields: dict[str, Any] = {"stage_version": INGEST_VERSION, "inputs": {}, "seed": None, **more}
    return Manifest(kind=kind, stage=INPUT_STAGE, fingerprint=digest, config=config, source=source, **fields)


def _resolve_model(recipe: Recipe, name: str, spec: ModelInput, store: Store, *, sizes_only: bool) -> ResolvedInput:
    if spec.hub_id is not None:
        folder, _ = fetch_model(spec.hub_id, spec.revision or "main", weights=not sizes_only)
        if sizes_only and not is_configuration_alone(folder):  # the cache has weights, perhaps not all
            folder, _ = fetch_model(spec.hub_id, spec.revision or "main")
    else:
        folder = recipe.locate(spec.path or "")
    if spec.chat is not None:
        where = recipe.where(("inputs", name, "chat", "template"))
        chat = resolve_chat(spec.chat, ModelFolder(folder), locate=recipe.locate, where=where)
        spec = spec.model_copy(update={"chat": chat})
    if sizes_only and is_configuration_alone(folder):
        sizes = ModelFolder(folder, spec.chat)
        return ResolvedInput(name, fingerprint({"kind": spec.kind, "config": sizes.config}), None, spec, None, model=sizes)
    model = ModelFolder(folder, spec.chat).check()
    digest, files = _model_fingerprint(spec, folder, store)
    if spec.chat is not None and spec.chat.add_tokens:
        refuse_added(model, recipe.where(("inputs", name, "chat")))
        return _in_store(ResolvedInput(name, digest, None, spec, None, model=model), store)
    entries = {file: FileEntry(size_bytes=(folder / file).stat().st_size, sha256=known) for file, known in files.items()}
    artifact = Artifact(name, folder.resolve(), _manifest(spec.kind, digest, spec, _source_of(spec, folder), files=entries))
    return ResolvedInput(name, digest, artifact, spec, None, model=model)


def _model_files(folder: Path) -> list[Path]:
    """Those that something reads."""
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return [path for path in found if path.suffix not in NOT_MODEL_FILES]


def _model_fingerprint(spec: ModelInput, folder: Path, store: Store) -> tuple[str, dict[str, str]]:
    """The fingerprint of a model, and the sha256 of its files by name."""
    paths = _model_files(folder)
    store.hashes.read(paths)
    files = {path.name: _hash_of(path, store) for path in paths}
    content: dict[str, Any] = {"kind": spec.kind, "files": files}
    if spec.chat is not None:
        content["chat"] = spec.chat.model_dump(mode="json", exclude_defaults=True)
        if spec.chat.add_tokens:
            content["added_tokens"] = TOKENS_VERSION
    return fingerprint(content), files


def _source_of(spec: ModelInput, folder: Path) -> str:
    """Where a model came from; a folder in the hub's cache is named by its commit."""
    return str(folder) if spec.hub_id is None else f"{spec.hub_id}@{folder.name}"


def _in_store(resolved: ResolvedInput, store: Store) -> ResolvedInput:
    """The input with its artifact, if the store has it undamaged."""
    entry = store.entry(INPUT_STAGE, resolved.fingerprint)
    if entry.check(store.hashes)[0] != "done":
        return resolved
    return replace(resolved, artifact=store.load(resolved.name, entry))


def _resolve_artifact(recipe: Recipe, name: str, spec: ArtifactInput, store: Store) -> ResolvedInput:
    folder = recipe.locate(spec.artifact).resolve()
    entry = Entry.given(folder)
    state, problem = entry.check(store.hashes)
    manifest = entry.read_manifest()
    if state != "done" or manifest is None:
        raise RecipeError(
            f"{recipe.where(('inputs', name))}: {spec.artifact}: {problem or 'holds no finished result of align'}",
            hint="Run the recipe that makes it again; it repairs what is damaged.",
        )
    artifact = Artifact(name, folder, manifest)
    return ResolvedInput(name, manifest.fingerprint, artifact, spec, None, model=ModelFolder.of(artifact))


def _resolve_data(recipe: Recipe, name: str, spec: DataInput, store: Store) -> ResolvedInput:
    source = find_source(spec, recipe.locate)
    held_against = [(other, recipe.inputs[other]) for other in spec.decontaminate]
    evaluations = tuple(_resolve_data(recipe, other, held, store) for other, held in held_against if isinstance(held, DataInput))
    digest = _data_fingerprint(spec, source, evaluations, store)
    return _in_store(ResolvedInput(name, digest, None, spec, source, evaluations), store)


def _data_fingerprint(spec: DataInput, source: Source, evaluations: Sequence[ResolvedInput], store: Store) -> str:
    # File names do not count; content does, and the order in which files are read.
    how = spec.model_dump(mode="json", exclude={"path": True, "mixture": {"__all__": {"path"}}, "decontaminate": True})
    content = [_content_of(file, store) for file in source.files] if spec.dataset is None else None
    # Prompts of an evaluation set decide which rows are dropped, so its content counts too.
    against = [evaluation.fingerprint for evaluation in evaluations]
    return fingerprint({"ingest": INGEST_VERSION, "how": how, "content": content, "against": against})


def _resolve_candidates(recipe: Recipe, name: str, spec: CandidatesInput, store: Store) -> ResolvedInput:
    """The artifact of scored candidates; it is the user's files themselves, which are not copied."""
    place = recipe.locate(spec.path)
    files = [Path(os.path.abspath(path)) for path in find_files(place)]
    for path in files:
        open_file(RowFile(path, spec.columns)).check()
    folder = Path(os.path.commonpath([path.parent for path in files]))
    entries = {
        path.relative_to(folder).as_posix(): FileEntry(size_bytes=path.stat().st_size, sha256=_hash_of(path, store))
        for path in files
    }
    # The suffix decides how a file is parsed.
    content = [{"sha256": entry.sha256, "suffix": Path(file).suffix} for file, entry in entries.items()]
    digest = fingerprint({"ingest": INGEST_VERSION, "kind": spec.kind, "columns": spec.columns, "content": content})
    artifact = Artifact(name, folder, _manifest(spec.kind, digest, spec, str(place), files=entries))
    return ResolvedInput(name, digest, artifact, spec, None)


def _content_of(file: SourceFile, store: Store) -> dict[str, Any]:
    """Everything that a file's rows depend on. For a hub dataset, the recipe itself has the name, split and revision."""
    if isinstance(file.origin, HubRows):
        return {"part": file.part}
    content: dict[str, Any] = {"part": file.part, "sha256": _hash_of(file.origin, store), "suffixes": file.origin.suffixes}
    # Rows of a list in an older store have their line in place of their element's number.
    return content | ({"numbers": "elements"} if is_list(file.shown) else {})


def import_inputs(inputs: Mapping[str, ResolvedInput], store: Store, emit: Emit) -> dict[str, Artifact]:
    """Every input as an artifact; the store gets what it lacks: rows, read and validated, and models with added tokens.

    Raises:
        DataError: the unusable rows of all files, before expensive work starts.
    """
    artifacts: dict[str, Artifact] = {}
    failures: list[Finding] = []
    for name, resolved in inputs.items():
        if resolved.artifact is not None:
            artifacts[name] = resolved.artifact
            continue
        try:
            artifacts[name] = _import(resolved, store, emit)
        except DataError as error:
            failures.append(found_by(name, error))
    refuse(failures)
    return artifacts


def _evaluation_index(resolved: ResolvedInput) -> EvaluationIndex | None:
    """The prompts that its rows must not overlap; None where there are none."""
    sources = [(each.source, each.spec) for each in resolved.evaluations]
    if not sources:
        return None
    return evaluation_index((source, spec) for source, spec in sources if source and isinstance(spec, DataInput))


def _import(resolved: ResolvedInput, store: Store, emit: Emit) -> Artifact:
    entry = store.entry(INPUT_STAGE, resolved.fingerprint)

    def waiting(holder: str) -> None:
        emit(Waiting(stage=resolved.name, holder=holder))

    with hold(entry.lock_path, on_wait=waiting):
        state, problem = entry.check(store.hashes)
        # Checked under the lock: another run may have written it while this one waited.
        if state == "damaged":
            emit(Quarantined(stage=resolved.name, path=str(entry.quarantine()), problem=problem))
        if state != "done":
            started = time.perf_counter()
            _refuse_changed(resolved, store)
            entry.begin()
            write = _write_rows if resolved.model is None else _write_model
            manifest, notes = write(resolved, entry.path)
            entry.commit(manifest.model_copy(update={"seconds": time.perf_counter() - started}))
            for note in notes:
                emit(Note(stage=resolved.name, text=note))
    return store.load(resolved.name, entry)


def _refuse_changed(resolved: ResolvedInput, store: Store) -> None:
    """Read the files of an input, and refuse them if they are not those that were fingerprinted.

    Raises:
        EnvironmentProblem: naming the input.
    """
    spec, source, model = resolved.spec, resolved.source, resolved.model
    if isinstance(spec, ModelInput) and model is not None:
        store.hashes.read(_model_files(model.path), again=True)
        found, _ = _model_fingerprint(spec, model.path, store)
    elif isinstance(spec, DataInput) and source is not None:
        for evaluation in resolved.evaluations:
            _refuse_changed(evaluation, store)
        store.hashes.read((file.origin for file in source.files if isinstance(file.origin, Path)), again=True)
        found = _data_fingerprint(spec, source, resolved.evaluations, store)
    else:
        return
    store.hashes.save()
    if found != resolved.fingerprint:
        where = str(model.path) if model is not None else str(getattr(spec, "path", None) or resolved.name)
        raise EnvironmentProblem(
            f"inputs.{resolved.name}: {where}: is not what was planned with: it was changed meanwhile, or the disk is damaged",
            hint="Look at the file, and run the same command again to use it as it is now.",
        )


def _write_rows(resolved: ResolvedInput, folder: Path) -> tuple[Manifest, Sequence[str]]:
    spec, source = resolved.spec, resolved.source
    assert isinstance(spec, DataInput)
    assert source is not None
    from align.data.ingest import ingest  # imports NumPy, which a plan does without

    result = ingest(spec, source, folder, evaluation=_evaluation_index(resolved))
    manifest = _manifest(
        spec.kind,
        resolved.fingerprint,
        spec,
        result.source,
        rows_in=result.rows_in,
        rows_out=result.rows_out,
        dropped=result.dropped,
        metrics={"findings": result.findings, "notes": result.notes},
    )
    return manifest, result.notes


def _write_model(resolved: ResolvedInput, folder: Path) -> tuple[Manifest, Sequence[str]]:
    """The model with its added tokens."""
    spec, model = resolved.spec, resolved.model
    assert isinstance(spec, ModelInput)
    assert model is not None
    assert spec.chat is not None
    hashes = Entry(folder).known_hashes
    with hashes.touching(_model_files(model.path)):  # shards without embeddings become links to the user's
        added = write_with_tokens(model, spec.chat.add_tokens or (), folder)
    hashes.save()
    sync_tree(folder)
    return _manifest(spec.kind, resolved.fingerprint, spec, _source_of(spec, model.path)), [str(added)]
