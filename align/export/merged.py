"""Merged models for programs that cannot load adapters: made once, kept in the store beside their adapter."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align.export.folder import write_model
from align.export.source import ModelSource
from align.models.folder import ModelFolder
from align.store.artifact import MODEL_FOLDER, Entry, Manifest
from align.store.lock import hold

ENTRY_TYPE = "merged"
MERGED_VERSION = 1
"""Increased whenever the same adapter would be merged to other bytes than before."""


@contextmanager
def merged_model(source: ModelSource, why: str) -> Iterator[ModelFolder]:
    """The folder of an adapter's model as a whole one, taken from the store if an undamaged copy is there.

    An adapter that is in no store is merged into a temporary folder, which is removed after the block.

    Args:
        why: what a whole model is needed to do, for messages.
    Raises:
        RecipeError: if the adapter cannot be merged.
    """
    source.require_mergeable(why)
    if source.artifact is None:
        print("merging the adapter into its base", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="align-merged-") as folder:
            write_model(source, Path(folder))
            yield ModelFolder(Path(folder))
        return
    entry = Entry(source.artifact.path.with_name(f"{ENTRY_TYPE}-{source.artifact.fingerprint}"))
    with hold(entry.lock_path, on_wait=lambda holder: print(f"waiting for {holder}, which merges it too", file=sys.stderr)):
        state, problem = entry.verify()
        if state == "damaged":
            print(f"the merged model is damaged ({problem}); moved to {entry.quarantine()} and made again", file=sys.stderr)
        if state != "done":
            print("merging the adapter into its base; it is kept in the store", file=sys.stderr)
            _make(entry, source)
        merged = ModelFolder(entry.path / MODEL_FOLDER).check()
    # Outside the lock: a server runs for hours, and other commands may use the same model meanwhile.
    yield merged


def _make(entry: Entry, source: ModelSource) -> None:
    assert source.artifact is not None
    entry.begin()
    (entry.path / MODEL_FOLDER).mkdir()
    write_model(source, entry.path / MODEL_FOLDER)
    entry.commit(
        Manifest(
            kind={"language": "model", "reward": "reward_model"}[source.purpose],
            stage=ENTRY_TYPE,
            stage_version=MERGED_VERSION,
            fingerprint=source.artifact.fingerprint,
            config={},
            inputs={source.artifact.name: source.artifact.fingerprint},
            seed=None,
        )
    )
