"""A small project as align leaves it on the disk; fuzzing changes one file at a time. The same bytes on every machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.pipeline.checks.cache import CHECKS_NAME, CHECKS_VERSION
from align.pipeline.estimate.lengths import LENGTHS_NAME, LENGTHS_VERSION
from align.runtime.events import EVENTS_VERSION
from align.store.artifact import STORE_NAME, FileEntry, Manifest
from align.store.content_cache import VALUES
from align.store.fingerprint import HASHES_NAME, fingerprint, sha256_of_json
from align.store.seal import PLACE, SEAL

RECIPE = """\
name: tiny
inputs: {m: {kind: model, hub_id: a/b, revision: main}, d: {kind: instructions, path: rows.jsonl}}
stages: {sft: {stage: sft, model: m, data: d}}
"""
ROWS = b'{"id":"a","drop_reason":"tie"}\n{"id":"b","drop_reason":"tie"}\n'
SFT_DIGEST = "a" * 16
SFT, COMPARE, LORA, UNFINISHED = f"sft-{SFT_DIGEST}", f"compare-{'b' * 16}", f"sft-{'c' * 16}", f"dpo-{'d' * 16}"
HISTORY = json.dumps({"rows": [{"step": 1, "loss": 0.5}], "steps": 1})
TINY = "tiny"
FINDING = {"name": "d", "text": "row 3 is empty", "advice": "Fill it.", "action": "warn", "cause": "data", "feature": ""}
CHECK_KEY = ["d", 1]
LENGTHS = [[12, [5, 7]], [3, [4]]]
REPLY = {"text": "Verdict: A", "finish_reason": "stop", "prompt_tokens": 12, "completion_tokens": 3}
REPLIES = [{"key": f"k{number}", **REPLY, "text": text} for number, text in enumerate(("Verdict: A", "가 \ud800", "Verdict: B"))]
ESTIMATE = {"mean": 0.5, "ci95": [0.25, 0.75]}
DIFFERENCE = {**ESTIMATE, "p": 0.01, "standardized": 0.5}
SCORE = {**ESTIMATE, "delta": None, "nonfinite": 0}
MODEL: dict[str, Any] = {
    "scores": {"rm": SCORE}, "win_rate": None, "kl_to_baseline": None, "completion_tokens": {**ESTIMATE, "p50": 3.0, "p95": 9.0},
    "eos_share": 1.0, "distinct_2": 0.5, "retention_perplexity": None, "train_seconds": 3.5, "red_flags": [],
}  # fmt: skip
RESULTS: dict[str, Any] = {
    "schema_version": 1, "recipe": TINY, "command": ["align", "run"], "seed": 17, "baseline": "m", "prompts": 3,
    "num_candidates": 1,
    "bootstrap_resamples": 100, "engine": {"name": "transformers", "version": "1"},
    "models": {"m": MODEL, "sft": {**MODEL, "scores": {"rm": {**SCORE, "delta": DIFFERENCE}}, "win_rate": {"rm": ESTIMATE}}},
    "ranking": {"rm": {"order": ["sft", "m"], "prompts": 3, "best": "sft", "runner_up": "m", "difference": DIFFERENCE,
                       "separated": True, "p_to_best": {"m": 0.01}}},
}  # fmt: skip
PLAN = {
    "kind": "run_planned", "time": 1.0, "recipe": TINY, "command": ["align", "run"],
    "stages": [
        {"name": name, "stage_type": entry[:-17], "status": "run", "reason": "new", "fingerprint": entry[-16:]}
        for name, entry in (("sft", SFT), ("lora", LORA), ("dpo", UNFINISHED), ("compare", COMPARE))
    ],
}  # fmt: skip
EVENTS: tuple[dict[str, Any], ...] = (
    PLAN,
    {"kind": "stage_cached", "time": 2.0, "stage": "sft", "seconds": 3.5},
    {"kind": "stage_started", "time": 3.0, "stage": "dpo", "reason": "new", "expected_seconds": 9.5, "beside": []},
    {"kind": "progress", "time": 4.0, "stage": "dpo", "task": "train", "done": 1, "total": 9, "unit": "steps",
     "numbers": {"loss": 0.5}},
    {"kind": "metrics", "time": 5.0, "stage": "dpo", "step": 1, "values": {"loss": 0.5, "rewards/accuracies": None}},
    {"kind": "note", "time": 6.0, "stage": "dpo", "text": "a note"},
    {"kind": "sample", "time": 7.0, "stage": "dpo", "step": 1,
     "completions": [{"prompt_id": "p", "completion": "가", "score": 1.5}]},
    {"kind": "stage_failed", "time": 8.0, "stage": "dpo", "error": "killed", "exit_code": 4, "log": "run.log"},
    {"kind": "run_finished", "time": 9.0, "exit_code": 4, "error": "killed"},
)  # fmt: skip
MTIME_NS = 1_700_000_000_000_000_000
PATH_TOKEN, CTIME_TOKEN, INODE_TOKEN = b"@weights", b"1000000000000000001", b"1000000000000000002"
"""In a file of remembered hashes, for what is known once the project is on the disk."""
REMEMBERED = "0" * 64
"""A hash that the file does not have: it shows whether what was remembered was used."""
WEIGHTS_NAME, WEIGHTS = "model/model.safetensors", b"12345"
MODEL_FILES = {WEIGHTS_NAME: WEIGHTS, "model/config.json": b"{}", "model/tokenizer.json": b"{}"}
SHARD = "shard-00000.json"
CHECKPOINT, EPOCH = "checkpoint-3", "epoch-1"


@dataclass(frozen=True)
class StoredFile:
    """A file of the project that fuzzing changes."""

    place: str
    """From the project's folder on."""
    trees: tuple[dict[str, Any], ...]
    """Its content as JSON without seals: one value, or one for each line."""
    seal: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Adds the seal; None: it has none. Raises ValueError where there can be none."""

    @property
    def has_lines(self) -> bool:
        return self.place.endswith(".jsonl")

    def content(self, trees: Sequence[Any]) -> bytes:
        """The file with these values, sealed where it is; what cannot be sealed is left as it is."""
        return b"".join(json.dumps(self._sealed(tree)).encode() + b"\n" for tree in trees)

    def _sealed(self, tree: Any) -> Any:
        try:
            return self.seal(tree) if self.seal is not None and isinstance(tree, dict) else tree
        except (ValueError, TypeError, KeyError):
            return tree


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """With the seal that `align.store.seal` gives."""
    return {**content, SEAL: sha256_of_json(content)}


def _hashes(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, SEAL: sha256_of_json(content["files"])}


def _line(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, SEAL: fingerprint(json.dumps(content))}


def stored_files() -> dict[str, StoredFile]:
    """Every file that is changed, by its name."""
    work, tokenizer = f"{UNFINISHED}/work", hashlib.sha256(MODEL_FILES["model/tokenizer.json"]).hexdigest()
    keys = [fingerprint(key) for key in ([CHECKS_VERSION, CHECK_KEY], [LENGTHS_VERSION, [SFT_DIGEST, tokenizer]])]
    base = {"fingerprint": "e" * 16, "place": f"{SFT}/model", "peft": {"method": "lora", "rank": 2}}
    state = [len(WEIGHTS), MTIME_NS, int(CTIME_TOKEN), int(INODE_TOKEN)]
    found = (
        StoredFile(f"{SFT}/manifest.json", (manifest_of(SFT, "model", MODEL_FILES),), sealed),
        StoredFile(f"{COMPARE}/results.json", (RESULTS,)),
        StoredFile(f"{LORA}/model/base.json", (base,)),
        StoredFile(HASHES_NAME, ({"files": {PATH_TOKEN.decode(): [*state, REMEMBERED]}},), _hashes),
        StoredFile(CHECKS_NAME, ({VALUES: {keys[0]: [FINDING]}},), sealed),
        StoredFile(LENGTHS_NAME, ({VALUES: {keys[1]: LENGTHS}},), sealed),
        StoredFile("judge-answers/judge.jsonl", tuple(REPLIES), _line),
        StoredFile(f"{SFT}.holder", ({"pid": 1, "host": "h", "since": "2026"},)),
        StoredFile(
            f"{work}/{SHARD}", ({PLACE: f"{work}/{SHARD}l", "sha256": hashlib.sha256(ROWS).hexdigest(), "rows": 2},), sealed
        ),
        StoredFile(f"{work}/checkpoints/{CHECKPOINT}/checkpoint.json", (_seal_of(f"{work}/checkpoints/{CHECKPOINT}"),), sealed),
        StoredFile(f"{work}/{EPOCH}.json", (_seal_of(f"{work}/epochs/{EPOCH}"),), sealed),
        StoredFile(f"{work}/history.json", ({PLACE: f"{work}/history.json", "history": HISTORY},), sealed),
        StoredFile(f"../{TINY}/recipe.json", ({"name": TINY, "seed": 17, "command": [], "path": "../../recipe.yaml"},), sealed),
        StoredFile(f"../{TINY}/events.jsonl", tuple({"version": EVENTS_VERSION, **event} for event in EVENTS)),
    )
    return {Path(one.place).name: one for one in found}


def manifest_of(entry: str, kind: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The manifest of an entry, without its seal."""
    stage, _, digest = entry.partition("-")
    listed = {
        name: FileEntry(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()) for name, content in files.items()
    }
    fields: dict[str, Any] = {"kind": kind, "stage": stage, "stage_version": 1, "fingerprint": digest, "seed": 17}
    made = Manifest(**fields, config={"models": {"m": "x"}}, inputs={"x": "f" * 16}, metrics={"selected": "m"}, files=listed)
    return made.model_dump(mode="json", exclude={"seal"})


