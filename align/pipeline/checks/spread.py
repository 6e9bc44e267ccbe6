"""Whether the devices of this machine can do what its machine file asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from align.config.machine import training_processes
from align.config.online import OnlineTraining
from align.config.sections import GenerationEngine
from align.engines.open import resolve_engine
from align.errors import RecipeError
from align.pipeline.checks.devices import check_devices
from align.pipeline.checks.finding import Finding
from align.pipeline.estimate.machine import Machine, read_machine
from align.pipeline.estimate.plan import starting_folder
from align.pipeline.estimate.spread import SPREAD_STAGES, division_refusal, engine_devices, rows_of_a_step
from align.pipeline.plan import Plan, PlannedStage
from align.training.needs import Trains


def check_spread(plan: Plan, machine: Machine | None = None) -> list[Finding]:
    """What the machine file asks of the stages to run, and this machine or their models cannot do.

    Args:
        machine: the one that they would run on; default: this one.
    """
    found = machine or read_machine(plan.run_folder)
    to_run = [stage for stage in plan.stages if stage.status == "run"]
    engines = [stage.node.config for stage in to_run if hasattr(stage.node.config, "num_workers")]
    samples = [isinstance(config, GenerationEngine) for config in engines]
    devices = check_devices(
        plan.machine_file,
        found,
        plan.recipe.name,
        trains=any(stage.stage_type in SPREAD_STAGES for stage in to_run),
        online=any(isinstance(stage.node.config, OnlineTraining) for stage in to_run),
        samples=any(samples),
        scores=not all(samples),
    )
    findings = [*devices, *_strategy(plan, to_run), *_engines(plan, to_run), *_apart(plan, to_run)]
    # Stages of one form may say the same.
    return list(dict.fromkeys(findings))


def refuse_in_process(plan: Plan) -> None:
    """Refuse to run stages in this process that the machine file divides among several.

    Raises:
        RecipeError: if it does.
    """
    training, sampling = plan.machine_file.settings.training, plan.machine_file.settings.sampling
    online = next(
        (stage.name for stage in plan.stages if stage.status == "run" and engine_devices(stage.node.config, sampling)), ""
    )
    if online:
        where = plan.machine_file.where("sampling", "devices")
        raise RecipeError(
            f"--in-process: {where} gives {online} an engine on other devices, which takes other processes",
            hint="Leave --in-process or devices out.",
        )
    if training.processes in ("auto", 1) and training.strategy in ("auto", "single") and training.nodes == 1:
        return  # `auto` is one process here
    stage = next((stage for stage in plan.stages if stage.status == "run" and stage.stage_type in SPREAD_STAGES), None)
    if stage is not None:
        key = "nodes" if training.nodes > 1 else "strategy" if training.processes in ("auto", 1) else "processes"
        where, value = plan.machine_file.where("training", key), getattr(training, key)
        raise RecipeError(
            f"--in-process: {where} is {value}, but {stage.name} would train in this process alone",
            hint="Leave --in-process out; or write training: {processes: 1, strategy: single} for it.",
        )


def refuse_missing_nodes(plan: Plan, to_run: Sequence[PlannedStage]) -> None:
    """Refuse trainings on several nodes whose Ray cluster does not have them now; asked before the first stage begins.

    Raises:
        EnvironmentProblem: if there is no cluster, or it has too few nodes.
    """
    training, sampling = plan.machine_file.settings.training, plan.machine_file.settings.sampling
    trainings: list[Any] = [stage.node.config for stage in to_run if stage.stage_type in SPREAD_STAGES]
    configs = [config for config in trainings if engine_devices(config, sampling) is None]  # the others are on this node
    if training.nodes == 1 or not configs:
        return
    from align.runtime.ray_ranks import refuse_few_nodes

    gpus = read_machine(plan.run_folder).num_gpus
    spreads = [training_processes(training, num_gpus=gpus, batch_size=rows_of_a_step(config)) for config in configs]
    nodes, each = max(spreads)
    if nodes > 1:
        refuse_few_nodes(plan.machine_file.settings.ray.address, nodes, each)


def _strategy(plan: Plan, to_run: list[PlannedStage]) -> Iterator[Finding]:
    strategy = plan.machine_file.settings.training.strategy
    if strategy not in ("fsdp2", "zero3"):
        return
    where = plan.machine_file.where("training", "strategy")
    for stage in to_run:
        config = stage.node.config
        if stage.stage_type in SPREAD_STAGES and isinstance(config, Trains):
            needs = config.training_needs()
            folder = starting_folder(plan, needs.model)
            reason = division_refusal(strategy, stage.stage_type, needs.peft, folder, needs.memory.optimizer)
            if reason is not None:
                advice = "Write strategy: ddp, or auto: each process then has a copy of the model."
                yield Finding(stage.name, f"{where}: {stage.name}: {reason}", advice)


def _engines(plan: Plan, to_run: list[PlannedStage]) -> Iterator[Finding]:
    each, where = plan.machine_file.settings.sampling.tensor_parallel, plan.machine_file.where("sampling", "tensor_parallel")
    for stage in to_run if each > 1 else ():
        if isinstance(stage.node.config, GenerationEngine):
            yield from _of_model(plan, stage, each, where)


def _apart(plan: Plan, to_run: list[PlannedStage]) -> Iterator[Finding]:
    """What stands in the way of engines on devices of their own, beside online methods."""
    sampling = plan.machine_file.settings.sampling
    for stage in to_run:
        config: Any = stage.node.config
        if engine_devices(config, sampling) is None:
            continue
        if resolve_engine(config.engine) != "vllm":
            where = plan.machine_file.where("sampling", "devices")
            text = f"{where}: only vLLM samples on devices of its own, and it is not what samples in {stage.name}"
            yield Finding(stage.name, text, "Leave devices out, or let vLLM sample (engine: vllm).")
        elif sampling.tensor_parallel > 1:
            where = plan.machine_file.where("sampling", "tensor_parallel")
            yield from _of_model(plan, stage, sampling.tensor_parallel, where)


def _of_model(plan: Plan, stage: PlannedStage, each: int, where: str) -> Iterator[Finding]:
    """What stands in the way of an engine of several GPUs in the models that a stage samples from."""
    config: Any = stage.node.config
    models = [name for path, name in stage.node.references if path[0] in ("model", "models")]
    folders = [folder for name in models if (folder := starting_folder(plan, name)) is not None]
    by_transformers = next((folder for folder in folders if folder.encoder_decoder or folder.virtual_tokens), None)
    if by_transformers is not None or resolve_engine(config.engine) != "vllm":
        reason = "vLLM is not what samples there" if by_transformers is None else f"vLLM does not serve {by_transformers.path}"
        yield Finding(stage.name, f"{where}: {each}, but only vLLM's engines have several GPUs, and {stage.name}: {reason}",
                      "Leave tensor_parallel out.")  # fmt: skip
        return
    for folder in folders:
        heads = folder.base.config.get("num_attention_heads")
        if isinstance(heads, int) and heads % each:
            text = f"{where}: {each} GPUs cannot share the {heads} attention heads of {folder.base.path} ({stage.name})"
            yield Finding(stage.name, text, f"Write a number that divides {heads}.")
