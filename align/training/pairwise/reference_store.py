"""Reference log-probabilities in the store, under a hash of all that decides them: a sweep over beta computes them once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from align.data.encoding import EncodedPreference
from align.runtime.context import RunContext
from align.runtime.device import device_name
from align.runtime.group import from_first
from align.store.artifact import INPUT_STAGE, MODEL_FOLDER, ROWS_NAME, Artifact, Entry, read_rows, write_rows
from align.store.fingerprint import FileHashes
from align.store.kept import KeptResult
from align.store.lock import hold

REFERENCE_VERSION = 3
"""Raised whenever the same model and pairs would give other numbers than before."""
ENTRY_TYPE = "reference_logps"


class ReferenceLogps(BaseModel):
    """Log-probabilities of one pair under the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    """`id` of the pair."""
    chosen_logps: float
    """Nats, summed over the chosen completion, with the method's weights."""
    rejected_logps: float
    """Nats, summed over the rejected completion."""


def reference_result(
    store_root: Path,
    artifact: Artifact,
    pairs: Sequence[EncodedPreference],
    hashes: FileHashes,
    *,
    precision: str,
    weights: str = "float32",
    tail_weight: float = 1.0,
) -> KeptResult:
    """What the store has or will have of them: its key is made of weights, tokens and arithmetic.

    Tokens cover the data, its template and its limits. The form of the batches follows from weights and tokens, so it is covered
    too.

    Args:
        artifact: the reference.
        hashes: of files that are not in the artifact's manifest.
        precision: float32 or bfloat16.
        weights: what the model's weights were converted to when it was loaded: float32, bfloat16 or nf4.
        tail_weight: of the tokens beyond the length of the pair's shorter completion.
    """
    rows = hashlib.sha256()
    for pair in pairs:
        rows.update(json.dumps([pair.id, pair.prompt_token_ids, pair.chosen_token_ids, pair.rejected_token_ids]).encode() + b"\n")
    arithmetic: dict[str, Any] = {"precision": precision, "device": device_name(), "weights": weights}
    if tail_weight != 1:  # not named where it is 1, so that what the store has stays valid
        arithmetic["tail_weight"] = tail_weight
    decides = {**arithmetic, "model": _model_hashes(artifact, hashes), "pairs": rows.hexdigest()}
    return KeptResult(store_root, ENTRY_TYPE, REFERENCE_VERSION, decides, "reference log-probabilities")


def _model_hashes(artifact: Artifact, hashes: FileHashes) -> dict[str, str]:
    """sha256 of the files that decide what a model computes, by name."""
    if artifact.manifest.stage == INPUT_STAGE:  # a model from outside stays where it is and has no list of files
        files = {path.name: hashes.of(path) for path in sorted(artifact.model_path.iterdir()) if _decides(path.name)}
    else:
        inside = {name.removeprefix(f"{MODEL_FOLDER}/"): entry.sha256 for name, entry in artifact.manifest.files.items()}
        files = {name: digest for name, digest in inside.items() if _decides(name)}
    return files


def _decides(name: str) -> bool:
    return name in ("config.json", "base.json") or ("/" not in name and name.endswith(".safetensors"))


def cached_reference_logps(
    result: KeptResult,
    pairs: Sequence[EncodedPreference],
    context: RunContext,
    compute: Callable[[], Sequence[ReferenceLogps]],
) -> Mapping[str, ReferenceLogps]:
    """Reference log-probabilities by pair id: from the store if it has them undamaged, else computed and stored.

    Raises:
        Interrupted: if a stop was requested; a later run does not use a half-written entry.
    """
    if context.spread.processes > 1:
        return {row.id: row for row in _of_ranks(result, pairs, context, compute)}
    # Another run of the sweep may compute the same numbers now; waiting for it is faster than doing it twice.
    with result.held(context):
        rows = _kept(result, pairs, context)
        if rows is None:
            rows = _keep(result, compute)
    return {row.id: row for row in rows}


def _of_ranks(
    result: KeptResult,
    pairs: Sequence[EncodedPreference],
    context: RunContext,
    compute: Callable[[], Sequence[ReferenceLogps]],
) -> list[ReferenceLogps]:
    """The same for processes that compute together: no lock is held while they do, since some would wait inside it for others.

    Two runs may then compute the same numbers; whoever finds the entry locked keeps its own to itself.
    """
    entry = result.entry

    def under_lock(use: Callable[[], list[ReferenceLogps] | None]) -> list[ReferenceLogps] | None:
        with hold(entry.lock_path, on_wait=lambda holder: None, give_up=lambda: True) as held:
            return use() if held else None

    rows = from_first(under_lock(lambda: _kept(result, pairs, context)) if context.is_first else None)
    if rows is None:
        rows = computed = list(compute())
        if context.is_first:
            under_lock(lambda: None if entry.read_manifest() else _keep(result, lambda: computed))
    return rows


def _kept(result: KeptResult, pairs: Sequence[EncodedPreference], context: RunContext) -> list[ReferenceLogps] | None:
    """What the store has, if it is whole and of these pairs; else it is moved aside."""
    if result.find(context) is None:
        return None
    rows = list(read_rows(result.entry.path / ROWS_NAME, ReferenceLogps))
    if {row.id for row in rows} != {pair.id for pair in pairs}:
        result.set_aside(context, "it is of other pairs")
        return None
    context.note(f"{result.what} of {len(rows):,} pairs are in the store")
    return rows


def _keep(result: KeptResult, compute: Callable[[], Sequence[ReferenceLogps]]) -> list[ReferenceLogps]:
    rows: list[ReferenceLogps] = []

    def write(entry: Entry) -> dict[str, int]:
        rows.extend(compute())
        write_rows(entry.path / ROWS_NAME, rows)
        return {"rows_out": len(rows)}

    result.make(write)
    return rows
