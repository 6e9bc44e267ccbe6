"""A recipe run from Python: a script without a `__main__` guard, Ctrl-C, overrides, the plan, and what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import align

SCRIPT = """
import os, signal, sys
import align
from align.runtime.events import Progress

class CtrlC:
    def handle(self, event):
        if isinstance(event, Progress) and event.stage == "sft" and "--stop" in sys.argv:
            os.killpg(0, signal.SIGINT)  # as a terminal does: to every process of the group

# An epoch is one step, and so many that the first run is not done when it hears of the Ctrl-C.
overrides = {"stages.sft.num_epochs": 400, "stages.sft.batch_size": 24, "stages.sft.checkpoint_steps": 50}
run = align.run_recipe("recipe.yaml", "runs", overrides=overrides, until="sft", sinks=[CtrlC()])
print(run.stages["sft"].state, run.recipe["stages"]["sft"]["num_epochs"], len(run.metrics("sft")))
"""


def processes_of(session: int) -> list[str]:
    listing = subprocess.run(["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [line for line in listing.stdout.splitlines() if not line.startswith("Z")]


@pytest.mark.slow
def test_a_script_without_a_guard_stops_at_ctrl_c_and_goes_on(project: Path) -> None:
    (project / "script.py").write_text(SCRIPT)
    command, pipe = [sys.executable, "script.py", "--stop"], subprocess.PIPE
    first = subprocess.Popen(command, cwd=project, start_new_session=True, stdout=pipe, stderr=pipe, text=True)
    output, errors = first.communicate(timeout=180)
    assert first.returncode == -signal.SIGINT, errors
    assert output == ""
    assert "KeyboardInterrupt: sft: " in errors
    assert "The same call goes on from here." in errors
    until = time.monotonic() + 20
    while processes_of(first.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_of(first.pid) == []
    assert align.load_run(project / "runs" / "tiny").stages["sft"].state == "interrupted"

    command = [sys.executable, "-"]
    second = subprocess.run(command, input=SCRIPT, cwd=project, capture_output=True, text=True, timeout=180, check=False)
    assert second.returncode == 0, second.stderr
    assert second.stdout == "done 400 51\n"
    assert "sft: started" in second.stderr


def test_a_plan_has_a_row_per_stage_and_runs_nothing(project: Path, tmp_path: Path) -> None:
    plan = align.plan(str(project), str(tmp_path / "runs"), overrides={"stages.dpo.beta": 0.2}, until="dpo")
    assert plan["name"][:2] == ["sft", "reward"]
    assert dict(zip(plan["name"], plan["status"], strict=True))["compare"] == "skipped"
    assert not (tmp_path / "runs" / "tiny").exists()


def test_quick_looks_at_no_row(project: Path, tmp_path: Path) -> None:
    (project / "prompts.jsonl").write_text("")
    out = tmp_path / "runs"
    with pytest.raises(align.DataError, match="there is no row in it"):
        align.plan(project, out)
    assert len(align.plan(project, out, quick=True)) == 11
    with pytest.raises(align.DataError, match="there is no row in it"):
        align.run_recipe(project, out, progress=False)
    assert not (out / "tiny").exists()
    # A run reads all rows, so it fails all the same, but not before it has begun.
    with pytest.raises(align.DataError, match="there is no row in it"):
        align.run_recipe(project, out, progress=False, quick=True)
    assert (out / "tiny").exists()


def test_overrides_are_checked_as_the_recipe_is(project: Path) -> None:
    loaded = align.load_recipe(
        project, {"name": "한글".encode().hex(), "stages.sft.learning_rate": 1e-6, "stages.rs.max_tokens": 64}
    )
    assert loaded.stages["sft"].config.model_dump()["learning_rate"] == 1e-6
    with pytest.raises(align.RecipeError, match="learning_rate: expected a number") as caught:
        align.run_recipe(project, overrides={"stages.sft.learning_rate": "fast"})
    # IPython shows this in place of a traceback.
    assert caught.value._render_traceback_() == [f"RecipeError: {caught.value}"]
    with pytest.raises(align.RecipeError, match="the recipe is loaded already"):
        align.run_recipe(loaded, overrides={"seed": 1})


def test_progress_can_be_switched_off(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (True, False):
        with pytest.raises(align.RecipeError, match="sampled needs sft"):
            align.run_recipe(project, tmp_path / "runs", only="sampled", progress=progress)
    assert capsys.readouterr() == ("", "")
