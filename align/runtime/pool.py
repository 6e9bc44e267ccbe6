"""Where workers work: in processes of this machine, or in actors of a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pool:
    """Where the workers of a stage work. The results do not depend on it."""

    kind: Literal["processes", "ray"] = "processes"
    address: str = "auto"
    """Of Ray's head node, such as 10.0.0.1:6379; auto: the cluster that runs on this machine. Used by kind ray only."""
    gpus_each: int = 1
    """GPUs of an engine, which divide its model among them; a scorer has one always."""


LOCAL = Pool()
"""Processes of this machine."""
