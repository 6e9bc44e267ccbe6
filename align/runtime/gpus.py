"""Which GPUs a process may use. CUDA is not touched: at its first use it fixes what the process sees."""

from __future__ import annotations

import glob
import os
from itertools import takewhile

from align.runtime.spread import Spread

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
SAMPLING_VARIABLE = "ALIGN_SAMPLING_GPUS"
"""Names the GPUs of a stage on which it samples and does not train; `GPU_VARIABLE` then names the others."""


def visible_gpus() -> list[str]:
    """Names of GPUs that CUDA_VISIBLE_DEVICES can have in this process."""
    variable = os.environ.get(GPU_VARIABLE)
    if variable is None:
        # One file with a number for each GPU; nvidiactl and nvidia-uvm have none.
        return [str(index) for index in range(len(glob.glob("/dev/nvidia[0-9]*")))]
    # CUDA ignores every name after the first invalid one.
    return list(takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in variable.split(","))))


def share_of_gpus(devices: list[str], number: int, each: int) -> list[str] | None:
    """The GPUs of worker `number`; None: all of them. `executor_for` starts no more workers than there are shares."""
    if each == 0 or len(devices) <= each:
        return None
    return devices[number * each : (number + 1) * each]


def divided_gpus(spread: Spread) -> dict[str, str]:
    """Environment of the process of a stage whose training leaves some of the visible GPUs to engines."""
    sampling = () if spread.engines is None else spread.engines.gpus
    if not sampling:
        return {}
    names = visible_gpus()
    others = [name for place, name in enumerate(names) if place not in sampling]
    return {GPU_VARIABLE: ",".join(others), SAMPLING_VARIABLE: ",".join(names[place] for place in sampling)}


def sampling_gpus() -> list[str]:
    """Names of the GPUs that are not for training, in a process that has the environment of `divided_gpus`."""
    return [name for name in os.environ.get(SAMPLING_VARIABLE, "").split(",") if name]


def gpu_of_rank() -> dict[str, str]:
    """Environment of a process that is to see only the GPU of this rank; empty without GPUs."""
    names = visible_gpus()
    return {GPU_VARIABLE: names[int(os.environ["LOCAL_RANK"])]} if names else {}
