"""Progress on stderr: where the run and its stage are, live on a terminal, in few plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import IO, TYPE_CHECKING

from align.metric import duration_text, headlines, left_text
from align.progress.state import RunState, StageState
from align.runtime.events import (
    Event,
    Note,
    Progress,
    Quarantined,
    RunFinished,
    StageCached,
    StageEvent,
    StageFailed,
    StageFinished,
    StageStarted,
    Waiting,
)
from align.visible import visible
from align.written import rewording

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

PLAIN_INTERVAL_SECONDS = 5.0
LONGEST_INTERVAL_SECONDS = 300.0
LINES_PER_STAGE = 20
"""A stage's progress is shown whenever another twentieth of its time so far has passed: hours of training fill no log."""
MOST_METRICS = 3
BAR_WIDTH = 20
INDENT = "  "


class PlainDisplay:
    """Plain lines; at most one line of progress per stage every 5 seconds, and fewer as the stage goes on."""

    def __init__(self, stream: IO[str], clock: Callable[[], float], state: RunState) -> None:
        self._stream = stream
        self._clock = clock
        self._state = state
        self._shown: dict[str, float] = {}

    def line(self, text: str) -> None:
        """Show a line that stays. A log gets it whole; a terminal would cut words."""
        text = visible(text)
        if self._stream.isatty():
            text = "\n".join(wrapped(text, shutil.get_terminal_size().columns))
        print(text, file=self._stream, flush=True)

    def progress(self, stage: StageState) -> None:
        """Show how far a stage is."""
        now = self._clock()
        # The first event only starts the clock: a task of a few seconds prints no line of progress.
        interval = min(LONGEST_INTERVAL_SECONDS, max(PLAIN_INTERVAL_SECONDS, (now - stage.started) / LINES_PER_STAGE))
        if stage.task is not None and now - self._shown.setdefault(stage.name, now) >= interval:
            self._shown[stage.name] = now
            left = self._state.left_seconds()
            of_run = [] if left is None else [f"{left_text(left)} left in the run"]
            self.line(f"{stage.label}: {', '.join([*stage.task.parts(), *of_run])}")

    def end(self, stage: str) -> None:
        """Remove a stage's progress."""
        self._shown.pop(stage, None)

    def close(self) -> None:
        """End the display."""


