"""Which stages of a plan run side by side, and what each has of the machine meanwhile.

This follows from recipe, machine file and machine, never from what has run already or is free now: a stage has the same threads
in a whole run, after an interruption, and alone, and so the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from align.config.judge import iterate_judges
from align.config.online import OnlineTraining
from align.config.sections import EngineChoice
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.memory import Estimate
from align.pipeline.estimate.plan import PlanReader
from align.pipeline.estimate.spread import rows_of_a_step
from align.pipeline.plan import Plan, PlannedStage
from align.runtime.context import PLAIN
from align.runtime.share import WHOLE, Share
from align.runtime.threads import available_threads
from align.training.needs import Trains


@dataclass(frozen=True)
class Group:
    """Stages that run at the same time; the next group begins when all of them have ended."""

    stages: tuple[PlannedStage, ...]
    shares: Mapping[str, Share]
    """What each has of the machine, by its name."""

    @property
    def to_run(self) -> list[PlannedStage]:
        return [stage for stage in self.stages if stage.status == "run"]


def groups_of(plan: Plan, machine: Machine, threads: int | None = None) -> tuple[Group, ...]:
    """All stages of a plan, in the order in which their groups run.

    Without stages side by side that is the order of the plan. Else what neither trains nor samples comes as early as it can, so
    that more trainings are ready at the same time.

    Args:
        threads: that compute on a CPU; default: those that this process may use.
    """
    most = _at_once(plan, machine, available_threads() if threads is None else threads)
    if most == 1 or not any(stage.status == "run" for stage in plan.stages):
        return groups_in_order(plan)
    return tuple(_groups(plan, _Beside(plan, machine, most)))


def groups_in_order(plan: Plan) -> tuple[Group, ...]:
    """Every stage alone, in the order of the plan."""
    return tuple(Group((stage,), {stage.name: WHOLE}) for stage in plan.stages)


def shares_of(groups: Iterable[Group]) -> dict[str, Share]:
    """What each stage has of the machine, by its name."""
    return {name: share for group in groups for name, share in group.shares.items()}


def side_by_side(groups: Iterable[Group]) -> list[list[str]]:
    """Names of the stages that will run at the same time, group by group."""
    names = [[stage.name for stage in group.to_run] for group in groups]
    return [group for group in names if len(group) > 1]


def group_lines(groups: Sequence[Group]) -> list[str]:
    """Lines for people, one for each group of several stages that will run; none without such a group."""
    shares, lines = shares_of(groups), []
    for names in side_by_side(groups):
        each = {str(shares[name]) for name in names}
        devices = f", each with {each.pop()}" if len(each) == 1 else ""
        *others, last = names if devices else [f"{name} ({shares[name]})" for name in names]
        lines.append(f"  {', '.join(others)} and {last}{devices}")
    return ["Side by side:", *lines] if lines else []


def _at_once(plan: Plan, machine: Machine, threads: int) -> int:
    """The most stages that run side by side."""
    wanted, has_gpus = plan.machine_file.settings.schedule.at_once, machine.device == "cuda"
    if wanted == "auto":
        # Threads shared by stages were not faster than stages in turn: scripts/benchmarks/side_by_side.py.
        return machine.num_gpus if has_gpus else 1
    return min(wanted, machine.num_gpus if has_gpus else threads)


def _groups(plan: Plan, beside: _Beside) -> Iterator[Group]:
    left = list(plan.stages)
    while left:
        names = {stage.name for stage in left}
        ready = [stage for stage in left if names.isdisjoint(_needed(stage, plan))]
        quick = next((stage for stage in ready if beside.is_quick(stage)), None)
        chosen = [quick or ready[0]]
        if quick is None:
            for stage in ready[1:]:
                if beside.fit([*chosen, stage]):
                    chosen.append(stage)
        yield Group(tuple(chosen), beside.shares(chosen))
        left = [stage for stage in left if stage not in chosen]


def _needed(stage: PlannedStage, plan: Plan) -> set[str]:
    """Names of the stages that come before: those that it reads, and one that makes the same result under another name."""
    twin = _twin(stage, plan)
    return {*stage.inputs, *([] if twin is None else [twin.name])}


def _twin(stage: PlannedStage, plan: Plan) -> PlannedStage | None:
    first = next(other for other in plan.stages if other.entry.path == stage.entry.path)
    return None if first is stage else first


class _Beside:
    """Which stages can run at the same time on this machine."""

    def __init__(self, plan: Plan, machine: Machine, most: int) -> None:
        self._plan = plan
        self._settings = plan.machine_file.settings
        # All of it counts, not what is free now, and no row that a stage has yet to make: see the top of this file.
        self._machine = replace(machine, free_bytes=machine.total_bytes)
        self._reader = PlanReader(plan, {})
        self._most = most

    def is_quick(self, stage: PlannedStage) -> bool:
        """Whether it loads no model, or is another name for a result."""
        config = stage.node.config
        has_models = isinstance(config, (Trains, EngineChoice)) or hasattr(config, "num_workers")
        return _twin(stage, self._plan) is not None or not has_models

    def shares(self, stages: Sequence[PlannedStage]) -> dict[str, Share]:
        """What each of several stages has of the machine."""
        if len(stages) == 1:
            return {stages[0].name: WHOLE}
        if self._machine.device != "cuda":
            return {stage.name: Share(parts=len(stages)) for stage in stages}
        each, more = divmod(self._machine.num_gpus, len(stages))
        sizes = [each + (place < more) for place in range(len(stages))]
        return {
            stage.name: Share(gpus=tuple(range(sum(sizes[:place]), sum(sizes[: place + 1]))))
            for place, stage in enumerate(stages)
        }

    def fit(self, stages: Sequence[PlannedStage]) -> bool:
        """Whether these stages can run at the same time; all but the last can."""
        if len(stages) > self._most or any(self.is_quick(stage) for stage in stages):
            return False
        return self._fit_gpus(stages) if self._machine.device == "cuda" else self._fit_cores(stages)

    def _fit_cores(self, stages: Sequence[PlannedStage]) -> bool:
        """Trainings of one process each that do not sample, and together have the memory that each would have alone."""
        training = self._settings.training
        is_spread = training.processes not in ("auto", 1) or training.strategy not in ("auto", "single") or training.nodes > 1
        trains = all(
            isinstance(config := stage.node.config, Trains) and not isinstance(config, (OnlineTraining, EngineChoice))
            for stage in stages
        )
        if is_spread or not trains:
            return False
        estimates = [self._estimate(stage, self._machine) for stage in stages]
        return None not in estimates and sum(found.memory.peak for found in estimates if found) <= self._machine.total_bytes

    def _fit_gpus(self, stages: Sequence[PlannedStage]) -> bool:
        """Trainings and samplers that have the GPUs that they need, and need to do nothing to fit into them.

        Online methods take far longer than others, and scoring far less; beside them, GPUs would wait for the end of the group.
        """
        configs = [stage.node.config for stage in stages]
        if len({isinstance(config, OnlineTraining) for config in configs}) > 1:
            return False
        if not all(isinstance(config, (Trains, EngineChoice)) for config in configs):
            return False
        if self._settings.training.nodes > 1 or self._settings.sampling.pool == "ray" or self._settings.sampling.devices:
            return False
        for stage, share in zip(stages, self.shares(stages).values(), strict=True):
            config, gpus = stage.node.config, len(share.gpus or ())
            if any(iterate_judges(config)) or gpus < self._gpus_needed(config):
                return False
            if isinstance(config, Trains) and self._estimate(stage, replace(self._machine, num_gpus=gpus)) is None:
                return False
        return True

    def _gpus_needed(self, config: Any) -> int:
        training, sampling = self._settings.training, self._settings.sampling
        each = sampling.tensor_parallel if isinstance(config, EngineChoice) else 1
        if isinstance(config, Trains):
            return max(each, 1 if training.processes == "auto" else min(training.processes, rows_of_a_step(config)))
        engines = getattr(config, "num_workers", 1) if sampling.engines == "auto" else sampling.engines
        return each * int(engines)

    def _estimate(self, stage: PlannedStage, machine: Machine) -> Estimate | None:
        """That of a training which does nothing to fit into this machine; None where it would, or where nothing is known."""
        config = stage.node.config
        assert isinstance(config, Trains)
        peft = config.training_needs().peft
        spread = self._reader.spread(stage, peft, machine)
        found = self._reader.estimate(stage, peft, machine, spread)
        is_plain = found is not None and found.choice == PLAIN and found.memory.peak <= machine.room_for(spread)
        return found if is_plain else None
