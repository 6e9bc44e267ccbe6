"""The result of a run, for Python and for `align run --json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.runtime.events import Event, RunFinished, RunPlanned, StageCached, StageFailed, StageFinished, StageStarted


@dataclass
class RunResult:
    """The result of a run, collected from its events."""

    folder: Path
    stages: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None
    """Time of the run, from the plan on; None while it runs."""
    overlap_seconds: float = 0.0
    """Time that counts more than once in the sum of the stages', as they ran side by side."""
    comparisons: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Results by the stage that made them, in the order of the recipe."""

    def __post_init__(self) -> None:
        self._running: set[str] = set()
        self._since = 0.0
        """When a stage began or ended last."""

    @property
    def results(self) -> dict[str, Any] | None:
        """Those of the last comparison, as in the results.json of the run's folder; None without a comparison."""
        return next(reversed(self.comparisons.values()), None)

    def handle(self, event: Event) -> None:
        if isinstance(event, RunPlanned):
            self.stages = [{"name": stage.name, "status": stage.status, "seconds": None} for stage in event.stages]
        elif isinstance(event, (StageCached, StageFinished)):
            stage = next(stage for stage in self.stages if stage["name"] == event.stage)
            # A second name for a result of this run was planned to run, and did not.
            stage |= {"seconds": event.seconds} | ({"status": "cached"} if isinstance(event, StageCached) else {})
            if isinstance(event, StageFinished):
                stage["phases"] = dict(event.phases)
        elif isinstance(event, RunFinished):
            self.seconds = event.seconds
        if isinstance(event, (StageStarted, StageCached, StageFinished, StageFailed)):
            self.overlap_seconds += max(0, len(self._running) - 1) * (event.time - self._since)
            self._since = event.time
            self._running = self._running | {event.stage} if isinstance(event, StageStarted) else self._running - {event.stage}

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "seconds": self.seconds,
            "overlap_seconds": round(self.overlap_seconds, 3),
            "stages": self.stages,
            "results": self.results,
            "comparisons": self.comparisons,
        }
