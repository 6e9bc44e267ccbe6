"""Selects from files in tasks. Each task is a sealed shard: a killed run repeats only unfinished tasks."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import StageError
from align.runtime.executor import executor_for
from align.selection.candidate import joined
from align.selection.files.layout import TASK_ROWS, Task, lay_out
from align.selection.files.reader import RowFile, files_of
from align.selection.files.regroup import regroup
from align.selection.selector import SelectionTally, Selector, Totals
from align.stage import StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, ROWS_NAME, Artifact
from align.store.atomic import atomic_writer
from align.store.shard import read_seal, seal_shard, shard_path

TASKS_PER_PROCESS = 2
"""For fewer tasks, starting a process takes longer than it saves."""


def run_selection(context: StageContext[Any], artifact: Artifact, selector: Selector[Any]) -> StageOutcome:
    """Select from an artifact's scored candidates, as a stage."""
    return select_from_files(
        files_of(artifact),
        selector,
        name=context.name,
        output=context.output,
        work=context.work,
        count=context.counter("select", "tasks"),
        check_stop=context.check_stop,
        num_workers=context.config.num_processes,
    )


def select_from_files(
    files: Sequence[RowFile],
    selector: Selector[Any],
    *,
    name: str,
    output: Path,
    work: Path,
    count: Callable[[int, int], None],
    check_stop: Callable[[], None] = lambda: None,
    num_workers: int | None = None,
    task_rows: int = TASK_ROWS,
) -> StageOutcome:
    """Select prompt by prompt and write `rows.jsonl` and `drops.jsonl`, in the order in which the prompts are first seen.

    Args:
        name: of the stage, for messages.
        output: folder for the two files.
        work: folder for shards and regrouped rows. What an earlier attempt finished there is used, so that attempt must have had
            the same files and the same selector.
        count: called with (finished tasks, tasks); may raise to stop.
        check_stop: called between tasks and a few times a second while processes work; raises to stop.
        num_workers: most processes that work at the same time; default: one per core. The results do not depend on it.
        task_rows: least number of rows in a task.
    Raises:
        DataError: if a row cannot be used. StageError: if a prompt has one candidate_index twice, two prompts share an id, a
            score is missing, or every prompt is dropped. Both name the file or the prompt.
    """
    layout = lay_out(files, task_rows=task_rows)
    tasks: Sequence[Task] = layout.tasks
    if layout.scattered:
        tasks = regroup(layout, selector.scorers, work / "regrouped")
    facts = _run_tasks(tasks, selector, work / "shards", count, check_stop, num_workers)
    dropped: Counter[str] = Counter()
    for fact in facts:
        dropped.update(fact["dropped"])
    num_rows = sum(fact["rows"] for fact in facts)
    if not num_rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common())
        raise StageError(
            f"{name}: none of the {sum(dropped.values())} prompts gave a row ({reasons})",
            hint="Look at the scored candidates; then lower min_margin or min_score, or sample more candidates.",
        )
    shards = [shard_path(work / "shards", index) for index in range(len(tasks))]
    # In the order of the tasks, whichever process finished first: the bytes do not depend on the number of processes.
    _join(shards, output / ROWS_NAME)
    _join([_drops_path(shard) for shard in shards], output / DROPS_NAME)
    return StageOutcome(
        metrics=selector.metrics(Totals(fact["tally"] for fact in facts)),
        rows_in=sum(fact["prompts"] for fact in facts),
        rows_out=num_rows,
        dropped=dict(dropped),
    )


def _drops_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.stem}-drops.jsonl")


def _join(pieces: Sequence[Path], target: Path) -> None:
    with atomic_writer(target) as sink:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)


def _run_tasks(
    tasks: Sequence[Task],
    selector: Selector[Any],
    folder: Path,
    count: Callable[[int, int], None],
    check_stop: Callable[[], None],
    num_workers: int | None,
) -> list[Mapping[str, Any]]:
    """The facts of every task, in order. Tasks with complete shards do not run again."""
    facts: dict[int, Mapping[str, Any]] = {}
    for index in range(len(tasks)):
        shard = shard_path(folder, index)
        # Both, or a row that left would be missing from drops.jsonl.
        if (seal := read_seal(shard)) is not None and read_seal(_drops_path(shard)) is not None:
            facts[index] = seal
    missing = [index for index in range(len(tasks)) if index not in facts]
    count(len(facts), len(tasks))

    def done(item: tuple[int, Task], made: Mapping[str, Any]) -> None:
        facts[item[0]] = made
        count(len(facts), len(tasks))

    # The cores that this process may use, which in a container or a batch job are fewer than those of the machine.
    workers = min(num_workers or len(os.sched_getaffinity(0)), len(missing) // TASKS_PER_PROCESS)
    executor_for(workers, len(missing)).map(
        _SelectTask(selector, folder),
        [(index, tasks[index]) for index in missing],
        on_done=done,
        check_stop=check_stop,
    )
    return [facts[index] for index in range(len(tasks))]


@dataclass(frozen=True)
class _SelectTask:
    """The work on one task and its number."""

    selector: Selector[Any]
    folder: Path

    def __call__(self, item: tuple[int, Task]) -> dict[str, Any]:
        """Select from one task's rows: write rows, drops and, last, the seal. Returns the facts in the seal."""
        task, shard = item[1], shard_path(self.folder, item[0])
        tally = SelectionTally()
        dropped: Counter[str] = Counter()
        num_prompts = num_rows = 0
        # Both files are whole on disk when the block ends; only then may the seals say so.
        with ExitStack() as stack:
            rows_file, drops_file = (stack.enter_context(atomic_writer(path)) for path in (shard, _drops_path(shard)))
            # A prompt comes in several parts where a batch of rows ends inside it.
            for candidates in joined(task.parts(self.selector.scorers)):
                rows, drops = self.selector.select(candidates.by_index(), tally)
                num_prompts, num_rows = num_prompts + 1, num_rows + len(rows)
                for row in rows:
                    rows_file.write((row.model_dump_json() + "\n").encode())
                for drop in drops:
                    dropped[drop.drop_reason] += 1
                    drops_file.write((drop.model_dump_json() + "\n").encode())
        facts = {"prompts": num_prompts, "rows": num_rows, "dropped": dict(dropped), "tally": tally.facts()}
        seal_shard(_drops_path(shard))
        seal_shard(shard, **facts)
        return facts
