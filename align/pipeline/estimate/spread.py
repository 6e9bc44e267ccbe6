"""How the stages of a plan are spread over the devices of a machine, by its machine file: the one place that decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from align.config.judge import iterate_judges
from align.config.machine import SamplingEngines, TrainingProcesses, training_processes
from align.config.online import OnlineTraining
from align.config.sections import GenerationEngine, OptimizerName
from align.models.folder import ModelFolder
from align.pipeline.estimate.loaded_model import Peft
from align.pipeline.estimate.machine import Machine
from align.runtime.spread import ALONE, EngineDevices, Spread

SPREAD_STAGES = frozenset(
    {"sft", "reward_model", "dpo", "orpo", "simpo", "kto", "ppo", "grpo", "rloo", "distill"},
)
"""Types of stages whose trainings several processes share, of one node or of several."""
ZERO3_STAGES = frozenset({"sft", "reward_model", "dpo", "orpo", "simpo", "kto"})
"""Those that zero3 divides. Online methods compute states and logits apart, so that DeepSpeed would not know what to gather."""


@dataclass(frozen=True)
class EngineSpread:
    """How sampling or scoring is spread. The results do not depend on it."""

    engines: int = 1
    """Engines, or scorers, that work at the same time."""
    tensor_parallel: int = 1
    """GPUs of each."""
    pool: Literal["processes", "ray"] = "processes"
    what: str = "engine"

    def __str__(self) -> str:
        count = f"{self.engines} {self.what}{'' if self.engines == 1 else 's'}"
        gpus = f" of {self.tensor_parallel} GPUs" if self.tensor_parallel > 1 else ""
        return f"{count}{gpus}{' on Ray' if self.pool == 'ray' else ''}"

    @property
    def is_plain(self) -> bool:
        """Whether it is as without a machine file, on one device."""
        return (self.engines, self.tensor_parallel, self.pool) == (1, 1, "processes")

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest records."""
        return {"engines": self.engines, "tensor_parallel": self.tensor_parallel, "pool": self.pool}


def spread_of(
    stage_type: str,
    config: Any,
    settings: TrainingProcesses,
    machine: Machine,
    *,
    refusal: str | None,
    fits: Callable[[Spread], bool],
    checkpoint: str | None = None,
    sampling: SamplingEngines | None = None,
) -> Spread:
    """How a training is spread.

    Args:
        sampling: of the machine file; an online method may sample on devices of its own.
        checkpoint: the strategy of an interrupted attempt's checkpoint, as `training.checkpoint.strategy_of` says it. With `auto`
            the attempt goes on as it began, however much memory is free now.
        config: of the stage.
        refusal: why fsdp2 cannot divide the model; None where it can.
        fits: whether the training would fit into a device if it were spread so.
    """
    if stage_type not in SPREAD_STAGES:
        return ALONE
    engines = engine_devices(config, sampling)
    if engines is not None:
        settings = settings.model_copy(update={"nodes": 1})
    num_gpus = machine.num_gpus
    if engines is not None and engines.gpus:
        num_gpus -= len(engines.gpus)
        if settings.processes != "auto":  # that is for trainings that have all GPUs
            settings = settings.model_copy(update={"processes": max(1, min(settings.processes, num_gpus))})
    nodes, each = training_processes(settings, num_gpus=num_gpus, batch_size=rows_of_a_step(config))

    def spread(strategy: str) -> Spread:
        samplers = 1 if engines is not None else samplers_of(config, sampling or SamplingEngines(), nodes * each, machine)
        return Spread(nodes * each, strategy, settings.hang_minutes, nodes, engines, samplers)

    if settings.strategy != "auto":
        return spread(settings.strategy)
    if checkpoint in ("fsdp2", "zero3"):
        return spread(checkpoint)
    if nodes * each == 1:
        return replace(ALONE, engines=engines)
    whole = refusal is not None or checkpoint is not None or fits(spread("ddp"))
    return spread("ddp" if whole else "fsdp2")


def engine_devices(config: Any, sampling: SamplingEngines | None) -> EngineDevices | None:
    """Devices that only sample while a stage trains; None: it samples on those that train, or not at all.

    Args:
        config: of the stage.
    """
    if sampling is None or sampling.devices is None or not isinstance(config, OnlineTraining):
        return None
    gpus = () if sampling.devices == "cpu" else tuple(sampling.devices)
    return EngineDevices(gpus, sampling.tensor_parallel)


def samplers_of(config: Any, sampling: SamplingEngines, processes: int, machine: Machine) -> int:
    """How many processes of a training have an engine of their own, to sample for an online method.

    All that have a GPU, unless the machine file says how many GPUs sample; without GPUs one, as engines would share the cores.
    """
    if not isinstance(config, OnlineTraining):
        return 1
    if sampling.engines == "auto":
        return processes if machine.num_gpus else 1
    return min(sampling.engines * sampling.tensor_parallel, processes)


def rows_of_a_step(config: Any) -> int:
    """Rows, pairs or episodes of an optimizer step, by the configuration of a stage that trains."""
    size: int = config.mini_batch_size if isinstance(config, OnlineTraining) else config.batch_size
    return size


def division_refusal(
    strategy: str, stage_type: str, peft: Peft, folder: ModelFolder | None, optimizer: OptimizerName = "adamw"
) -> str | None:
    """Why a strategy cannot divide a model among processes; None where it can.

    Args:
        strategy: fsdp2 or zero3.
        folder: of the model; None where it is not known yet.
    """
    if strategy == "zero3" and stage_type not in ZERO3_STAGES:
        return f"zero3 does not train {stage_type}; ddp and fsdp2 do"
    if peft is not None and (peft.method == "qlora" or (strategy == "zero3" and peft.method != "lora")):
        return f"{strategy} does not divide {'weights in 4 bits' if peft.method == 'qlora' else 'virtual tokens'} ({peft.method})"
    if folder is not None and (architecture := folder.encoder_decoder):
        return f"{strategy} does not divide encoder–decoder models ({architecture})"
    if strategy == "zero3" and peft is not None and folder is not None and (folder.new_tokens or folder.trained_token_ids):
        return "zero3 does not divide a head in which rows of new tokens learn beside an adapter"
    if optimizer != "adamw":  # they fail at their first step
        return f"{strategy} does not divide what optimizer {optimizer} keeps; adamw's it does"
    return None


def engines_of(config: Any, settings: SamplingEngines, machine: Machine) -> EngineSpread | None:
    """How a stage spreads what it samples or scores; None for one that does neither, or does it beside a training.

    Args:
        config: of the stage.
    """
    if not hasattr(config, "num_workers"):
        return None
    samples = isinstance(config, GenerationEngine)
    gpus_each, what = (settings.tensor_parallel, "engine") if samples else (1, "scorer")
    if not samples and any(iterate_judges(config)):
        return EngineSpread(what=what)  # its requests are sent from one process, which counts them
    on_gpus = max(1, machine.num_gpus // gpus_each)
    if settings.engines != "auto":
        engines = settings.engines
    elif "num_workers" in config.model_fields_set:
        is_limited = machine.num_gpus > 0 and settings.pool == "processes"
        engines = min(config.num_workers, on_gpus) if is_limited else config.num_workers
    else:
        engines = on_gpus
    return EngineSpread(engines, gpus_each, settings.pool, what)
