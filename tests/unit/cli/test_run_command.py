"""`align run` and `align plan`: what they ask of the pipeline, and what they print where."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.errors import AlignError, DataError, EnvironmentProblem, Interrupted, RecipeError, StageError
from align.pipeline.estimate.memory import Estimate, Memory
from align.pipeline.estimate.plan import StageEstimate
from align.pipeline.estimate.stage_time import StageTime


def test_run_passes_its_options_on(align: Any, pipeline: Any, folder: Path) -> None:
    answer = align(
        "run", "recipe.yaml", "--out", "elsewhere", "--set", "seed=3", "--set", "stages.sft.num_epochs=2",
        "--only", "a", "--from", "b", "--until", "c", "--in-process",
    )  # fmt: skip
    assert answer.code == 0
    assert pipeline.recipe.seed == 3
    assert pipeline.recipe.stages["sft"].config.num_epochs == 2
    assert pipeline.out == Path("elsewhere")
    assert (pipeline.options["only"], pipeline.options["start"], pipeline.options["until"]) == ("a", "b", "c")
    assert pipeline.options["in_process"] is True
    assert pipeline.options["command"][:4] == ["align", "run", "recipe.yaml", "--out"]


def test_progress_is_on_stderr_and_the_result_on_stdout(align: Any, pipeline: Any, folder: Path) -> None:
    answer = align("run", ".")
    assert answer.err == "sft: started (no result yet)\nsft: done in 2.0 s, loss 1.235\n"
    assert answer.out == "sft: made in 2.0 s\nResults: runs/small\n"


def test_run_names_the_report_when_there_is_one(align: Any, pipeline: Any, folder: Path) -> None:
    (folder / "runs" / "small").mkdir(parents=True)
    (folder / "runs" / "small" / "report.html").write_text("")
    assert align("run", ".").out.splitlines()[-1] == "Report: runs/small/report.html"


def test_run_says_where_the_time_went_if_asked(align: Any, pipeline: Any, folder: Path) -> None:
    assert "between" not in align("run", ".").out
    rows = [line.split() for line in align("run", ".", "--profile").out.splitlines()[3:] if line.strip(" ─")]
    assert rows == [
        ["seconds", "all", "start", "train", "other"],
        ["sft", "2.5", "0.5", "1.8", "0.2"],
        ["between", "stages", "1.5", "1.5"],
        ["all", "4.0", "0.5", "1.8", "1.8"],
        ["share", "100", "%", "12", "%", "44", "%", "44", "%"],
    ]


@pytest.mark.parametrize("command", ["run", "plan"])
def test_json_is_one_document(align: Any, pipeline: Any, folder: Path, command: str) -> None:
    assert isinstance(json.loads(align(command, ".", "--json").out), dict)


def test_plan_is_a_table(align: Any, pipeline: Any, folder: Path) -> None:
    answer = align("plan", "recipe.yaml")
    assert "to run" in answer.out
    assert "beta: 0.1 → 0.3" in answer.out
    assert answer.err == ""


def estimates() -> StageEstimate:
    """Full fine-tuning of 6 GiB, LoRA of 2 GiB, on the fake machine with 4 GiB of memory and 9 GiB of disk."""
    full = Memory(weights=1, gradients=2, optimizer=3, activations=4, other_models=5, process=6, peak=6 << 30)
    sizes = (
        Estimate("full", 124_000_000, full, disk_bytes=5 << 30, kept_bytes=1 << 30),
        Estimate("lora", 2_400_000, replace(full, peak=2 << 30), disk_bytes=30 << 20, kept_bytes=10 << 20),
    )
    return StageEstimate("sft", "full", sizes, measured_bytes=None)


def test_plan_says_how_long_stages_will_take(align: Any, pipeline: Any, folder: Path) -> None:
    pipeline.times = (StageTime("sft", 7500.0, is_stated=True),)
    answer = align("plan", "recipe.yaml")
    assert "about 2 h 05 min" in " ".join(answer.out.splitlines()[2].split())
    assert "Time: about 2 h 05 min in all. sft: a guess, see `align docs plan`." in answer.out
    shown = {"name": "sft", "seconds": 7500.0, "is_stated": True, "is_bound": False, "is_scaled": False, "reused": None}
    assert json.loads(align("plan", ".", "--json").out)["time"] == [shown]


def test_plan_says_of_every_training_stage_whether_it_fits(align: Any, pipeline: Any, folder: Path) -> None:
    pipeline.estimates = (estimates(), StageEstimate("dpo", "qlora", (), measured_bytes=None))
    lines = [" ".join(line.split()) for line in align("plan", ".").out.splitlines()]
    assert "sft full 124 M 6.0 GiB 5.0 GiB does not fit (4.0 GiB)" in lines
    assert "dpo qlora unknown unknown unknown unknown" in lines
    assert "sft: full needs about 6.0 GiB of 4.0 GiB; lora needs 2.0 GiB" in lines
    assert not any(line.startswith("lora") for line in lines)


def test_plan_shows_every_method_when_asked(align: Any, pipeline: Any, folder: Path) -> None:
    pipeline.estimates = (replace(estimates(), measured_bytes=5 << 30),)
    lines = [" ".join(line.split()) for line in align("plan", ".", "--memory").out.splitlines()]
    assert "sft full ← 124 M 6.0 GiB (was 5.0 GiB) 5.0 GiB does not fit (4.0 GiB)" in lines
    assert "lora 2.4 M 2.0 GiB 30 MiB fits" in lines


def test_a_plan_without_training_says_nothing_of_memory(align: Any, pipeline: Any, folder: Path) -> None:
    assert "GiB" not in align("plan", ".", "--memory").out


def test_the_plan_as_json_has_every_method(align: Any, pipeline: Any, folder: Path) -> None:
    pipeline.estimates = (estimates(),)
    memory = json.loads(align("plan", ".", "--json").out)["memory"]
    assert memory["machine"]["free_bytes"] == 4 << 30
    (stage,) = memory["stages"]
    assert (stage["stage"], stage["method"]) == ("sft", "full")
    assert [(m["method"], m["chosen"], m["fits"]) for m in stage["methods"]] == [("full", True, False), ("lora", False, True)]
    assert stage["methods"][0]["memory_parts"]["optimizer"] == 3
    assert stage["methods"][1] | {"memory_bytes": 2 << 30, "disk_bytes": 30 << 20, "kept_bytes": 10 << 20} == stage["methods"][1]


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


@pytest.mark.parametrize("error", [ZeroDivisionError("oops"), BrokenPipeError("oops")])  # the second: not that of stdout
def test_a_bug_keeps_its_traceback_and_asks_to_be_reported(align: Any, pipeline: Any, folder: Path, error: Exception) -> None:
    pipeline.error = error
    answer = align("run", ".")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert f"{type(error).__name__}: oops" in answer.err
    assert answer.err.splitlines()[-1].startswith("This is a bug in align: please report it")


def test_every_error_class_has_a_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in AlignError.__subclasses__() if kind is not Interrupted]
    assert sorted(codes) == [2, 3, 4, 5]
