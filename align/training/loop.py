"""What all trainings share: resuming, progress, a stop on request, and a stop at the first non-finite number."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.config.sections import Optimization
from align.errors import EnvironmentProblem, Interrupted, StageError
from align.metric import json_value
from align.models.trainable import load_trained_state, trained_state
from align.runtime.bitsandbytes_check import require_for_optimizer
from align.runtime.context import RunContext
from align.runtime.device import device_name, has_bfloat16
from align.runtime.group import any_of, from_first, wait_for_all
from align.runtime.profile import phase
from align.runtime.seed import derive_seed
from align.store.atomic import write_bytes
from align.training import checkpoint, zero3
from align.training.needs import Precision, training_precision
from align.training.optimizer import moments_in_8_bits, trainer_name
from align.training.sharding import own_gradients, strategy_arguments
from align.training.step import StepTrainer

TRAINED_NAME = "trained.safetensors"
"""File in a checkpoint of an adapter that takes the place of the model."""
# The share of all steps between two log lines: fifty points make a curve.
LOGGING_RATIO = 0.02
# Timings differ from run to run; TRL's count of tokens and transformers' mean loss start again after an interruption. A resumed
# training must give the same curve.
NOT_CURVES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "num_tokens", "train_loss")


def resolve_precision(name: str) -> Precision:
    """The arithmetic that a recipe's `precision` means on this machine."""
    return training_precision(name, gpu_has_bfloat16=has_bfloat16())


def training_arguments(config: Optimization, context: RunContext, *, num_rows: int) -> dict[str, Any]:
    """Keyword arguments for `TrainingArguments` and its subclasses.

    `batch_size` counts the rows of an optimizer step over all processes, so neither steps nor rows depend on how many there are.
    """
    require_for_optimizer(config.optimizer, context.name)
    micro = config.micro_batch_size
    if micro == "auto":
        micro = math.gcd(context.memory.micro_batch_size or config.batch_size, config.batch_size)
    steps = math.ceil(num_rows / config.batch_size) * config.num_epochs
    return {
        "output_dir": str(context.work / checkpoint.FOLDER_NAME),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // micro,
        "num_train_epochs": float(config.num_epochs),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        # The first step of a warm-up has the rate 0: with a single step nothing would be learnt.
        "warmup_steps": min(math.ceil(steps * config.warmup_ratio), steps - 1),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": trainer_name(config.optimizer),
        "use_cpu": device_name() == "cpu",
        # Without it, DDP changes its buckets after a process's first step. A gradient's place in a bucket decides in which order
        # three or more ranks sum it, so that a training that goes on from a checkpoint may round otherwise.
        "ddp_find_unused_parameters": True,
        **strategy_arguments(context.spread, resolve_precision(config.precision)),
        # TRL's default is true; `train` switches it on.
        "gradient_checkpointing": False,
        # Dropout draws from `seed`, the order of rows from `data_seed`.
        "seed": derive_seed(context.seed, "dropout", *([context.rank] if context.rank else [])),
        "data_seed": derive_seed(context.seed, "order"),
        # "no" leaves it to the clock; "steps" is there with checkpoint_steps only.
        "save_strategy": "no" if config.checkpoint_steps is None else "steps",
        "save_steps": config.checkpoint_steps or 1,
        "logging_strategy": "steps",
        "logging_steps": max(1, round(steps * LOGGING_RATIO)),
        "logging_first_step": True,
        # transformers would hide a NaN behind the mean of the earlier losses.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        "push_to_hub": False,
        # The loader yields rows, not tensors.
        "dataloader_pin_memory": False,
        # transformers would remove every column that is not an argument of the model's forward.
        "remove_unused_columns": False,
    }


