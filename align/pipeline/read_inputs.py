"""Every file that a stage is about to read is compared with its hash, before the stage works.

The files are read here as a whole, several at once; what loads them next finds them in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from align.config.inputs import MANIFEST_NAME
from align.errors import AlignError, EnvironmentProblem, several
from align.models.adapter import find_base, locate_base, read_record
from align.models.folder import ModelFolder
from align.runtime.events import Emit, Quarantined
from align.runtime.profile import phase
from align.store.artifact import EPOCHS_NAME, INPUT_STAGE, METRICS_NAME, ROWS_NAME, Artifact, Entry, every_file
from align.store.fingerprint import HASHES_NAME, FileHashes
from align.store.lock import hold

AGAIN = "Run the same command again: it makes what is damaged again."


class DamagedInputs(EnvironmentProblem):
    """What a stage would read is not what was made. The folders of results that were moved aside are gone because of it."""


class _Reading(NamedTuple):
    """An artifact, and which of its files are read."""

    artifact: Artifact
    reads: Callable[[str], bool]
    outer_base: bool = False
    """It is an adapter whose base model is none of the run's artifacts."""


class _Damage(NamedTuple):
    problem: str
    hint: str


def without_epochs(name: str) -> bool:
    """Whether a file of a result is no model of an epoch, by its path inside."""
    return not name.startswith(f"{EPOCHS_NAME}/")


def _rows_and_curves(name: str) -> bool:
    return name in (ROWS_NAME, METRICS_NAME)


@phase("hash")
def verify_inputs(
    artifacts: Mapping[str, Artifact],
    inputs: Iterable[str],
    store_root: Path,
    emit: Emit,
    *,
    epochs: bool = False,
    origins: bool = False,
) -> None:
    """Read the inputs of a stage, and compare them with their manifests and fingerprints.

    A damaged result of this store is moved aside, so that the next run makes it again. Nothing else is moved.

    Args:
        artifacts: the inputs by name, and everything that they were made from.
        inputs: names of those that the stage reads.
        epochs: it reads the models of their epochs, too.
        origins: it reads rows and curves of what they were made from, too.
    Raises:
        DamagedInputs: naming each damaged artifact, its file, and what was found and expected.
    """
    root = store_root.resolve()
    readings = _readings(artifacts, inputs, every_file if epochs else without_epochs)
    for name, artifact in artifacts.items() if origins else ():
        readings.setdefault(name, _Reading(artifact, _rows_and_curves))
    hashes = FileHashes(root / HASHES_NAME)
    paths = (each.artifact.path / name for each in readings.values() for name in each.artifact.manifest.files if each.reads(name))
    hashes.read(paths, again=True)
    # What was found replaces what was remembered, so that the next plan knows of the damage, too.
    hashes.save()
    found = [damage for reading in readings.values() if (damage := _damage(reading, hashes, root, emit))]
    if found:
        hints = dict.fromkeys(damage.hint for damage in found)
        text = several([damage.problem for damage in found], "inputs of this stage are damaged")
        raise DamagedInputs(text, hint="\n".join(hints))


def _readings(artifacts: Mapping[str, Artifact], inputs: Iterable[str], reads: Callable[[str], bool]) -> dict[str, _Reading]:
    """What is read of each input, and of the base models of adapters among them."""
    by_folder = {artifact.model_path.resolve(): artifact for artifact in artifacts.values()}
    readings, bases = {}, {}
    for name in inputs:
        artifact, base = artifacts[name], None
        # If its record is damaged, so is the artifact; if the base is gone, the stage says so.
        with contextlib.suppress(AlignError):
            if ModelFolder(artifact.model_path).is_adapter:
                base = locate_base(artifact.model_path, read_record(artifact.model_path))
        if base in by_folder:
            bases[by_folder[base].name] = _Reading(by_folder[base], without_epochs)
        readings[name] = _Reading(artifact, reads, outer_base=base is not None and base not in by_folder)
    return {**bases, **readings}


def _damage(reading: _Reading, hashes: FileHashes, root: Path, emit: Emit) -> _Damage | None:
    """What is wrong with an artifact whose files were read, if anything is; a result of this store is moved aside."""
    artifact = reading.artifact
    in_store = artifact.path.resolve().parent == root
    if artifact.manifest.stage == INPUT_STAGE and not in_store and not (artifact.path / MANIFEST_NAME).exists():
        return _changed(artifact, hashes)
    entry = Entry(artifact.path.resolve()) if in_store else Entry.given(artifact.path)
    state, problem = entry.check(hashes, reading.reads)
    if state == "missing":
        return _Damage(f"{artifact.name}: {entry.path}: the result was removed while it was needed", AGAIN)
    manifest = entry.read_manifest()
    if state == "done" and (manifest is None or manifest.files != artifact.manifest.files):
        return _Damage(f"{artifact.name}: {entry.path}: another result took its place", AGAIN)
    if state == "done":
        return _base_problem(reading)
    if not in_store:
        hint = "Run `align store verify` on the runs it belongs to, then the recipe that makes it: it repairs what is damaged."
        return _Damage(f"{artifact.name}: {entry.path}: damaged: {problem}", hint)
    with hold(entry.lock_path, on_wait=lambda holder: None, give_up=lambda: True) as held:
        moved = entry.quarantine() if held else None  # whoever holds the lock makes it again
    if moved is not None:
        emit(Quarantined(stage=artifact.name, path=str(moved), problem=problem))
    return _Damage(f"{artifact.name}: {entry.path}: damaged: {problem}{'; moved aside' if moved else ''}", AGAIN)


def _changed(artifact: Artifact, hashes: FileHashes) -> _Damage | None:
    """What is wrong with an input that is used where it lies."""
    hint = "It is your file, and stays. Bring the old one back, or run the same command again to use it as it is now."
    for name, known in artifact.manifest.files.items():
        path = artifact.path / name
        if not path.is_file():
            return _Damage(f"{artifact.name}: {path}: was removed while it was needed", hint)
        if (digest := hashes.of(path)) != known.sha256:
            digests = f"sha256 {digest[:12]}…, not {known.sha256[:12]}…"
            return _Damage(f"{artifact.name}: {path}: is not the file that was planned with ({digests})", hint)
    return None


def _base_problem(reading: _Reading) -> _Damage | None:
    """What is wrong with the base model of an adapter, if that is not an artifact of its own."""
    folder = reading.artifact.model_path
    try:
        if reading.outer_base:
            find_base(folder, read_record(folder), read=True)
    except AlignError as error:
        return _Damage(f"{reading.artifact.name}: {error.message}", error.hint or AGAIN)
    return None
