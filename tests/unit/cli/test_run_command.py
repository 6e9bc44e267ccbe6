"""`align run` and `align plan`: what they ask of the pipeline, and what they print where."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from align.errors import AlignError, DataError, EnvironmentProblem, Interrupted, RecipeError, StageError


def test_run_passes_its_options_on(align: Any, pipeline: Any, folder: Path) -> None:
    answer = align(
        "run", "recipe.yaml", "--out", "elsewhere", "--set", "seed=3", "--set", "stages.sft.num_epochs=2",
        "--only", "a", "--from", "b", "--until", "c",
    )  # fmt: skip
    assert answer.code == 0
    assert pipeline.recipe.seed == 3
    assert pipeline.recipe.stages["sft"].config.num_epochs == 2
    assert pipeline.out == Path("elsewhere")
    assert (pipeline.options["only"], pipeline.options["start"], pipeline.options["until"]) == ("a", "b", "c")
    assert pipeline.options["command"][:4] == ["align", "run", "recipe.yaml", "--out"]


def test_progress_is_on_stderr_and_the_result_on_stdout(align: Any, pipeline: Any, folder: Path) -> None:
    answer = align("run", ".")
    assert answer.err == "sft: started (no result yet)\nsft: done in 2.0 s, loss 1.235\n"
    assert answer.out == "sft: done, 2.0 s\nResults: runs/small\n"


def test_run_names_the_report_when_there_is_one(align: Any, pipeline: Any, folder: Path) -> None:
    (folder / "runs" / "small").mkdir(parents=True)
    (folder / "runs" / "small" / "report.html").write_text("")
    assert align("run", ".").out.splitlines()[-1] == "Report: runs/small/report.html"


@pytest.mark.parametrize("command", ["run", "plan"])
def test_json_is_one_document(align: Any, pipeline: Any, folder: Path, command: str) -> None:
    assert isinstance(json.loads(align(command, ".", "--json").out), dict)


def test_plan_is_a_table(align: Any, pipeline: Any, folder: Path) -> None:
    answer = align("plan", "recipe.yaml")
    assert "to run" in answer.out
    assert "beta: 0.1 → 0.3" in answer.out
    assert answer.err == ""


def test_a_wrong_recipe_starts_nothing(align: Any, pipeline: Any, folder: Path) -> None:
    answer = align("run", "recipe.yaml", "--set", "stages.sft.num_epoch=2")
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err == ("error: --set stages.sft.num_epoch=2: stages.sft.num_epoch: unknown key; did you mean 'num_epochs'?\n")
    assert pipeline.recipe is None


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (RecipeError("r", hint="h"), 2, "error: r\n→ h\n"),
        (DataError("d"), 3, "error: d\n"),
        (EnvironmentProblem("e"), 4, "error: e\n"),
        (StageError("s"), 5, "error: s\n"),
        (Interrupted("i"), 130, "stopped: i\n→ Run the same command again"),
        (Interrupted("i", signal_number=signal.SIGTERM), 143, "stopped: i\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_exit_codes_without_a_traceback(
    align: Any, pipeline: Any, folder: Path, error: BaseException, code: int, start: str
) -> None:
    pipeline.error = error
    answer = align("run", ".")
    assert answer.code == code
    assert answer.err.partition("\n")[2].startswith(start)
    assert "Traceback" not in answer.err


def test_a_bug_keeps_its_traceback_and_asks_to_be_reported(align: Any, pipeline: Any, folder: Path) -> None:
    pipeline.error = ZeroDivisionError("oops")
    answer = align("run", ".")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "ZeroDivisionError: oops" in answer.err
    assert answer.err.splitlines()[-1].startswith("This is a bug in align: please report it")


def test_every_error_class_has_a_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in AlignError.__subclasses__() if kind is not Interrupted]
    assert sorted(codes) == [2, 3, 4, 5]
