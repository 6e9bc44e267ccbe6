"""One line of the table: what was checked, what was found, what was wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "not run"]
STYLES: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "not run": "yellow"}


@dataclass(frozen=True)
class Line:
    """A check."""

    part: str
    shape: str
    what: str
    verdict: Verdict
    found: str
    wanted: str = ""


class Report:
    """The lines so far, and the figures behind them, in the order they were made."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.figures: dict[str, Any] = {}
        self._part = self._shape = ""

    def check(self, what: str, passed: bool, found: str, wanted: str) -> None:
        self._add(Line(self._part, self._shape, what, "pass" if passed else "fail", found, wanted))

    def not_run(self, what: str, why: str) -> None:
        self._add(Line(self._part, self._shape, what, "not run", why))

    def keep(self, name: str, figures: Any) -> None:
        self.figures.setdefault(self._shape, {}).setdefault(self._part, {})[name] = figures

    @contextmanager
    def part(self, name: str, shape: str) -> Iterator[None]:
        """Lines within belong to this part. An error is one of them, and the next part goes on."""
        self._part, self._shape = name, shape
        try:
            yield
        except Exception as error:  # whatever a library raises on a device that nobody has tried
            self.check("ran to its end", False, f"{type(error).__name__}: {str(error).strip()[-600:]}", "no error")

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        print(f"[{line.verdict}] {line.part}, {line.shape}: {line.what}: {line.found}", flush=True)

    @property
    def failed(self) -> bool:
        return any(line.verdict == "fail" for line in self.lines)


def print_table(lines: Iterable[Line]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "shape", "check", "", "found", "wanted", title="make gpu-check")
    for line in lines:
        style = STYLES[line.verdict]
        table.add_row(line.part, line.shape, line.what, f"[{style}]{line.verdict}[/]", line.found, line.wanted)
    Console().print(table)
