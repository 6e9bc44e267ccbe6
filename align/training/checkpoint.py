"""Training checkpoints that are whole or not used.

transformers writes a checkpoint file by file. One that was interrupted, or damaged later, may load without an error and give
other weights. So a seal with every file's hash is written last, and training resumes only from a checkpoint that equals its seal:
of this stage and step, with these files and no others.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from align.store.atomic import fsync_folder, sync_tree
from align.store.seal import folder_problem, seal_folder

FOLDER_NAME = "checkpoints"
"""Folder in a stage's work folder that holds its checkpoints."""
PARTS_NAME = "pytorch_model_fsdp_0"
"""Folder in a checkpoint in which accelerate writes a model's parts."""
ZERO3_PARTS = "global_step*/*_optim_states.pt"
"""Files in a checkpoint in which DeepSpeed writes what each process has of an optimizer."""
WHOLE = "whole"
SEAL_NAME = "checkpoint.json"
PREFIX = "checkpoint-"
# Two, so that there is one to fall back on if the newest is damaged.
KEEP = 2


class Clock:
    """Says when a checkpoint is due: so many minutes after the last one or the start, or when somebody wants one.

    Args:
        minutes: between two checkpoints.
        request: a file that is there when one is wanted now; it is removed when one has been written.
    """

    def __init__(self, minutes: float, request: Path | None = None) -> None:
        self._seconds = 60 * minutes
        self._request = request
        self._started = time.monotonic()

    def restart(self) -> None:
        """Count from now: a checkpoint has just been written."""
        self._started = time.monotonic()
        if self._request is not None:
            self._request.unlink(missing_ok=True)

    def is_due(self) -> bool:
        is_wanted = self._request is not None and self._request.exists()
        return is_wanted or time.monotonic() - self._started >= self._seconds


def seal(checkpoint: Path, *, called: str | None = None) -> None:
    """Declare a checkpoint complete: its files are on disk and their hashes are recorded.

    Args:
        called: the name under which it is used, if its folder is renamed later.
    """
    # Files before the seal: after a power cut there must be no seal for files that never reached the disk.
    sync_tree(checkpoint)
    seal_folder(checkpoint, checkpoint / SEAL_NAME, called=called)


def replace(checkpoint: Path, new: Path) -> None:
    """Put the sealed `new` in the place of `checkpoint`, if there is one."""
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(new, checkpoint)
    fsync_folder(checkpoint.parent)


def problem_with(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is whole."""
    return folder_problem(checkpoint, checkpoint / SEAL_NAME)


def strategy_of(checkpoint: Path) -> str:
    """fsdp2 or zero3 if processes wrote it that had a part of the model each, who alone can go on from it; else `WHOLE`."""
    if (checkpoint / PARTS_NAME).is_dir():
        return "fsdp2"
    return "zero3" if zero3_processes(checkpoint) else WHOLE


def zero3_processes(checkpoint: Path) -> int:
    """The number of processes whose parts it has, as zero3 writes them."""
    return len(list(checkpoint.glob(ZERO3_PARTS)))


def step_of(checkpoint: Path) -> int:
    """The number of steps after which it was written, from its name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def all_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def newest_valid(folder: Path, *, on_damage: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint; damaged ones before it are moved aside and named."""
    for checkpoint in all_checkpoints(folder):
        problem = problem_with(checkpoint)
        if problem is None:
            return checkpoint
        # Renamed so that no later search finds it, but not deleted: the user may want to know what happened.
        target = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(checkpoint, target)
        fsync_folder(folder)
        on_damage(f"{checkpoint.name} is not used ({problem}); going on from an earlier one")
    return None


def remove_old(folder: Path) -> None:
    """Keep the newest checkpoints only."""
    for checkpoint in all_checkpoints(folder)[KEEP:]:
        shutil.rmtree(checkpoint)
