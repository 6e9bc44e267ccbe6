"""The state of an online training between two updates, and its checkpoints. Resuming changes no byte of what follows.

Everything is safetensors or JSON, and whole: any number of processes goes on from it, however they divide the models. No state of
a random number generator is kept: every draw is a function of the seed and of the number of the rollout batch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.models.trainable import load_trained_state
from align.store.atomic import write_json
from align.training.online.experience import Experience
from align.training.online.layout import Episode
from align.training.online.learner import LearningPhase, Optimizers
from align.training.online.models import trainable
from align.training.sharding import local_part, part_like, release, whole_tensor

STATE_NAME = "state.json"
NUMBER = ":number"
BEFORE_NAME = "policy-before.safetensors"
PHASE_NAME = "phase.json"
EXPERIENCE_NAME = "experience.safetensors"


@dataclass
class TrainerState:
    """The numbers that travel from one rollout batch to the next."""

    rollouts: int = 0
    """Rollout batches learned from."""
    kl_coef: float = 0.0
    score_bias: float = 0.0
    """Mean score of the reference's completions, 0 where scores are not centred."""
    nonfinite: int = 0
    """Completions that were left out."""
    new_tokens: int = 0
    """Sampled in the rollout batches that were learned from."""
    tokens: int = 0
    """Prompts and completions that were learned from, one pass over them."""
    trained_tokens: int = 0
    """The same over all passes that were made."""
    scored: int = 0
    """Completions that were scored, those among them that were not learned from."""
    scored_tokens: int = 0
    """Of those completions and their prompts."""
    refilled: int = 0
    """Prompts that were drawn in place of others whose scores were all equal."""
    truncated: int = 0
    """Completions that were left out because they were cut."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """What was logged: one dict per rollout batch."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by kind of work, over all attempts."""


def save_state(
    folder: Path,
    trainer_state: TrainerState,
    optimizers: Optimizers,
    before: Sequence[Tensor] | None,
    phase: LearningPhase | None = None,
    *,
    writes: bool = True,
) -> None:
    """Write everything into `folder`, which is replaced. The checkpoint is complete only once it is sealed.

    All processes of a training call it, to put together what they divide; one of them writes.

    Args:
        before: the policy's parameters before its last update, where that update may be undone.
        phase: what the models are learning from, where they are between two updates from one rollout batch.
    """
    if writes:
        # A kill may have left a part of it.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def write(name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        # One file after the other: never more than a model's moments are whole, in the memory of the computer.
        kept = {}
        for key, tensor in tensors:
            together = whole_tensor(tensor)
            if writes:
                kept[key] = together.cpu().contiguous()
        if writes:
            save_file(kept, folder / name)

    if before is not None:
        write(BEFORE_NAME, ((str(number), parameter) for number, parameter in enumerate(before)))
    for learner in optimizers:
        release(learner.model)
        write(f"{learner.name}.safetensors", _learning(learner.model))
        write(f"{learner.name}-optimizer.safetensors", _moments(learner.optimizer))
    if not writes:
        return
    if phase is not None:
        if phase.experience is not None:
            tensors = {name: values for name, values in vars(phase.experience).items() if values is not None}
            save_file({name: values.cpu().contiguous() for name, values in tensors.items()}, folder / EXPERIENCE_NAME)
        kept = {name: value for name, value in vars(phase).items() if name not in ("episodes", "experience")}
        write_json(folder / PHASE_NAME, {**kept, "episodes": [asdict(episode) for episode in phase.episodes]})
    schedules = {learner.name: learner.schedule.state_dict() for learner in optimizers}
    write_json(folder / STATE_NAME, {"trainer_state": asdict(trainer_state), "schedules": schedules})


def load_state(
    folder: Path, optimizers: Optimizers, device: torch.device
) -> tuple[TrainerState, list[Tensor] | None, LearningPhase | None]:
    """Load what `save_state` wrote into fresh models and optimizers.

    Returns:
        The numbers, the parameters before the update, and what is being learned from.
    """
    state = json.loads((folder / STATE_NAME).read_text())
    for learner in optimizers:
        release(learner.model)
        found = load_file(folder / f"{learner.name}.safetensors")
        load_trained_state(learner.model, {name: part_like(found[name], value) for name, value in _learning(learner.model)})
        _load_moments(learner.optimizer, load_file(folder / f"{learner.name}-optimizer.safetensors"))
        schedule = state["schedules"][learner.name]
        learner.schedule.load_state_dict(schedule)
        # A schedule sets the rate only when it steps; the first update would otherwise use that of a fresh optimizer.
        for group, rate in zip(learner.optimizer.param_groups, schedule["_last_lr"], strict=True):
            group["lr"] = rate
    before = None
    if (folder / BEFORE_NAME).exists():
        tensors = load_file(folder / BEFORE_NAME)
        parameters = trainable(optimizers.policy.model)
        before = [part_like(tensors[str(number)], parameter) for number, parameter in enumerate(parameters)]
    phase = None
    if (folder / PHASE_NAME).exists():
        experience = None
        if (folder / EXPERIENCE_NAME).exists():
            found = load_file(folder / EXPERIENCE_NAME, device=str(device))
            experience = Experience(**{"values": None, "returns": None, **found})
        kept = json.loads((folder / PHASE_NAME).read_text())
        kept["episodes"] = [Episode(**episode) for episode in kept["episodes"]]
        phase = LearningPhase(experience=experience, **kept)
    return TrainerState(**state["trainer_state"]), before, phase


def _learning(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The parameters that learn, by name."""
    return ((name, parameter.detach()) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """What the optimizer knows of each parameter, by `<number of the parameter>.<what>`, with NUMBER behind what is no tensor."""
    seen: set[int] = set()
    for name, value in _leaves(optimizer.state_dict()["state"]):
        if not isinstance(value, Tensor):
            yield f"{name}{NUMBER}", torch.tensor(value)
            continue
        # 8-bit optimizers share a table among parameters, and safetensors refuses to write the same memory twice.
        place = local_part(value).data_ptr()
        yield name, value.clone() if place in seen else value
        seen.add(place)


def _leaves(values: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Values by the keys that lead to them, joined with dots; bitsandbytes has its tensors one level deeper than others."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _load_moments(optimizer: torch.optim.Optimizer, kept: dict[str, Tensor]) -> None:
    state = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in kept.items():
        number, *between, last = name.removesuffix(NUMBER).split(".")
        place = state["state"].setdefault(int(number), {})
        for key in between:
            place = place.setdefault(key, {})
        place[last] = tensor.item() if name.endswith(NUMBER) else part_like(tensor, parameters[int(number)])
    # This moves the tensors to the device of their parameters.
    optimizer.load_state_dict(state)