class LiveDisplay:
    """The running stages at the bottom of a terminal; lines scroll above."""

    def __init__(self, stream: IO[str], clock: Callable[[], float], state: RunState) -> None:
        from rich.console import Console
        from rich.live import Live

        self._clock = clock
        self._state = state
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(self, console=self._console, transient=True, refresh_per_second=4)
        self._live.start()

    def line(self, text: str) -> None:
        for part in wrapped(visible(text), self._console.width):
            self._console.print(part, soft_wrap=True)

    def progress(self, stage: StageState) -> None:
        """The next refresh shows it."""

    def end(self, stage: str) -> None:
        """The next refresh leaves it out."""

    def close(self) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Another thread refreshes while events come.
        for number, stage in enumerate(list(self._state.running.values())):
            # The run's time is said once.
            left = self._state.left_seconds() if number == 0 else None
            yield from self._stage(stage, options.max_width, "" if left is None else f"{left_text(left)} left in the run")

    def _stage(self, stage: StageState, width: int, of_run: str) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.segment import Segment
        from rich.table import Table
        from rich.text import Text

        place = "" if stage.number is None else f"stage {stage.number} of {len(self._state.numbers)}"
        line = fitting(filter(None, [place, stage.label, of_run]), width, ": " if place else ", ")
        heading = Text(visible(line), style="bold")
        heading.truncate(width, overflow="ellipsis")
        yield heading
        if not line.endswith(of_run):
            yield Text(f"{INDENT}{of_run}")
        if stage.task is None:
            yield Text(f"{INDENT}running for {duration_text(self._clock() - stage.started)}")
            return
        share = stage.task.share
        # No colour that a light or a dark background would swallow, and none is needed to read it.
        bar = ProgressBar(
            total=1.0 if share is not None else None,
            completed=share or 0.0,
            width=min(BAR_WIDTH, width // 4),
            style="dim",
            complete_style="green",
            finished_style="green",
            pulse_style="dim",
        )
        row = Table.grid(padding=(0, 1, 0, 0))
        room = width - (bar.width or 0) - 1
        row.add_row(bar, Text(visible(fitting(stage.task.parts(), room)), no_wrap=True, overflow="ellipsis"))
        yield row
        yield Segment("")


def fitting(parts: Iterable[str], width: int, first_separator: str = ", ") -> str:
    """The first parts that fit into a line of `width` cells, joined; at least one."""
    from rich.cells import cell_len

    text = ""
    for number, part in enumerate(parts):
        longer = f"{text}{first_separator if number == 1 else ', '}{part}" if text else part
        if text and cell_len(longer) > width:
            break
        text = longer
    return text


def wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width` cells, broken between words, all but the first indented. A longer word is broken."""
    from rich.console import Console
    from rich.text import Text

    room = max(20, width - len(INDENT))
    lines = Text(text).wrap(Console(width=room), room)
    for number, line in enumerate(lines):
        yield (INDENT if number else "") + line.plain.rstrip()


class ProgressDisplay:
    """Shows the events of a run. Safe to call from several threads.

    Args:
        live: show what changes where `stream` is a terminal; it redraws the line that a debugger's prompt is on.
    """

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic, *, live: bool = True) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._live = live
        self._reworded = rewording()
        self._lock = threading.Lock()
        self.state = RunState(clock)
        self._display: PlainDisplay | LiveDisplay = PlainDisplay(self._stream, clock, self.state)
        self._reused: list[StageCached] = []
        """Shown together once something else happens."""

    def __enter__(self) -> ProgressDisplay:
        if self._live and self._stream.isatty():
            self._display = LiveDisplay(self._stream, self._clock, self.state)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._show_reused()
        self._display.close()

    def handle(self, event: Event) -> None:
        with self._lock:
            self.state.update(event)
            if isinstance(event, Progress):
                self._display.progress(self.state.running[event.stage])
                return
            if isinstance(event, StageCached):
                if self._reused and self._reused[-1].source != event.source:
                    self._show_reused()
                self._reused.append(event)
                return
            self._show_reused()
            if isinstance(event, (StageFinished, StageFailed)):
                self._display.end(event.stage)
            if isinstance(event, StageEvent) and (text := self._sentence(event)) is not None:
                self._display.line(f"{event.stage}: {text}")
            if isinstance(event, RunFinished) and event.exit_code == 0 and self.state.numbers:
                self._display.line(self._summary())

    def _show_reused(self) -> None:
        if self._reused:
            source = self._reused[0].source
            names = ", ".join(event.stage for event in self._reused)
            self._display.line(f"{names}: reused{f' from {source}' if source else ''}")
            self._reused = []

    def _summary(self) -> str:
        """What ran and how long it took."""
        ran, reused = len(self.state.finished), len(self.state.reused)
        counts = [f"{ran} {'stage' if ran == 1 else 'stages'} ran"] if ran else []
        counts += [f"{reused} {'was' if reused == 1 else 'were'} reused"] if reused else []
        return f"{self.state.recipe}: done in {duration_text(self.state.seconds)}, {' and '.join(counts)}"

    def _sentence(self, event: StageEvent) -> str | None:
        """The line for an event that is not progress; None for one that the terminal does not show."""
        match event:
            case StageStarted(reason=reason, beside=beside):
                place, left = self.state.place(event), self.state.left_seconds()
                others = f"beside {', '.join(beside)}" if beside else ""
                parts = ["started", *filter(None, [place, others])]
                parts += [] if left is None else [f"{left_text(left)} left in the run"]
                return ", ".join(parts) + (f" ({reason})" if reason else "")
            case Note(text=text):
                return self._reworded(text)
            case Waiting(holder=holder):
                return f"waiting for {holder}"
            case Quarantined(path=path, problem=problem):
                return f"damaged result set aside in {path}: {problem}"
            case StageFinished(seconds=seconds, metrics=metrics):
                return ", ".join([f"done in {duration_text(seconds)}", *islice(headlines(metrics), MOST_METRICS)])
            case _:  # curves and completions are for other sinks; main() prints what a run failed with
                return None
