"""The end of a run in words: what was made and where, what was dropped, and the commands that come next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from align.metric import METRICS, duration_text
from align.store.artifact import ROWS_NAME, Entry, Manifest

if TYPE_CHECKING:
    from align.errors import AlignError
    from align.pipeline.run_result import RunResult
    from align.progress.state import RunState
    from align.report.results import Results

STATUS_WORDS = {"run": "made", "cached": "reused", "skipped": "left out"}


def facts(result: RunResult) -> Iterator[str]:
    """What a reader of the table should know besides: held-out accuracy of reward models, and dropped rows with their reasons."""
    made = manifests(result)
    for name, manifest in made.items():
        accuracy, pairs = manifest.metrics.get("accuracy"), manifest.metrics.get("pairs_held_out")
        if accuracy is not None and pairs:
            yield f"{name} ranks {METRICS['accuracy'].value_text(accuracy)} of {pairs:,} held-out pairs right."
    dropped = [
        f"{name} {sum(manifest.dropped.values()):,} of {manifest.rows_in:,} ({_reasons(manifest)})"
        for name, manifest in made.items()
        if manifest.dropped and manifest.rows_in
    ]
    if dropped:
        yield f"Dropped rows: {'; '.join(dropped)}."


def stage_lines(result: RunResult) -> Iterator[str]:
    """A line per stage, for a run without a comparison."""
    for stage in result.stages:
        seconds, status = stage.get("seconds"), STATUS_WORDS.get(stage["status"], stage["status"])
        # A result that was there took no time now.
        took = f" in {duration_text(seconds)}" if seconds is not None and stage["status"] == "run" else ""
        yield f"{stage['name']}: {status}{took}"


def report_lines(result: RunResult) -> Iterator[str]:
    """Where the report is, or every comparison's, or the results where there is none."""
    report = result.folder / "report.html"
    if len(result.comparisons) > 1:
        yield from (f"Report of {name}: {result.folder / 'stages' / name / 'report.html'}" for name in result.comparisons)
    else:
        yield f"Report: {report}" if report.exists() else f"Results: {result.folder}"


def next_commands(result: RunResult, results: Results | None) -> Iterator[str]:
    """How to use the best model, or the last one where none was compared; where none was made, the file of the last rows."""
    made = manifests(result)
    models = [name for name, manifest in made.items() if manifest.kind == "model"]
    if results is not None:
        best = list(dict.fromkeys(results.members(results.ranking[scorer].best)[0] for scorer in results.scorers))
        models = [name for name in best if name in models]
    else:
        models = models[-1:]
    if models:
        folders = [shlex.quote(str(result.folder / "stages" / name)) for name in models]
        yield from (f"Talk to it: align chat {folder}" for folder in folders)
        yield f"Export it:  align export {folders[0]} --to {shlex.quote(f'exported/{models[0]}')}"
    elif made and (rows := result.folder / "stages" / list(made)[-1] / ROWS_NAME).exists():
        yield f"Rows: {shlex.quote(str(rows))}"


def manifests(result: RunResult) -> dict[str, Manifest]:
    """The manifests of a run's results by stage; two names of one result count once."""
    found: dict[Path, tuple[str, Manifest]] = {}
    for stage in result.stages:
        folder = result.folder / "stages" / stage["name"]
        if stage["status"] != "skipped" and (manifest := Entry.given(folder).read_manifest()) is not None:
            found.setdefault(folder.resolve(), (stage["name"], manifest))
    return dict(found.values())


def say_how_to_go_on(error: AlignError, state: RunState, command: list[str]) -> None:
    """Add to the error of a run: its stage, its log, what is kept, and the command that goes on."""
    from align.errors import Interrupted

    again = shlex.join(command)
    if isinstance(error, Interrupted):
        hints = [f"Run the same command again to go on from here: {again}"]
    elif state.failed is None:
        return
    else:
        stage, log = state.failed.stage, state.failed.log
        if not error.message.startswith(stage):
            error.message = f"{stage}: {error.message}"
        hints = [error.hint] if error.hint else []
        hints += [f"To go on afterwards: {again}"]
        hints += [f"Log: {log}"] if log and log not in "\n".join(hints) else []
    if kept := len(state.finished) + len(state.reused):
        hints.append(f"{kept} of {len(state.numbers)} stages are finished and kept.")
    error.hint = "\n".join(hints)


def _reasons(manifest: Manifest) -> str:
    counts = sorted(manifest.dropped.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in counts)
