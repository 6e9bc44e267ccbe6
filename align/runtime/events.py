"""Events: what happens in a run, reported as it happens.

A stage emits events through its context; the runner hands each to every sink. The file `events.jsonl`, the terminal and the
result of `align run --json` are sinks of one stream, and other readers can be too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import ConfigDict, TypeAdapter, ValidationError

from align.metric import json_value
from align.runtime.profile import Phase

EVENTS_VERSION = 1
"""Raised when a reader of the old form would misread the new one."""
SHOWN_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run."""

    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    time: float = field(default_factory=lambda: round(time.time(), 3))
    """When, in seconds since 1970 (UTC)."""


@dataclass(frozen=True, kw_only=True)
class StageEvent(Event):
    """Something that happened to one stage, or to one input while it is read."""

    stage: str
    """Name of the stage or input; while the run waits for another one, name of the recipe."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What a run will do about one stage."""

    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    name: str
    stage_type: str
    status: Literal["run", "cached", "skipped"]
    reason: str
    """Why it runs or is left out; empty if its result is in the store."""
    fingerprint: str
    """Two runs of a stage with the same fingerprint work on the same result."""


@dataclass(frozen=True, kw_only=True)
class RunPlanned(Event):
    """A run begins, or goes on after an interruption."""

    recipe: str
    command: tuple[str, ...] = ()
    """What the user typed; empty if the run was started from Python."""
    stages: tuple[StagePlan, ...]
    """In the order in which they run."""


@dataclass(frozen=True, kw_only=True)
class StageStarted(StageEvent):
    """The process of a stage starts."""

    reason: str
    """Why it runs."""
    expected_seconds: float | None = None
    """About how long it takes, from earlier runs; null: not known."""
    later_seconds: float | None = None
    """About how long the stages after it take together; null: not known of at least one."""
    beside: tuple[str, ...] = ()
    """Stages that start at the same time and run side by side with it; those that follow begin when all of them have ended."""


@dataclass(frozen=True, kw_only=True)
class StageCached(StageEvent):
    """A stage does not run: its result is in the store."""

    seconds: float
    """Time that the stage took when it ran."""
    source: str = ""
    """What made the result: a stage of this run, or in words an earlier or another run; empty: not known."""


@dataclass(frozen=True, kw_only=True)
class Progress(StageEvent):
    """How far a task of a stage is."""

    task: str
    done: float
    total: float | None
    """None: unknown."""
    unit: str
    """Plural: steps, shards, pairs."""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    """What is shown beside it, such as the loss. null: not finite."""
    per_unit: Mapping[str, float] = field(default_factory=dict)
    """What one unit is made of, on average: how many pairs, tokens or completions."""


@dataclass(frozen=True, kw_only=True)
class Metrics(StageEvent):
    """One row of a stage's curves.

    The steps of a stage increase. A step that does not means that training went back to it after an interruption: rows of
    this step and later ones that came before are replaced.
    """

    step: int
    """Optimizer steps, rollout batches or epochs so far."""
    values: Mapping[str, float | None]
    """By name, as in metrics.jsonl. null: not finite."""


@dataclass(frozen=True, kw_only=True)
class Note(StageEvent):
    """A line that a person should read."""

    text: str


@dataclass(frozen=True, kw_only=True)
class SampledText:
    """One sampled completion."""

    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    prompt_id: str
    completion: str
    score: float | None = None
    weights_version: int | None = None
    """In an online training: how many rollout batches the policy that sampled it had learned from."""


@dataclass(frozen=True, kw_only=True)
class Sample(StageEvent):
    """A few of the completions that a stage sampled."""

    step: int
    """Shards or rollout batches so far."""
    completions: tuple[SampledText, ...]


@dataclass(frozen=True, kw_only=True)
class Saving(StageEvent):
    """A checkpoint or a result is being written, or has been. While it is, a request to stop waits for its end."""

    seconds: float | None = None
    """Time that it took; null: it begins."""


@dataclass(frozen=True, kw_only=True)
class Waiting(StageEvent):
    """Another process works on the same thing; this one waits for it."""

    holder: str
    """The other process."""


@dataclass(frozen=True, kw_only=True)
class Quarantined(StageEvent):
    """A damaged result was set aside, and is made again."""

    path: str
    """Where it is now."""
    problem: str


@dataclass(frozen=True, kw_only=True)
class StageFinished(StageEvent):
    """The result of a stage is in the store."""

    seconds: float
    """Time over all interrupted attempts."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """As in the manifest."""
    phases: Mapping[Phase, float] = field(default_factory=dict)
    """Seconds of this attempt by phase: start, load, engine, tokenize, sample, score, train, save, hash, and other, which is what
    belongs to none of these. They add up to the time since the run came to the stage, without that of waiting for another run."""


@dataclass(frozen=True, kw_only=True)
class StageFailed(StageEvent):
    """A stage ended without a result."""

    error: str
    exit_code: int
    """As of `align run`; 130 and 143: it was stopped and can go on."""
    log: str = ""
    """File that has what its process printed."""


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """A run ended, well or not. A run that was killed has no such event."""

    exit_code: int
    """As of `align run`; 0: every result is there."""
    error: str | None = None
    seconds: float | None = None
    """Time since the run began."""


KINDS: dict[str, type[Event]] = {
    # The class name in snake case: StageFinished is stage_finished.
    re.sub(r"(?<=.)([A-Z])", r"_\1", event.__name__).lower(): event
    for event in (
        RunPlanned,
        StageStarted,
        StageCached,
        Progress,
        Metrics,
        Note,
        Sample,
        Saving,
        Waiting,
        Quarantined,
        StageFinished,
        StageFailed,
        RunFinished,
    )
}
"""Every kind of event by its name in JSON."""
_NAMES = {event: name for name, event in KINDS.items()}

Emit = Callable[[Event], None]


class EventSink(Protocol):
    """A reader of a run's events."""

    def handle(self, event: Event) -> None:
        """Take an event. Called in their order, from the thread that runs the recipe; what it raises ends the run."""


def to_json(event: Event) -> str:
    """One line without its end. A number that is not finite is written as null."""
    content = {"version": EVENTS_VERSION, "kind": _NAMES[type(event)], **dataclasses.asdict(event)}
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError:
        # Rare, so only such events pay for the copy.
        return json.dumps(json_value(content), ensure_ascii=False, allow_nan=False)


@functools.cache
def adapter_of(kind: str) -> TypeAdapter[Any]:
    """Checks the fields of one kind of event, and knows their schema."""
    return TypeAdapter(KINDS[kind])


def from_json(line: str | bytes) -> Event:
    """The event of a line of `to_json`.

    Raises:
        ValueError: if it is not one, or of another version than this code's.
    """
    try:
        content = json.loads(line)
    except RecursionError:
        raise ValueError("brackets in brackets without end") from None
    if not isinstance(content, dict) or (version := content.pop("version", None)) is None:
        raise ValueError("not an event")
    if version != EVENTS_VERSION:
        raise ValueError(f"an event of version {_shown(version)}; this is align for version {EVENTS_VERSION}")
    kind = content.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"an event of an unknown kind, {_shown(kind)}")
    try:
        event: Event = adapter_of(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"not an event of kind {kind}: {where[:SHOWN_CHARACTERS]}: {first['msg']}") from error
    return event


def _shown(value: Any) -> str:
    """Of a value that may be as long as a damaged line."""
    return repr(value)[:SHOWN_CHARACTERS]
