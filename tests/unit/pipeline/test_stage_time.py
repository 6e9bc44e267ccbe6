"""What a plan says about time, and where it has that from."""

from __future__ import annotations

from pathlib import Path

import pytest

from align import load_recipe
from align.pipeline.estimate.machine import read_machine
from align.pipeline.estimate.stage_time import StageTime, stage_times, time_sentence
from align.pipeline.plan import make_plan


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ([], None),
        ([StageTime("again", 0.0)], None),
        ([StageTime("a", None)], "Time: not known yet. Later plans go by what similar stages took."),
        ([StageTime("a", 60.0), StageTime("b", 40.0)], "Time: about 2 min in all."),
        ([StageTime("a", 60.0, True)], "Time: about 60 s in all. a: a guess, see `align docs plan`."),
        (
            [StageTime("a", 60.0), StageTime("b", 60.0, True, True)],
            "Time: about 2 min in all. b: a guess, with all completions at full length, see `align docs plan`.",
        ),
        (
            [StageTime("a", 60.0, True), StageTime("b", 60.0, is_scaled=True)],
            "Time: about 2 min in all. a: a guess; b: a guess, from a time with another number of devices, see "
            "`align docs plan`.",
        ),
        (
            [StageTime("a", 7200.0), *(StageTime(name, None) for name in "bcdefg")],
            "Time: about 2 h 00 min, and that of b, c, d, e and 2 more, which is not known yet.",
        ),
    ],
)
def test_the_sentence_says_what_is_known(times: list[StageTime], sentence: str | None) -> None:
    assert time_sentence(times) == sentence


def test_a_first_plan_guesses_all_stages(project: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(project / "recipe.yaml"), tmp_path / "runs")
    times = {time.name: time for time in stage_times(plan, read_machine(tmp_path))}
    assert all(time.is_stated and time.seconds is not None for time in times.values())
    assert not times["sft"].is_bound
    assert times["dpo"].is_bound
