"""Results that several stages can use, in the store under a hash of everything that decides them.

They can be computed again at any time, so no run needs them: `align store prune` removes them.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import Interrupted
from align.runtime.context import RunContext
from align.runtime.life import still_working
from align.store.artifact import INPUT_STAGE, MODEL_FOLDER, Artifact, Entry, Manifest
from align.store.fingerprint import fingerprint
from align.store.lock import hold

ANSWERS = "answers"
"""Kind of the answers of a model to some prompts."""
KEPT_SECONDS, REUSED_SECONDS = "kept_seconds", "reused_seconds"
"""Of a stage that uses such results, in its manifest: how long it took to make them all, and to make those that were there."""


@dataclass(frozen=True)
class KeptResult:
    """One such result, whether it is in the store yet or not."""

    store_root: Path
    kind: str
    """Type of the entry, such as answers."""
    version: int
    """Of the code that makes it."""
    decides: Mapping[str, Any]
    """Everything else that decides it; a JSON value."""
    what: str
    """In words, for notes: answers of dpo."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of what it was made from, for the manifest: a plan finds it by them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else a plan finds it by."""

    @property
    def key(self) -> str:
        """16 hexadecimal digits over everything that decides it."""
        return fingerprint({"version": self.version, **self.decides})

    @property
    def entry(self) -> Entry:
        return Entry(self.store_root / f"{self.kind}-{self.key}")

    @contextmanager
    def held(self, context: RunContext) -> Iterator[None]:
        """Inside, no other run makes it.

        Raises:
            Interrupted: if a stop was requested while another run made it.
        """
        waiting = lambda holder: context.note(f"waiting for {self.what} from {holder}")  # noqa: E731

        def give_up() -> bool:
            still_working()
            return context.stop_requested() is not None

        with hold(self.entry.lock_path, on_wait=waiting, give_up=give_up) as is_held:
            if not is_held:
                raise Interrupted("Stopped while waiting for another run.", signal_number=context.stop_requested() or 15)
            yield

    def find(self, context: RunContext) -> Manifest | None:
        """Its manifest, if the store has it undamaged. A damaged one is moved aside, with a note. To be called inside `held`."""
        entry = self.entry
        state, problem = entry.verify()
        if state == "damaged":
            self.set_aside(context, problem)
        return entry.read_manifest() if state == "done" else None

    def set_aside(self, context: RunContext, problem: str) -> None:
        """Move it aside, with a note. To be called inside `held`."""
        context.note(f"{self.what}: damaged in the store ({problem}); moved to {self.entry.quarantine()} and made again")

    def make(self, write: Callable[[Entry], Mapping[str, Any]], *, seconds: float = 0.0) -> Manifest:
        """Make it and keep it. To be called inside `held`.

        Args:
            write: writes its files into the entry, whose work folder survives interruptions; returns fields of its manifest.
            seconds: that it took before.
        """
        entry, began = self.entry, time.monotonic()
        entry.begin()
        fields = {"stage": self.kind, "config": dict(self.settings), "inputs": dict(self.sources), "seed": None, **write(entry)}
        manifest = Manifest(kind=self.kind, stage_version=self.version, fingerprint=self.key, **fields)
        return entry.commit(manifest, seconds=lambda: seconds + time.monotonic() - began)


@dataclass
class Reused:
    """Which results a stage found in the store and which it made, for its notes and its manifest."""

    kept_seconds: float = 0.0
    reused_seconds: float = 0.0
    names: dict[str, list[str]] = field(default_factory=dict)
    """Of those that were found: whose, by what they are, such as answers."""

    def found(self, what: str, whose: str, manifest: Manifest) -> None:
        """Count one that was there."""
        self.kept_seconds += manifest.seconds
        self.reused_seconds += manifest.seconds
        self.names.setdefault(what, []).append(whose)

    def made(self, manifest: Manifest) -> None:
        """Count one that was not."""
        self.kept_seconds += manifest.seconds

    def note(self, context: RunContext, what: str) -> None:
        """Say which of these were there, if any."""
        if names := self.names.get(what):
            context.note(f"{what} of {', '.join(dict.fromkeys(names))}: reused from the store")

    @property
    def metrics(self) -> dict[str, float]:
        return {KEPT_SECONDS: round(self.kept_seconds, 3), REUSED_SECONDS: round(self.reused_seconds, 3)}


def model_content(artifact: Artifact) -> str:
    """16 hexadecimal digits over all files of a model; of an adapter they name its base model too."""
    if artifact.manifest.stage == INPUT_STAGE:  # it stays where it is, and its fingerprint is that of its files
        return artifact.fingerprint
    prefix = f"{MODEL_FOLDER}/"
    files = {name: entry.sha256 for name, entry in artifact.manifest.files.items() if name.startswith(prefix)}
    return fingerprint({"files": files})


def versions_of(*distributions: str) -> dict[str, str]:
    """Versions of the installed ones among these distributions."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
