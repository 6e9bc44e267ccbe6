"""About how long the stages of a plan take: as similar ones took before in the store, or else at a stated speed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from align.metric import left_text
from align.pipeline.estimate.duration import DurationEstimator
from align.pipeline.estimate.guess import SpeedGuess
from align.pipeline.estimate.kept import kept_sentence
from align.pipeline.estimate.lengths import MeasuredRows
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.speed import stated_speed
from align.pipeline.plan import Plan

MOST_NAMES = 4


@dataclass(frozen=True)
class StageTime:
    """A stage that will run."""

    name: str
    seconds: float | None
    """None where nothing is known."""
    is_stated: bool = False
    """Whether the seconds are operations at a stated speed, not what a similar stage took."""
    is_bound: bool = False
    """Whether they count completions that are yet to be sampled as long as they may become."""
    is_scaled: bool = False
    """Whether a similar stage had another number of workers, and the seconds suppose that twice as many take half the time."""
    reused: str | None = None
    """In a sentence, what the stage finds in the store."""


def stage_times(plan: Plan, machine: Machine, workers: Mapping[str, int] | None = None) -> tuple[StageTime, ...]:
    """One for every stage that will run; a second name for another stage's result takes no time.

    Args:
        workers: see `workers_of`.
    """
    workers = workers or {}
    earlier, speed = DurationEstimator(plan, workers), stated_speed(machine)
    measured = MeasuredRows(plan.store)
    guesser = None if speed is None else SpeedGuess(plan, machine, speed, measured)
    times = []
    for stage in plan.stages:
        if stage.status != "run":
            continue
        seconds = earlier.seconds(stage)
        guess = guesser.guess(stage, workers.get(stage.name, 1)) if guesser is not None and seconds is None else None
        if guess is not None:
            times.append(StageTime(stage.name, guess.seconds, is_stated=True, is_bound=guess.is_bound))
        else:
            scaled = earlier.is_scaled_by_workers(stage)
            reused = kept_sentence(stage.name, earlier.kept_answers(stage))
            times.append(StageTime(stage.name, seconds, is_stated=seconds is None, is_scaled=scaled, reused=reused))
    measured.save()
    return tuple(times)


def time_sentence(times: Sequence[StageTime], together: Sequence[Collection[str]] = ()) -> str | None:
    """What is known of the whole run's time; None where nothing will run.

    Args:
        together: names of stages that run side by side, and take the time of the longest.
    """
    known = [time for time in times if time.seconds is not None]
    unknown = [time.name for time in times if time.seconds is None]
    if not known:
        return "Time: not known yet. Later plans go by what similar stages took." if unknown else None
    seconds = {time.name: time.seconds or 0.0 for time in known}
    beside = [[seconds.pop(name) for name in names if name in seconds] for names in together]
    total = sum(seconds.values()) + sum(max(group, default=0.0) for group in beside)
    if not total:
        return None
    sentence = f"Time: {left_text(total)} in all"
    if unknown:
        sentence = f"Time: {left_text(total)}, and that of {_names(unknown)}, which is not known yet"
    stated, scaled = [time for time in known if time.is_stated], [time for time in known if time.is_scaled]
    guesses = []
    if stated:
        longest = ", with all completions at full length" if any(time.is_bound for time in stated) else ""
        guesses.append(f"{_names([time.name for time in stated])}: a guess{longest}")
    if scaled:
        names = _names([time.name for time in scaled])
        guesses.append(f"{names}: a guess, from a time with another number of devices")
    return f"{sentence}. {'; '.join(guesses)}, see `align docs plan`." if guesses else f"{sentence}."


def _names(names: Sequence[str]) -> str:
    shown, more = list(names[:MOST_NAMES]), len(names) - MOST_NAMES
    if more > 0:
        shown.append(f"{more} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
