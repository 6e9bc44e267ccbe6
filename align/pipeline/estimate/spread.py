"""How the stages of a plan are spread over the devices of a machine, by its machine file: the one place that decides.

Only `training.processes` and `training.strategy` decide for trainings, only `sampling` for stages that sample or score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from align.config.machine import TrainingProcesses, training_processes
from align.models.folder import ModelFolder
from align.pipeline.estimate.loaded_model import Peft
from align.pipeline.estimate.machine import Machine
from align.runtime.spread import ALONE, Spread

SPREAD_STAGES = frozenset({"sft", "reward_model", "dpo", "orpo", "simpo", "kto"})
"""Types of stages whose trainings several processes share."""
ONE_PROCESS = "one process: online methods are not spread yet"
"""Of the other types of stages that train."""


def spread_of(
    stage_type: str,
    config: Any,
    settings: TrainingProcesses,
    machine: Machine,
    *,
    refusal: str | None,
    fits: Callable[[Spread], bool],
) -> Spread:
    """How a training is spread.

    Args:
        config: of the stage.
        refusal: why the model cannot be shared by fsdp2; None where it can.
        fits: whether the training would fit into a device if it were spread so.
    """
    if stage_type not in SPREAD_STAGES:
        return ALONE
    processes = training_processes(settings, num_gpus=machine.num_gpus, batch_size=config.batch_size)
    if settings.strategy != "auto":
        return Spread(processes, settings.strategy, settings.hang_minutes)
    if processes == 1:
        return ALONE
    copies = Spread(processes, "ddp", settings.hang_minutes)
    return copies if refusal is not None or fits(copies) else Spread(processes, "fsdp2", settings.hang_minutes)


def fsdp2_refusal(peft: Peft, folder: ModelFolder | None) -> str | None:
    """Why fsdp2 cannot divide a model; None where it can.

    Args:
        folder: of the model; None where it is not known yet.
    """
    if peft is not None and peft.method == "qlora":
        return "fsdp2 does not divide weights in 4 bits"
    if folder is not None and (architecture := folder.encoder_decoder):
        return f"fsdp2 is not there for encoder–decoder models ({architecture})"
    return None
