"""The curves of a run, read from its events alone."""

from __future__ import annotations

import math
from pathlib import Path

from align.runtime.event_file import read_events
from align.runtime.events import Metrics, RunPlanned


def metrics_of(path: Path) -> dict[str, list[dict[str, float]]]:
    """Rows of every stage of the last run in `events.jsonl` that has any, as in the stage's metrics.jsonl.

    Interrupted runs count: where training went back to an earlier step, its new rows replace the old ones. Rows of the same
    stage with another configuration do not.
    """
    fingerprints: dict[str, str] = {}
    rows: dict[str, list[dict[str, float]]] = {}
    for event in read_events(path):
        if isinstance(event, RunPlanned):
            fingerprints = {stage.name: stage.fingerprint for stage in event.stages}
        elif isinstance(event, Metrics) and event.stage in fingerprints:
            earlier = rows.setdefault(fingerprints[event.stage], [])
            while earlier and earlier[-1]["step"] >= event.step:
                earlier.pop()
            values = {name: math.nan if value is None else value for name, value in event.values.items()}
            earlier.append({**values, "step": event.step})
    return {name: rows[fingerprint] for name, fingerprint in fingerprints.items() if fingerprint in rows}
