"""Whether this machine has the devices and packages that a machine file asks for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from align.config.machine_file import MachineFile
from align.pipeline.checks.finding import Finding
from align.pipeline.estimate.machine import Machine


def check_devices(
    file: MachineFile,
    machine: Machine,
    name: str,
    *,
    trains: bool = True,
    online: bool = True,
    samples: bool = True,
    scores: bool = True,
) -> Iterator[Finding]:
    """What is missing here.

    Args:
        name: of the findings.
        trains, online, samples, scores: what will be done; the settings of other work are not looked at.
    """
    if trains:
        yield from _processes(file, machine, name)
        if file.settings.training.strategy == "zero3" and importlib.util.find_spec("deepspeed") is None:
            text = f"{file.where('training', 'strategy')}: zero3, but DeepSpeed is not installed in this environment"
            advice = "Install it: pip install 'align-llm[zero3]'; or write strategy: fsdp2, which divides the same."
            yield Finding(name, text, advice, cause="machine")
        if file.settings.training.nodes > 1 and importlib.util.find_spec("ray") is None:
            text = (
                f"{file.where('training', 'nodes')}: {file.settings.training.nodes}, but Ray is not installed in this environment"
            )
            yield Finding(name, text, "Install it: pip install 'align-llm[ray]'.", cause="machine")
    if online:
        yield from _apart(file, machine, name)
    if not (samples or scores):
        return
    if file.settings.sampling.pool == "ray":  # its GPUs are those of the cluster
        if importlib.util.find_spec("ray") is None:
            text = f"{file.where('sampling', 'pool')}: Ray is not installed in this environment"
            yield Finding(name, text, "Install it: pip install 'align-llm[ray]'.", cause="machine")
        return
    yield from _engines(file, machine, name, samples=samples)


def _processes(file: MachineFile, machine: Machine, name: str) -> Iterator[Finding]:
    wanted = file.settings.training.processes
    if wanted != "auto" and 0 < machine.num_gpus < wanted:
        text = f"{file.where('training', 'processes')}: {wanted}, but {_gpus(machine.num_gpus)}"
        advice = f"Write processes: {machine.num_gpus}, or auto: each process has a GPU of its own."
        yield Finding(name, text, advice, cause="machine")


def _apart(file: MachineFile, machine: Machine, name: str) -> Iterator[Finding]:
    """What is wrong with devices that only sample for online methods."""
    devices, there = file.settings.sampling.devices, machine.num_gpus
    if devices is None:
        return
    text, advice = "", "Leave devices out: online methods then sample on the GPU of the first process."
    if devices == "cpu":
        text = f"cpu, but {_gpus(there)}" if there else ""
    elif machine.device == "cpu":
        text, advice = f"{devices}, but there is no GPU here that stages can use", "Leave devices out, or write cpu."
    elif max(devices) >= there:
        # A count from 1 is what a mistake looks like most often.
        text, advice = f"there is no GPU {max(devices)}: {_gpus(there)}, numbered from 0", "Write other numbers."
    elif len(devices) == there:
        text = f"{devices} are all the GPUs that are visible, which leaves none to train on"
    if text:
        yield Finding(name, f"{file.where('sampling', 'devices')}: {text}", advice, cause="machine")


def _engines(file: MachineFile, machine: Machine, name: str, *, samples: bool) -> Iterator[Finding]:
    sampling, there = file.settings.sampling, machine.num_gpus
    each, where = sampling.tensor_parallel if samples else 1, file.where("sampling", "tensor_parallel")
    if each > 1 and machine.device == "cpu":
        text = f"{where}: an engine of {each} GPUs, but there is none here that stages can use"
        yield Finding(name, text, "Leave tensor_parallel out.", cause="machine")
    elif each > there > 0:
        text = f"{where}: an engine of {each} GPUs, but {_gpus(there)}"
        yield Finding(name, text, f"Write tensor_parallel: {there}, or leave it out.", cause="machine")
    elif sampling.engines != "auto" and 0 < there < (needed := sampling.engines * each):
        of = f" of {each} GPUs" if each > 1 else ""
        text = f"{file.where('sampling', 'engines')}: {sampling.engines} engines{of} need {needed} GPUs, but {_gpus(there)}"
        yield Finding(name, text, "Leave engines out: one is started for each GPU, or group of GPUs.", cause="machine")


def _gpus(count: int) -> str:
    return f"{count} GPU{' is' if count == 1 else 's are'} visible"
