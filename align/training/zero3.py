"""DeepSpeed's ZeRO-3: each process has a part of weights, gradients and optimizer, and modules are gathered before they run.

accelerate drives it, by the settings that transformers' trainer gets. Here is what align does otherwise.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import Tensor, nn

from align.models.sizes import ZERO3_NUMBERS_AT_ONCE
from align.runtime.device import device_name
from align.training.weights_of_first import names_of_parameters, send_buffers, set_parameter, take_weights

ZERO = {
    "stage": 3,
    # Gradients are exchanged, and parameters updated, so many numbers at a time.
    "reduce_bucket_size": ZERO3_NUMBERS_AT_ONCE,
    "sub_group_size": ZERO3_NUMBERS_AT_ONCE,
    # So many are whole besides those of the module that runs.
    "stage3_prefetch_bucket_size": ZERO3_NUMBERS_AT_ONCE,
    "stage3_max_live_parameters": ZERO3_NUMBERS_AT_ONCE,
    "stage3_max_reuse_distance": 0,
    # Small parameters would stay whole, and be sent once more after each step.
    "stage3_param_persistence_threshold": 0,
}
_ENGINE = "engine_of_passes"


def settings(*, autocast: bool) -> dict[str, Any]:
    """DeepSpeed's settings for a training; transformers and accelerate put numbers in the place of `auto`.

    Args:
        autocast: to bfloat16; parameters, gradients and what is exchanged stay as they are.
    """
    dtype = {"torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}}
    numbers = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    return {**dict.fromkeys(numbers, "auto"), "zero_optimization": ZERO, **(dtype if autocast else {})}


def is_part(parameter: Any) -> bool:
    """Whether this process has a part of a parameter only, by ZeRO-3."""
    return hasattr(parameter, "ds_id")


def divides(model: nn.Module) -> bool:
    """Whether a model went through `divide`."""
    return any(map(is_part, model.parameters()))


def divide(model: Any) -> Any:
    """Leave this process its part of rank 0's model, on its device. Passes without gradients can be made at once."""
    os.environ.setdefault("DS_ACCELERATOR", device_name())  # it would look for one, and say so
    import deepspeed
    from accelerate.state import AcceleratorState
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    if device_name() == "cpu":
        # It would compile an exchange of its own, which takes minutes; gloo has one.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _be_quiet()
    # It is one for all of a process, and an earlier training may have left its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    dtype = next(model.parameters()).dtype
    weights = take_weights(model)
    send_buffers(model, torch.device(device_name()))
    options = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": ZERO,
    }
    for empty, names in names_of_parameters(model).items():
        weight = weights.pop(names[0], None)  # rank 0 has all of them, the others none
        if weight is None:
            weight = torch.empty(empty.shape, dtype=empty.dtype, device=device_name())
        parameter = nn.Parameter(weight, requires_grad=empty.requires_grad)
        set_parameter(model, names, parameter)
        # One after the other, so that no more than one is whole on the device. DeepSpeed sends rank 0's.
        deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=options)
    engine = deepspeed.initialize(model=model, config=options)[0]
    FWD_MODULE_STACK.clear()  # it would keep the model alive
    object.__setattr__(model, _ENGINE, engine)
    return model


def _be_quiet() -> None:
    """Drop what DeepSpeed says at each start, and torch of the names by which DeepSpeed calls it."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


class _Engine(DeepSpeedEngineWrapper):
    """Leaves the step to `step`: accelerate's takes it in the last backward pass, before anyone has seen loss and gradients."""

    def backward(self, loss: Tensor, sync_gradients: bool = True, **options: Any) -> None:
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **options)


def prepare_otherwise(accelerator: Any) -> None:
    """Let `accelerator` prepare a model of `divide` for steps that `step` takes."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # else transformers would divide models that are loaded from now on
    prepare = accelerator._prepare_deepspeed

    def prepared(*objects: Any) -> Any:
        config = accelerator.deepspeed_plugin.deepspeed_config
        # Losses are divided already, by what the whole optimizer batch has.
        config["gradient_accumulation_steps"] = 1
        config["train_batch_size"] = config["train_micro_batch_size_per_gpu"] * accelerator.num_processes
        for item in objects:
            if (engine := getattr(item, "__dict__", {}).pop(_ENGINE, None)) is not None:
                engine.destroy()
        _be_quiet()
        found = prepare(*objects)
        if (wrapped := accelerator.deepspeed_engine_wrapped) is not None:
            accelerator.deepspeed_engine_wrapped = _Engine(wrapped.engine)
        return found

    accelerator._prepare_deepspeed = prepared


def own_gradients(model: Any) -> list[Tensor]:
    """This process's part of the gradients of all processes, after the last backward pass of a step."""
    from deepspeed.utils import safe_get_local_grad

    found = (safe_get_local_grad(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return [gradient for gradient in found if gradient is not None]


def step(accelerator: Any) -> None:
    """Clip the gradients, take the optimizer's step, and forget them."""
    accelerator.deepspeed_engine_wrapped.engine.step()


def whole_parameter(parameter: Any) -> Tensor:
    """The parameter put together, which all processes do."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()  # type: ignore[no-any-return]
