"""Work in a process of its own, as a stage has one: what is imported for stages is not imported again."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from align.pipeline.worker import ENVIRONMENT, PRELOAD_LOG_VARIABLE
from align.runtime.events import Emit
from align.runtime.job import Job
from align.runtime.launcher import Launcher, launcher_for, run_one
from align.runtime.signals import StopSignals
from align.store.atomic import write_json


def stage_launcher(folder: Path) -> Launcher:
    """What runs stages on this machine; `folder` takes what the server prints that stages are forked from."""
    return launcher_for(
        preload="align.pipeline.preload", environment={**ENVIRONMENT, PRELOAD_LOG_VARIABLE: str(folder / "preload.log")}
    )


def in_job(name: str, folder: Path, work: Callable[[], Any]) -> Any:
    """What `work` returns, after a way through JSON.

    Args:
        folder: takes `<name>.json` and `<name>.log`.
        work: picklable, and of a module.
    Raises:
        StageError, StageBug: see `Launcher.run`.
    """
    result = folder / f"{name}.json"
    job = Job(name, partial(_run, work, result), folder / f"{name}.log", ENVIRONMENT)
    run_one(stage_launcher(folder), job, lambda event: None, StopSignals())
    return json.loads(result.read_text())


def _run(work: Callable[[], Any], result: Path, _emit: Emit, _stop: Callable[[], int | None]) -> None:
    write_json(result, work())