class GuardedTraining(StepTrainer):
    """Mixed into a trainer: stops before a non-finite loss or gradient can reach a weight, and sends nothing anywhere."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # The optimizer has not stepped yet, so the weights are those of the step before.
        step = f"step {self.state.global_step + 1} of {self.state.max_steps}"
        if any_of(not torch.isfinite(loss).all()):
            raise StageError(
                f"The loss is {loss.item()} at {step}; nothing of this step was kept",
                hint="Lower learning_rate, raise warmup_ratio, set precision: float32, or look for odd rows in the data.",
            )
        # A finite loss can have an infinite gradient. One number per tensor, checked together: the GPU is waited for once.
        sums = [gradient.sum() for gradient in own_gradients(self.model)]
        if any_of(bool(sums) and not torch.isfinite(torch.stack(sums)).all()):
            raise StageError(
                f"A gradient is not finite at {step}; the weights were not changed by it",
                hint="Lower learning_rate, set precision: float32, or look for odd rows in the data.",
            )
        if self.is_deepspeed_enabled:
            zero3.step(self.accelerator)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint's model; that of ZeRO-3 is written together with the optimizer."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        moments_in_8_bits(optimizer)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save only the trained parameters of an adapter: the rest is in the base model's folder."""
        if all(parameter.requires_grad for parameter in self.model.parameters()):
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_state(self.model), folder / TRAINED_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not (Path(resume_from_checkpoint) / TRAINED_NAME).exists():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_trained_state(model or self.model, load_file(Path(resume_from_checkpoint) / TRAINED_NAME))

    def _send_telemetry(self) -> None:
        """TRL reports every trainer to its makers by default; nothing leaves the machine unless asked."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card: a checkpoint serves to resume, not to be published."""


class _StageCallback(TrainerCallback):
    """Reports where training is, seals checkpoints and obeys a request to stop."""

    def __init__(self, context: RunContext, folder: Path, clock: checkpoint.Clock, per_epoch: Mapping[str, float] | None) -> None:
        self._context = context
        self._per_epoch = per_epoch or {}
        self._folder = folder
        self._clock = clock
        self._saving = contextlib.ExitStack()
        self._loss: dict[str, float] = {}
        self.stopped_by: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # After a kill, rows of the checkpoint may be missing in the file of events, or be in that of another run only.
        for row in _curve_rows(state.log_history):
            self._context.metrics(row)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        for row in _curve_rows(state.log_history[-1:]):
            self._context.metrics(row)
        logs = more.get("logs") or {}
        self._loss = {"loss": logs["loss"]} if "loss" in logs else self._loss

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        steps_per_epoch = state.max_steps / args.num_train_epochs
        per_step = {name: count / steps_per_epoch for name, count in self._per_epoch.items()}
        self._context.progress("train", state.global_step, state.max_steps, "steps", per_step, **self._loss)
        # Ranks learn of a stop, and their clocks run, at slightly different times: they do what rank 0 does.
        self.stopped_by, is_due = from_first((self._context.stop_requested(), self._clock.is_due()))
        if self.stopped_by is not None:
            control.should_training_stop = True
        control.should_save |= self.stopped_by is not None or is_due
        # After the last step the model itself is saved, and a checkpoint would be three times its size.
        control.should_save &= state.global_step < state.max_steps
        if control.should_save:
            self._saving.enter_context(self._context.saving())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        wait_for_all()  # every rank has written its part
        if self._context.is_first:
            checkpoint.seal(self._folder / f"{checkpoint.PREFIX}{state.global_step}")
            checkpoint.remove_old(self._folder)
        wait_for_all()
        self._clock.restart()
        self._saving.close()


