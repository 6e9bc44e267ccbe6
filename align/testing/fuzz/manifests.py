"""The fuzz target of what align wrote itself: manifests, seals, remembered hashes, caches, events, as later commands read them.

A file is damaged, or forged: then its seal is that of the new content. A damaged file must be noticed wherever the file has a
seal, and used as if it were not there; a forged one may be believed, but nothing ends in another error than a documented one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from align.api.run import Run
from align.config.checks import artifact_kind
from align.errors import EnvironmentProblem, RecipeError
from align.models.adapter import locate_base, read_record
from align.pipeline.checks.cache import FindingCache
from align.pipeline.checks.finding import Finding as PlanFinding
from align.pipeline.estimate.lengths import MeasuredRows
from align.pipeline.inventory import take_inventory
from align.pipeline.owner import refuse_other_recipe
from align.report.results import Results
from align.runtime.event_file import read_events
from align.runtime.replay import metrics_of
from align.scoring.judge_answers import AnswerFile, JudgeAnswer
from align.store.artifact import STORE_NAME, Artifact, Entry, Manifest, Store
from align.store.fingerprint import HASHES_NAME, FileHashes, sha256_of_json
from align.store.lock import describe_holder
from align.store.seal import folder_problem, read_work
from align.store.shard import read_seal
from align.testing.fuzz.mutate import as_json, changed_tree, mutated
from align.testing.fuzz.stored_files import (
    CHECK_KEY,
    COMPARE,
    LORA,
    REMEMBERED,
    REPLIES,
    SFT,
    SHARD,
    TINY,
    WEIGHTS_NAME,
    StoredFile,
    manifest_of,
    on_disk,
    sealed,
    stored_files,
    write_project,
)
from align.testing.fuzz.target import ACCEPTED, Finding, refusal

NOT_USED = "not used"
"""Outcome of a file that counts as absent."""
DAMAGED, CHANGED, FORGED = "damaged", "changed", "forged"
"""Any bytes are other; values are other, with the old seal; values are other, with a new seal."""
OFTEN = ("manifest.json", "manifest.json", "manifest.json", HASHES_NAME, SHARD, "checkpoint.json", "events.jsonl", "results.json")
IN_COMMANDS = ("manifest.json", "results.json", "base.json", "events.jsonl")
SELDOM = 16
"""One in so many of these is also read by commands that look at the whole project, which takes ten times as long."""
NAMES = (
    "files", "place", "seal", "sha256", "size_bytes", "schema_version", "kind", "stage", "fingerprint", "config", "inputs",
    "seed", "values", "version", "time", "models", "baseline", "ranking", "key", "text", "path", "peft",
)  # fmt: skip
FOUND_AGAIN = PlanFinding("d", "found again")
REPLY = JudgeAnswer("Verdict: tie", "stop", 1, 2)


class ManifestTarget:
    """One file of a small project is damaged or forged, and read as a command reads it."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.run = folder / "runs", folder / "runs" / TINY
        self.store = self.runs / STORE_NAME
        self.files, self.places = stored_files(), write_project(folder)
        self.weights = self.store / SFT / WEIGHTS_NAME
        self.corpora = {name: [one.content(one.trees)] for name, one in self.files.items()}
        self.places[HASHES_NAME].write_bytes(self._as_on_disk(self.corpora[HASHES_NAME][0], FORGED))
        self.original = {name: path.read_bytes() for name, path in self.places.items()}
        self._list_results(self.original["results.json"])
        self.other_recipe: Any = SimpleNamespace(path=folder / "other.yaml", name=TINY)
        self.names = [*self.files, *OFTEN]
        self.readers: dict[str, Callable[[str], str]] = {
            "manifest.json": self._manifest, "results.json": self._results, "base.json": self._base, HASHES_NAME: self._hashes,
            "checks.json": self._checks, "lengths.json": self._lengths, "judge.jsonl": self._replies,
            f"{SFT}.holder": self._holder, SHARD: self._shard, "checkpoint.json": self._checkpoint,
            "epoch-1.json": self._epoch, "history.json": self._work,
            "recipe.json": self._recipe, "events.jsonl": self._events,
        }  # fmt: skip

    def make(self, random: Random) -> bytes:
        """Of each file as many damaged as changed and forged; the more fields a file has, the more often it comes."""
        name, how = random.choice(self.names), random.choice((DAMAGED, CHANGED, FORGED))
        if how == DAMAGED:
            return f"{name} {how}\n".encode() + mutated(random, self.corpora[name])
        one = self.files[name]
        trees = list(one.trees)
        place = random.randrange(len(trees))
        if how == FORGED:
            trees[place] = changed_tree(random, trees[place], NAMES)
            return f"{name} {how}\n".encode() + one.content(trees)
        lines = self.corpora[name][0].splitlines()
        lines[place] = as_json(random, changed_tree(random, json.loads(lines[place]), NAMES))
        if one.has_lines:
            lines[place] = lines[place].replace(b"\n", b" ")
        return f"{name} {how}\n".encode() + b"\n".join(lines) + b"\n"

    def read(self, data: bytes) -> str:
        """What was damaged and sealed counts as absent, or is named; nothing else is raised than EnvironmentProblem."""
        head, _, content = data.partition(b"\n")
        name, how = head.decode().split(" ")
        if name == HASHES_NAME:
            content = self._as_on_disk(content, how)
        self.places[name].write_bytes(content)
        if name == "results.json" and how == FORGED:
            self._list_results(content)
        try:
            outcome = self.readers[name](how)
            if name in IN_COMMANDS and zlib.crc32(data) % SELDOM == 0:
                outcome = self._command(name, outcome)
        except (EnvironmentProblem, RecipeError) as error:
            return refusal(error)
        finally:
            self.places[name].write_bytes(self.original[name])
            if name == "results.json" and how == FORGED:
                self._list_results(self.original[name])
        is_sealed = self.files[name].seal is not None or name == "results.json"
        if outcome == ACCEPTED and is_sealed and how != FORGED and not self._is_same(name, content):
            raise Finding(f"{name} was changed, and is used")
        return outcome

    def _is_same(self, name: str, content: bytes) -> bool:
        if self.files[name].has_lines or name == "results.json":  # of lines each has its own seal
            return self.files[name].has_lines or content == self.original[name]
        found, before = json.loads(content), json.loads(self.original[name])
        if name == HASHES_NAME:  # its seal is over the field that is read
            found, before = found["files"], before["files"]
        return sha256_of_json(found) == sha256_of_json(before)

    def _as_on_disk(self, content: bytes, how: str) -> bytes:
        """With the seal that belongs to what is on the disk: of the new content where it is forged, else of the old one."""
        there = on_disk(content, self.weights)
        try:
            now = json.loads(there if how == FORGED else on_disk(self.corpora[HASHES_NAME][0], self.weights))
            return there.replace(now["seal"].encode(), sha256_of_json(now["files"]).encode())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return there

    def _list_results(self, content: bytes) -> None:
        """Make the manifest of the comparison one of these results."""
        manifest = StoredFile("", (manifest_of(COMPARE, "comparison", {"results.json": content}),), sealed)
        (self.store / COMPARE / "manifest.json").write_bytes(manifest.content(manifest.trees))

    def _manifest(self, how: str) -> str:
        entry = Entry(self.store / SFT)
        state, problem = entry.check(FileHashes(None))
        manifest = entry.read_manifest()
        artifact_kind(entry.path)
        if state != "done" and not problem:
            raise Finding(f"{state} without a reason")
        if manifest is None:
            return NOT_USED
        artifact = Artifact("sft", entry.path, manifest)
        if not (artifact.model_path.name and artifact.where(3) and isinstance(manifest.chosen_input, str | None)):
            raise Finding("the manifest says nothing")
        return ACCEPTED if state == "done" else NOT_USED

    def _command(self, name: str, outcome: str) -> str:
        """What commands do with the whole project."""
        take_inventory(self.runs)
        run = Run(self.run)
        repr(run)
        if name == "results.json":
            assert run.results.models
        return outcome

    def _results(self, how: str) -> str:
        try:
            Results.model_validate_json(self.places["results.json"].read_bytes())
        except ValueError:
            return NOT_USED
        return ACCEPTED if how == FORGED else NOT_USED

    def _base(self, how: str) -> str:
        folder = self.store / LORA / "model"
        locate_base(folder, read_record(folder))
        return ACCEPTED

    def _hashes(self, how: str) -> str:
        hashes = FileHashes(self.places[HASHES_NAME])
        found = hashes.of(self.weights)
        hashes.names_of([(status.st_dev, status.st_ino) for status in [self.weights.stat()]])
        hashes.save()
        return ACCEPTED if found == REMEMBERED or how == FORGED else NOT_USED

    def _checks(self, how: str) -> str:
        cache = FindingCache(self.store)
        found = cache.findings(CHECK_KEY, lambda: [FOUND_AGAIN])
        cache.save()
        for finding in found:
            assert isinstance(finding.sentence, str)
        return NOT_USED if found == [FOUND_AGAIN] else ACCEPTED

    def _lengths(self, how: str) -> str:
        rows = MeasuredRows(Store(self.store))
        manifest = Manifest(**manifest_of(SFT, "instructions", {}))
        found = rows.lengths(Artifact("d", self.store / SFT, manifest), self.store / SFT / "model")
        rows.save()
        return NOT_USED if found is None else ACCEPTED

    def _replies(self, how: str) -> str:
        path = self.places["judge.jsonl"]
        answers, known = AnswerFile(path), 0
        for reply in REPLIES:
            fields: dict[str, Any] = dict(reply)
            found = answers.get(fields.pop("key"))
            known += found is not None
            if found is not None and how != FORGED and found != JudgeAnswer(**fields):
                raise Finding(f"another reply is used: {found}")
        answers.add("new", REPLY)
        if AnswerFile(path).get("new") != REPLY:
            raise Finding("a reply that was added is lost")
        return ACCEPTED if known else NOT_USED

    def _holder(self, how: str) -> str:
        return ACCEPTED if describe_holder(self.places[f"{SFT}.holder"].with_suffix(".lock")) != "another process" else NOT_USED

    def _shard(self, how: str) -> str:
        return NOT_USED if read_seal(self.places[SHARD].with_suffix(".jsonl")) is None else ACCEPTED

    def _checkpoint(self, how: str) -> str:
        seal = self.places["checkpoint.json"]
        return ACCEPTED if folder_problem(seal.parent, seal) is None else NOT_USED

    def _epoch(self, how: str) -> str:
        seal = self.places["epoch-1.json"]
        return ACCEPTED if folder_problem(seal.parent / "epochs" / "epoch-1", seal) is None else NOT_USED

    def _work(self, how: str) -> str:
        notes: list[str] = []
        found = read_work(self.places["history.json"], on_damage=notes.append)
        if (found is None) != bool(notes):
            raise Finding("a damaged file is not named")
        return NOT_USED if found is None else ACCEPTED

    def _recipe(self, how: str) -> str:
        refused = None
        try:
            refuse_other_recipe(self.other_recipe, self.run)
        except RecipeError as error:
            refused = refusal(error)
        if refused is None and how != FORGED and self._is_whole("recipe.json"):
            raise Finding("another recipe is not refused")
        assert isinstance(Run(self.run).recipe, dict)
        return ACCEPTED

    def _is_whole(self, name: str) -> bool:
        try:
            return self._is_same(name, self.places[name].read_bytes())
        except (ValueError, RecursionError):
            return False

    def _events(self, how: str) -> str:
        path, outcome = self.places["events.jsonl"], ACCEPTED
        try:
            for _ in read_events(path):
                pass
            metrics_of(path)
        except ValueError as error:
            if not str(error).startswith(f"{path}:"):
                raise
            outcome = "ValueError"
        return outcome