def _seal_of(place: str) -> dict[str, Any]:
    return {PLACE: place, "files": {"weights": hashlib.sha256(WEIGHTS).hexdigest()}}


def write_project(folder: Path) -> dict[str, Path]:
    """Write the whole project; returns where each of `stored_files` is."""
    store, run = folder / "runs" / STORE_NAME, folder / "runs" / TINY
    work = store / UNFINISHED / "work"
    contents = {
        **{store / SFT / name: content for name, content in MODEL_FILES.items()},
        store / LORA / "model" / "adapter_config.json": b"{}",
        work / f"{SHARD}l": ROWS,
        work / "checkpoints" / CHECKPOINT / "weights": WEIGHTS,
        work / "epochs" / EPOCH / "weights": WEIGHTS,
        folder / "recipe.yaml": RECIPE.encode(),
        folder / "other.yaml": RECIPE.encode(),
    }
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    os.utime(store / SFT / WEIGHTS_NAME, ns=(MTIME_NS, MTIME_NS))
    (run / "stages").mkdir(parents=True)
    for name, entry in (("sft", SFT), ("compare", COMPARE)):
        (run / "stages" / name).symlink_to(f"../../{STORE_NAME}/{entry}")
    files = stored_files()
    for one in files.values():
        (store / one.place).parent.mkdir(parents=True, exist_ok=True)
        (store / one.place).write_bytes(one.content(one.trees))
    return {name: store / one.place for name, one in files.items()}


def on_disk(content: bytes, weights: Path) -> bytes:
    """Remembered hashes with what the disk says of the file, in place of the tokens."""
    status = weights.stat()
    known = {PATH_TOKEN: str(weights.resolve()), CTIME_TOKEN: status.st_ctime_ns, INODE_TOKEN: status.st_ino}
    for token, value in known.items():
        content = content.replace(token, str(value).encode())
    return content