class _EpochCallback(TrainerCallback):
    """Calls `keep` with the number of every finished epoch.

    It does so at the epoch's last step, before that step's checkpoint. At the end of the epoch it would be too late: after a
    kill between the two, training would resume after the epoch and never keep it.
    """

    def __init__(self, keep: Callable[[int], None]) -> None:
        self._keep = keep

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        steps_per_epoch = state.max_steps // round(args.num_train_epochs)
        if state.global_step % steps_per_epoch == 0:
            self._keep(state.global_step // steps_per_epoch)


@dataclass(frozen=True)
class TrainingHistory:
    """What training logged: one dict per logging step, with TRL's keys."""

    rows: list[dict[str, float]]
    steps: int
    """Optimizer steps or rollout batches in all."""

    def write(self, path: Path) -> None:
        """One row a line; null: not finite."""
        write_bytes(path, "".join(json.dumps(json_value(row), allow_nan=False) + "\n" for row in self.rows).encode())

    def of_last_epoch(self, key: str, *, rows: int, batch_size: int) -> float | None:
        """Mean of a metric over the last epoch; None where it was never logged.

        A logged value is a mean over the steps since the one before; it counts by the rows of those steps that lie in the epoch.
        The value of the last step alone would be that of a few rows.

        Args:
            rows: rows of an epoch.
            batch_size: rows of an optimizer step; the epoch's last step may have fewer.
        """
        before = self.steps - math.ceil(rows / batch_size)
        total, weight, since = 0.0, 0, before
        for row in self.rows:
            if key in row and (step := int(row["step"])) > before:
                seen = min((step - before) * batch_size, rows) - (since - before) * batch_size
                total, weight, since = total + seen * row[key], weight + seen, step
        return total / weight if weight else None


def train(
    trainer: StepTrainer,
    context: RunContext,
    *,
    checkpoint_minutes: float = math.inf,
    gradient_checkpointing: Literal["auto"] | bool = False,
    keep_epoch: Callable[[int], None] | None = None,
    per_epoch: Mapping[str, float] | None = None,
) -> TrainingHistory:
    """Train to the end, from the newest whole checkpoint where there is one.

    No checkpoint is written after the last step.

    Args:
        checkpoint_minutes: between checkpoints, besides those that the trainer's own arguments order.
        keep_epoch: called at the last step of every epoch with its number, from 1.
        gradient_checkpointing: as in the recipe.
        per_epoch: what an epoch trains on, such as tokens or pairs and their number; shown as a rate.
    Raises:
        EnvironmentProblem: if this training cannot go on from the checkpoint, which is in parts of another strategy, or of
            another number of processes (zero3).
        Interrupted: if a stop was requested; a checkpoint of that very step was written before.
        StageError: if a loss or gradient is not finite.
    """
    trainer.pass_size.keep_in(context, [trainer.model], gradient_checkpointing=gradient_checkpointing)
    folder = Path(trainer.args.output_dir or "")
    callback = _StageCallback(context, folder, checkpoint.Clock(checkpoint_minutes, context.checkpoint_request), per_epoch)
    trainer.add_callback(callback)
    if keep_epoch is not None:
        trainer.add_callback(_EpochCallback(keep_epoch))
    # One rank moves damaged ones aside; the others take what it found.
    start = from_first(checkpoint.newest_valid(folder, on_damage=context.note) if context.is_first else None)
    if start is not None:
        _refuse_other_parts(start, context)
        context.note(f"resuming from step {checkpoint.step_of(start)}")
    with phase("train"):
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    # A request during the last step changes nothing: the training is complete.
    if callback.stopped_by is not None and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(
            f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; a checkpoint is kept.",
            signal_number=callback.stopped_by,
        )
    return TrainingHistory(_curve_rows(trainer.state.log_history), trainer.state.global_step)


def _refuse_other_parts(start: Path, context: RunContext) -> None:
    """Raise EnvironmentProblem if a checkpoint is in parts that this training does not have, or the other way round."""
    spread, was = context.spread, checkpoint.strategy_of(start)
    processes = checkpoint.zero3_processes(start)
    begin_again = f"or remove {start.parent} to begin again"
    if was != (spread.strategy if spread.divides_model else checkpoint.WHOLE):
        form = "whole" if was == checkpoint.WHOLE else "in parts"
        before = "ddp or single" if was == checkpoint.WHOLE else was
        number = f"{processes} processes" if was == "zero3" else "any number of processes"
        raise EnvironmentProblem(
            f"{context.name}: its checkpoint at step {checkpoint.step_of(start)} is {form}, and strategy {spread.strategy} "
            "cannot go on from it",
            hint=f"Go on with training.strategy: {before} in the machine file ({number}), {begin_again}.",
        )
    if was == "zero3" and processes != spread.processes:
        raise EnvironmentProblem(
            f"{context.name}: its checkpoint at step {checkpoint.step_of(start)} has the parts of {processes} processes, and "
            f"zero3 cannot go on from it with {spread.processes}",
            hint=f"Go on with {processes} processes in all, {begin_again}.",
        )


def _curve_rows(log_history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The rows of transformers' log that have a value besides epoch and step."""
    # A checkpoint sorts the keys: without it, an interruption would change the bytes of the rows before it.
    rows = [{key: row[key] for key in sorted(row) if key not in NOT_CURVES} for row in log_history]
    return [row for row in rows if len(row) > 2]
