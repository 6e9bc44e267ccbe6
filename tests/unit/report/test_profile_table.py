"""The table of `align run --profile`."""

from __future__ import annotations

from rich.console import Console

from align.report.profile import profile_table


def rows(stages: list[dict[str, object]], seconds: float, overlap: float) -> list[list[str]]:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(profile_table(stages, seconds, overlap))
    return [line.split() for line in capture.get().splitlines()[1:] if line.strip(" ─")]


def test_what_ran_at_the_same_time_is_taken_off_once() -> None:
    stages: list[dict[str, object]] = [{"name": name, "phases": {"train": 10.0}} for name in ("rs", "orpo")]
    assert rows(stages, 14.0, 8.0) == [
        ["rs", "10.0", "10.0"],
        ["orpo", "10.0", "10.0"],
        ["between", "stages", "2.0", "2.0"],
        ["side", "by", "side", "-8.0"],
        ["all", "14.0", "20.0", "2.0"],
        ["share", "100", "%", "91", "%", "9", "%"],
    ]
