"""How a stage of a plan is run on this machine: its job, for a launcher."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from align.config.judge import judge_environment
from align.pipeline.estimate.machine import Machine, read_machine
from align.pipeline.estimate.memory import Estimate
from align.pipeline.estimate.plan import PlanReader
from align.pipeline.estimate.spread import engines_of
from align.pipeline.estimate.table import size_text
from align.pipeline.plan import Plan, PlannedStage, needed_by
from align.pipeline.shared_engine import SharedEngine
from align.pipeline.worker import StageJob, job_environment, run_stage
from align.runtime.context import CHECKPOINT_NAME, PLAIN, MemoryChoice
from align.runtime.events import Emit, Note
from align.runtime.gpus import divided_gpus
from align.runtime.job import Job
from align.runtime.pool import LOCAL, Pool
from align.runtime.share import WHOLE, Share
from align.runtime.spread import ALONE, Spread
from align.stage import StageConfig
from align.store.artifact import Artifact
from align.training.needs import Trains

LOG_NAME = "run.log"


class JobMaker:
    """Makes the jobs of a run, when it comes to them."""

    def __init__(self, plan: Plan, emit: Emit, command: list[str], *, in_process: bool) -> None:
        """`emit` takes what users should know of it; `command` is what they typed."""
        self._plan = plan
        self._emit = emit
        self._command = command
        self._in_process = in_process

    @cached_property
    def shared_engine(self) -> SharedEngine:
        """The engine that the stages share; none in this process, where everything stays in sight of a debugger."""
        to_run = [] if self._in_process else [stage.node.config for stage in self._plan.stages if stage.status == "run"]
        return SharedEngine(to_run, self.log.resolve(), job_environment(os.environ))

    @property
    def log(self) -> Path:
        """Takes what the processes of jobs print."""
        return self._plan.run_folder / LOG_NAME

    def log_of(self, stage: PlannedStage, share: Share) -> Path:
        """Takes what the process of a stage prints: a file of its own while others run, as their lines would mix."""
        return self.log if share == WHOLE else self.log.with_name(f"run-{stage.name}.log")

    def fit_together(self, stages: Sequence[PlannedStage], artifacts: Mapping[str, Artifact]) -> bool:
        """Whether the memory that is free now is enough for trainings at the same time. The shared engine ends if it is not."""
        machine, reader = read_machine(self._plan.run_folder), PlanReader(self._plan, artifacts)
        if machine.device == "cuda":
            return True  # each has GPUs of its own
        needed = 0
        for stage in stages:
            config = stage.node.config
            assert isinstance(config, Trains)
            estimate = reader.estimate(stage, config.training_needs().peft, machine, ALONE)
            needed += 0 if estimate is None else estimate.memory.peak
        if needed <= machine.free_bytes:
            return True
        return self.shared_engine.make_room() and needed <= read_machine(self._plan.run_folder).free_bytes

    def job(self, stage: PlannedStage, artifacts: Mapping[str, Artifact], share: Share, ordered_at: float) -> Job:
        """The job of a stage whose inputs are there.

        Args:
            share: what it has of the machine.
            ordered_at: see `StageJob`.
        """
        config, plan = stage.node.config, self._plan
        assert isinstance(config, StageConfig)
        if self._in_process:  # what a process sees of its GPUs cannot change
            share = replace(share, gpus=None)
        needed = needed_by(plan.recipe, stage.name)
        memory, spread = self._fit(stage, artifacts, share)
        config, pool = self._engines(config, share)
        # It serves one stage at a time, and on the GPUs that it began with.
        gpus = {**share.environment, **divided_gpus(spread)}
        engine_host = self.shared_engine.lend(config, pool, spread) if share == WHOLE else None
        work = StageJob(
            name=stage.name,
            stage_type=stage.stage_type,
            fingerprint=stage.fingerprint,
            config=config,
            seed=stage.seed,
            entry=stage.entry,
            artifacts={name: artifact for name, artifact in artifacts.items() if name in needed},
            inputs=stage.inputs,
            recipe=plan.recipe.resolved(),
            command=self._command,
            memory=memory,
            ordered_at=ordered_at,
            spread=spread,
            pool=pool,
            share=share,
            engine_host=engine_host,
            ray_address=plan.machine_file.settings.ray.address,
        )
        return Job(
            name=stage.name,
            run=partial(run_stage, work),
            log=self.log_of(stage, share).resolve(),
            environment={**judge_environment(config, os.environ), **job_environment(os.environ), **gpus},
            checkpoint_request=stage.entry.work / CHECKPOINT_NAME if isinstance(config, Trains) else None,
            # What a process sees of the GPUs is fixed when an import asks for them.
            can_preload=not gpus and not _needs_bitsandbytes(config),
        )

    def _fit(self, stage: PlannedStage, artifacts: Mapping[str, Artifact], share: Share) -> tuple[MemoryChoice, Spread]:
        """What a training does to fit into the memory that is free now, and how it is spread; both are reported unless plain."""
        config = stage.node.config
        if not isinstance(config, Trains):
            return PLAIN, ALONE
        machine = self._machine(share)
        reader, peft = PlanReader(self._plan, artifacts), config.training_needs().peft
        spread = ALONE if self._in_process else reader.spread(stage, peft, machine)
        estimate = reader.estimate(stage, peft, machine, spread)
        if not _is_plain(estimate, machine, spread) and self.shared_engine.make_room():
            machine = self._machine(share)
            spread = reader.spread(stage, peft, machine)
            estimate = reader.estimate(stage, peft, machine, spread)
        if spread != ALONE:
            self._emit(Note(stage=stage.name, text=f"{spread}"))
        if estimate is None or estimate.choice == PLAIN:
            return PLAIN, spread
        needs, free = size_text(estimate.memory.peak), size_text(machine.free_for(spread))
        self._emit(Note(stage=stage.name, text=f"{estimate.choice}, to fit: about {needs} of {free}"))
        return estimate.choice, spread

    def _machine(self, share: Share) -> Machine:
        """This machine as it is now, with the GPUs that a stage has."""
        return read_machine(self._plan.run_folder).part(share)

    def _engines(self, config: StageConfig, share: Share) -> tuple[StageConfig, Pool]:
        """The configuration with as many workers as the machine file says, and where they are."""
        settings = self._plan.machine_file.settings
        engines = engines_of(config, settings.sampling, self._machine(share))
        if engines is None:
            return config, LOCAL
        address = settings.ray.address if engines.pool == "ray" else LOCAL.address
        pool = Pool(engines.pool, address, engines.tensor_parallel)
        # `auto` starts no processes where a debugger looks on, as it does not for trainings.
        is_own = self._in_process and settings.sampling.engines == "auto"
        return (config if is_own else config.model_copy(update={"num_workers": engines.engines})), pool


def _is_plain(estimate: Estimate | None, machine: Machine, spread: Spread) -> bool:
    """Whether a training fits into the memory that is free, without doing anything for it."""
    return estimate is None or (estimate.choice == PLAIN and estimate.memory.peak <= machine.free_for(spread))


def _needs_bitsandbytes(config: StageConfig) -> bool:
    """Whether the stage has a model in 4 bits or an optimizer in 8. The preload hides bitsandbytes from libraries."""
    peft = getattr(config, "peft", None)
    return (peft is not None and peft.method == "qlora") or str(getattr(config, "optimizer", "")).endswith("8bit")
