"""What a store holds, which runs need it, what a prune removes and what it must not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from align import load_recipe
from align.cli.main import main
from align.errors import RecipeError
from align.pipeline.inventory import prune, take_inventory, verify
from align.pipeline.plan import make_plan
from align.runtime.event_file import EVENTS_NAME, JsonlSink
from align.runtime.events import RunPlanned, StagePlan
from align.store.artifact import Entry, Manifest, Store
from align.store.atomic import link_tree
from align.store.lock import hold
from align.testing.damage import rot


def write_plan(run: Path, stages: Iterable[tuple[str, str]]) -> None:
    """Append a plan to the events of a run: type and fingerprint of every stage."""
    plans = (StagePlan(name=f"{t}-{d}", stage_type=t, status="run", reason="", fingerprint=d) for t, d in stages)
    with JsonlSink(run / EVENTS_NAME) as sink:
        sink.handle(RunPlanned(recipe=run.name, stages=tuple(plans)))


class Shelf:
    """A folder of runs whose store is filled by hand."""

    def __init__(self, out: Path) -> None:
        self.out, self.root = out, out / ".store"
        self.root.mkdir(parents=True)

    def entry(self, name: str, *, size: int = 100_000, done: bool = True, base: str | None = None) -> Entry:
        entry = Entry(self.root / name)
        entry.begin()
        (entry.path / "model").mkdir()
        (entry.path / "model" / "weights").write_bytes(os.urandom(size))
        if base is not None:
            (entry.path / "model" / "base.json").write_text(json.dumps({"place": f"{base}/model", "fingerprint": "x"}))
        if done:
            stage, _, digest = name.partition("-")
            fields: dict[str, Any] = {"kind": "model", "stage": stage, "stage_version": 1, "fingerprint": digest, "seed": 1}
            entry.commit(Manifest(**fields, config={}, inputs={}))
        return entry

    def run(self, name: str, *linked: str, planned: tuple[str, ...] = ()) -> None:
        (self.out / name / "stages").mkdir(parents=True)
        for entry in linked:
            (self.out / name / "stages" / f"stage-{entry}").symlink_to(f"../../.store/{entry}")
        write_plan(self.out / name, [(entry.partition("-")[0], entry.partition("-")[2]) for entry in planned])

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.is_dir())

    def needed_by(self) -> dict[str, tuple[str, ...]]:
        return {entry.path.name: entry.needed_by for entry in take_inventory(self.out).entries}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "runs")


def test_a_run_needs_its_links_its_last_plan_and_the_bases_of_its_adapters(shelf: Shelf) -> None:
    for name in ("sft-1", "dpo-old", "dpo-new", "sft-base"):
        shelf.entry(name)
    shelf.entry("orpo-cut", done=False)
    shelf.entry("sft-adapter", base="sft-base")
    shelf.run("first", "sft-1", "dpo-new", planned=("sft-1", "dpo-new", "orpo-cut"))
    shelf.run("second", "sft-1", "sft-adapter", planned=("sft-1", "sft-adapter"))
    assert shelf.needed_by() == {
        "sft-1": ("first", "second"),
        "dpo-old": (),
        "dpo-new": ("first",),
        "orpo-cut": ("first",),
        "sft-adapter": ("second",),
        "sft-base": ("second",),
    }


def test_only_the_last_plan_counts_and_a_cut_line_is_no_plan(shelf: Shelf) -> None:
    shelf.entry("dpo-1", done=False)
    shelf.entry("dpo-2", done=False)
    shelf.run("first", planned=("dpo-1",))
    events = shelf.out / "first" / EVENTS_NAME
    later = events.read_text().replace("dpo-1", "dpo-2").replace('"fingerprint": "1"', '"fingerprint": "2"')
    events.write_text(events.read_text() + later + later[:40])
    assert shelf.needed_by() == {"dpo-1": (), "dpo-2": ("first",)}


def test_a_plan_that_names_what_no_file_can_be_called_needs_nothing(shelf: Shelf) -> None:
    shelf.entry("dpo-1")
    shelf.run("first", planned=(f"dpo-{'x' * 5000}",))
    assert shelf.needed_by() == {"dpo-1": ()}


def test_a_prune_shows_first_and_removes_only_what_no_run_needs(shelf: Shelf) -> None:
    shelf.entry("sft-1")
    shelf.entry("dpo-old", size=500_000)
    shelf.entry("dpo-cut", size=300_000, done=False)
    shelf.run("first", "sft-1")
    shelf.entry("dpo-bad").quarantine()
    before = shelf.names()
    planned = prune(shelf.out, remove=False)
    assert shelf.names() == before
    assert {entry.path.name.partition("-")[0] for entry in planned.removed} == {"dpo", "quarantine"}
    free = sum(path.stat().st_blocks * 512 for path in shelf.root.rglob("*") if path.is_file() and path.parts[-2] == "model")
    done = prune(shelf.out, remove=True)
    assert shelf.names() == ["sft-1"]
    left = sum(path.stat().st_blocks * 512 for path in shelf.root.rglob("*") if path.is_file() and path.parts[-2] == "model")
    assert free - left <= done.freed_bytes <= free - left + 3 * 8192, "the manifests go as well"
    assert planned.freed_bytes == done.freed_bytes
    assert prune(shelf.out, remove=True).removed == []
    assert not list(shelf.root.glob("dpo-*.lock"))


def test_what_a_process_works_on_is_kept(shelf: Shelf) -> None:
    entry = shelf.entry("dpo-1", done=False)
    with hold(entry.lock_path, on_wait=pytest.fail):
        found = prune(shelf.out, remove=True)
        assert (found.removed, [kept.path for kept in found.kept]) == ([], [entry.path])
    assert shelf.names() == ["dpo-1"]
    prune(shelf.out, remove=True)
    assert shelf.names() == []


def test_inputs_and_what_several_stages_use_stay_while_a_recipe_runs(shelf: Shelf) -> None:
    for name in ("input-1", "dpo-1", "tokens-1", "answers-1"):
        shelf.entry(name)
    shelf.entry("scores-1").quarantine()
    with hold(shelf.root / "run-first.lock", on_wait=pytest.fail):
        assert take_inventory(shelf.out).running == ("first",)
        assert sorted(kept.path.name for kept in prune(shelf.out, remove=True).kept) == ["answers-1", "input-1", "tokens-1"]
    assert shelf.names() == ["answers-1", "input-1", "tokens-1"]
    assert take_inventory(shelf.out).running == ()
    prune(shelf.out, remove=True)
    assert shelf.names() == []


def test_a_prune_that_was_killed_is_finished_by_the_next(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.entry("dpo-1")

    def die(path: Path, **_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else die(path))
        prune(shelf.out, remove=True)
    assert shelf.names() == [".pruned-dpo-1"], "no run finds it under its name"
    assert prune(shelf.out, remove=True).freed_bytes > 0
    assert shelf.names() == []


def test_a_file_with_several_names_counts_once_and_is_not_freed_while_one_is_needed(shelf: Shelf) -> None:
    sft = shelf.entry("sft-1", size=400_000)
    best = Entry(shelf.root / "select_checkpoint-1")
    best.begin()
    link_tree(sft.path / "model", best.path / "model")
    best.commit(Manifest(kind="model", stage="select_checkpoint", stage_version=1, fingerprint="1", config={}, inputs={}, seed=1))
    sizes = {entry.path.name: entry.size_bytes for entry in take_inventory(shelf.out).entries}
    assert min(sizes.values()) >= 400_000
    assert take_inventory(shelf.out).size_bytes < sum(sizes.values()) - 390_000
    shelf.run("first", "sft-1")
    assert {entry.path.name: entry.shared_bytes >= 400_000 for entry in take_inventory(shelf.out).entries} == {
        "sft-1": True,
        "select_checkpoint-1": True,
    }
    assert prune(shelf.out, remove=False).freed_bytes < 20_000
    shutil.rmtree(shelf.out / "first")
    assert prune(shelf.out, remove=False).freed_bytes >= 400_000


def test_a_verify_finds_what_time_and_size_hide_and_the_next_plan_knows_it(
    shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.entry("sft-1")
    weights = shelf.entry("dpo-1").path / "model" / "weights"
    shelf.entry("orpo-1", done=False)
    assert verify(shelf.out).damaged == {}
    rot(weights)
    assert Entry(shelf.root / "dpo-1").check(Store(shelf.root).hashes)[0] == "done", "as the store remembers it"
    assert main(["store", "verify", "--out", str(shelf.out), "--json"]) == 4
    out, errors = capsys.readouterr()
    problem = "model/weights does not have the content it was written with (sha256 "
    found = json.loads(out)
    assert found["checked"] == ["dpo-1", "sft-1"]
    assert [(name, text[: len(problem)]) for name, text in found["damaged"].items()] == [("dpo-1", problem)]
    assert f"dpo-1: {problem}" in errors
    assert "Traceback" not in errors
    assert Entry(shelf.root / "dpo-1").check(Store(shelf.root).hashes)[0] == "damaged"


def test_commands_print_what_they_find(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.entry("sft-1")
    shelf.entry("dpo-1")
    shelf.run("first", "sft-1")
    options = ["--out", str(shelf.out)]
    assert main(["store", "list", *options]) == 0
    text = capsys.readouterr().out
    assert "2 results" in text
    assert "no run needs 1: align store prune" in text
    assert main(["store", "list", *options, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["name"]: entry["needed_by"] for entry in listed["entries"]} == {"sft-1": ["first"], "dpo-1": []}
    assert main(["store", "prune", *options]) == 0
    assert "Nothing was removed; --yes removes them." in capsys.readouterr().out
    assert shelf.names() == ["dpo-1", "sft-1"]
    assert main(["store", "prune", *options, "--yes", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["dry_run"], [entry["name"] for entry in document["removed"]]) == (False, ["dpo-1"])
    assert main(["store", "prune", *options]) == 0
    assert capsys.readouterr().out == "Every result is needed by a run.\n"
    assert main(["store", "verify", *options]) == 0
    assert capsys.readouterr().out == "1 of 1 results are undamaged.\n"


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds no runs of align \(there is no \.store\)"):
        take_inventory(tmp_path)


def test_the_folder_of_one_stage_is_a_run_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "candidates"
    candidates = tmp_path / "candidates.jsonl"
    rows = [{"prompt_id": "p", "prompt": "a", "completion": text, "scores": {"s": len(text)}} for text in ("b", "bc")]
    candidates.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["stage", "best_of_n", "--scored", str(candidates), "--scorer", "s", "--keep-truncated", "--out", str(out)]
    assert main(command) == 0, capsys.readouterr().err
    found = take_inventory(out)
    assert {entry.stage for entry in found.entries} >= {"best_of_n"}
    assert {entry.needed_by for entry in found.entries} == {("candidates",)}


@pytest.mark.slow
def test_a_whole_run_needs_all_but_what_it_can_compute_again(finished_run: Path, project: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    subprocess.run(["cp", "-a", str(finished_run.parent), str(out)], check=True)
    assert verify(out).damaged == {}
    unneeded = take_inventory(out).unneeded
    assert {entry.stage for entry in unneeded} == {"tokens", "reference_logps", "answers", "scores", "likelihoods", "probes"}
    prune(out, remove=True)
    plan = make_plan(load_recipe(project), out)
    assert {stage.status for stage in plan.stages} == {"cached"}
    # With another beta, the old comparison and DPO are needed by no run once the new plan is there.
    changed = make_plan(load_recipe(project, ["stages.dpo.beta=0.3"]), out)
    write_plan(out / "tiny", [(stage.stage_type, stage.fingerprint) for stage in changed.stages])
    assert take_inventory(out).unneeded == [], "links still lead there until the new results are"
    for name in ("dpo", "compare"):
        (out / "tiny" / "stages" / name).unlink()
    assert {entry.stage for entry in take_inventory(out).unneeded} == {"dpo", "compare"}
