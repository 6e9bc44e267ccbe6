"""How the processes of a training divide the model: a copy each (DDP), or a part each (FSDP2, ZeRO-3).

accelerate and torch do it. Here is what they are told, and how the whole model comes together again to be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from align.models.head import extend_forward
from align.models.sizes import GRADIENTS_AT_ONCE
from align.runtime.allocator import return_freed_memory
from align.runtime.device import device_name
from align.runtime.group import group_size
from align.runtime.spread import Spread
from align.training import zero3
from align.training.needs import Precision
from align.training.weights_of_first import give_parts, send_buffers, take_weights

FSDP2: Mapping[str, Any] = {
    # Weights are gathered for each layer, in both passes, and dropped again: the least memory.
    "reshard_after_forward": True,
    "state_dict_type": "SHARDED_STATE_DICT",
    # It sends parameters only, and whole ones; see `align.training.weights_of_first`.
    "cpu_ram_efficient_loading": False,
}
"""Settings of accelerate's plugin, without their version."""

T = TypeVar("T")


def strategy_arguments(spread: Spread, precision: Precision) -> dict[str, Any]:
    """What transformers' trainer is told of strategy and arithmetic; the number of processes it takes from the process group."""
    in_bfloat16 = precision == "bfloat16"
    if spread.strategy == "zero3":
        # Told of bfloat16, it would round what comes with a batch, such as log-probabilities of the reference.
        return {"bf16": False, "deepspeed": zero3.settings(autocast=in_bfloat16)}
    # The trainer gets a model that is sharded already, in which the classes of layers have other names.
    settings = {"version": 2, "auto_wrap_policy": "NO_WRAP", **FSDP2}
    fsdp = {"fsdp": True, "fsdp_config": settings} if spread.strategy == "fsdp2" else {}
    return {"bf16": in_bfloat16, **fsdp}


def computes_in_bfloat16(arguments: Any) -> bool:
    """Whether passes are under autocast, by the trainer's arguments."""
    return bool(arguments.bf16 or "torch_autocast" in (arguments.deepspeed or {}))


def allow_fsdp_on_cpu(arguments: Any) -> None:
    """Let accelerate use FSDP2 where there is no GPU: without a word it would use DDP, which gives every process a whole model.

    Args:
        arguments: `TrainingArguments`, whose process group exists.
    """
    _ = arguments.device  # reading it makes accelerate look at the process group
    if arguments.fsdp and device_name() == "cpu":
        _call_it_gpus()


def _call_it_gpus() -> None:
    from accelerate import DistributedType, PartialState

    state = PartialState(cpu=True)
    # accelerate turns FSDP on for this type only; device and back end of the group remain those of a CPU.
    state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    state._shared_state["backend"] = "gloo"


def shard(model: Any, spread: Spread) -> Any:
    """Leave this process its part of rank 0's model, on its device; gathered layer by layer when the model runs.

    The others may have loaded it within `weights_of_first`, so that it is in memory once. Called before the first pass, since
    the whole model may not fit into a device. Does nothing unless the strategy is fsdp2 or zero3.
    """
    if spread.strategy == "zero3":
        return zero3.divide(model)
    if spread.strategy != "fsdp2":
        return model
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    on_cpu = device_name() == "cpu"
    if on_cpu:
        return_freed_memory()
    # It is one for all of a process, and an earlier training may have left its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=on_cpu)
    if on_cpu:
        _call_it_gpus()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP", **FSDP2)
    accelerator = Accelerator(cpu=on_cpu, fsdp_plugin=plugin)
    weights = take_weights(model)
    send_buffers(model, accelerator.device)
    model = fsdp2_prepare_model(accelerator, model)
    give_parts(model, weights)
    return model


def keep_parameters(accelerator: Any) -> None:
    """Let an optimizer keep the parameters that it was made of, when `accelerator` prepares it with a sharded model.

    accelerate finds them again by their place in memory. Several parameters with fewer rows than there are processes, such as
    those of LoRA, have an empty part somewhere, and all empty tensors are in one place.
    """
    prepare = accelerator._prepare_fsdp2

    def prepared(*objects: Any) -> Any:
        groups = [[list(group["params"]) for group in item.param_groups] for item in objects if _is_optimizer(item)]
        found = prepare(*objects)
        for item, lists in zip(filter(_is_optimizer, found), groups, strict=True):
            for group, parameters in zip(item.param_groups, lists, strict=True):
                group["params"] = parameters
        return found

    accelerator._prepare_fsdp2 = prepared


def _is_optimizer(item: Any) -> bool:
    return isinstance(item, torch.optim.Optimizer)


def release(model: Any) -> None:
    """Drop what a pass without a backward pass has gathered: FSDP2 keeps the last layers whole, as if one followed.

    Without it, an optimizer would be given whole parameters, and a checkpoint would not find those of the optimizer.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def place(model: Any, spread: Spread) -> Any:
    """The model on the device of this process, whole or its part; `within` computes with it."""
    if spread.strategy != "fsdp2":
        return model.to(device_name())
    extend_forward(model, "within", lambda itself, compute: compute(itself))
    return shard(model, spread)


def within(model: Any, compute: Callable[[Any], T], *, then_release: bool = True) -> T:
    """What `compute` returns for a model of `place`. Of a sharded model it is one pass, which all processes make.

    FSDP2 gathers weights where a model's own forward begins, so that whatever reads them is done in it.

    Args:
        compute: returns tensors, also in a tuple, that are no views: FSDP2 hangs the gathering of the backward pass on them.
        then_release: after a pass without gradients; else its head can be used until `release`.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        return compute(model)
    found: T = model(within=compute)  # type: ignore[operator]
    if then_release and not torch.is_grad_enabled():
        release(model)
    return found


@contextmanager
def without_exchange(model: Any) -> Iterator[None]:
    """Within it, a backward pass through the head of a sharded model leaves gradients in this process.

    They are exchanged in the backward pass that follows, through the whole model. So processes may differ in the number of them.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        yield
        return

    def exchange(does: bool) -> None:
        model.set_requires_gradient_sync(does)
        model.set_is_last_backward(does)
        model.set_reshard_after_backward(does)

    exchange(False)
    try:
        yield
    finally:
        exchange(True)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process has; any other tensor as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_gradients(model: Any) -> list[Tensor]:
    """What this process has of the gradients of all processes, after a step's last backward pass."""
    if zero3.divides(model):
        return zero3.own_gradients(model)
    return [local_part(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]


def whole_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, which all processes do; any other tensor as it is."""
    from torch.distributed.tensor import DTensor

    if zero3.is_part(tensor):
        return zero3.whole_parameter(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(whole: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, divided as a sharded one of its shape is; nothing is exchanged for it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor) or whole.shape != other.shape:
        return whole
    return distribute_tensor(whole.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Add up the gradients of all processes, each of which has the parameters whole; as DDP does, but once for all passes.

    A process without one counts as zero. Where none has one, there is none afterwards.
    """
    if group_size() == 1:
        return
    device = parameters[0].device
    found = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    bucket: list[Tensor] = []
    for parameter, exists in zip(parameters, found.tolist(), strict=True):
        if not exists:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and sum(grad.numel() for grad in bucket) + parameter.grad.numel() > GRADIENTS_AT_ONCE:
            _sum_together(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _sum_together(bucket)


def _sum_together(tensors: Sequence[Tensor]) -> None:
    if len(tensors) == 1 and tensors[0].is_contiguous():  # it may be larger than any bucket
        dist.all_reduce(tensors[0])
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


@contextmanager
def whole(model: Any, *, keep: bool) -> Iterator[None]:
    """Within it, the parameters of a sharded model are whole, on the CPU, in the process that keeps them. All processes enter it.

    Args:
        keep: whether this process keeps them; in the others the model must not be used meanwhile.
    """
    from torch.distributed.tensor import DTensor

    release(model)
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if isinstance(parameter, DTensor) or zero3.is_part(parameter)
    ]
    gathered: dict[int, nn.Parameter] = {}
    for _, _, parameter in places:
        if id(parameter) not in gathered:  # tied ones stay one parameter
            full = whole_tensor(parameter).detach()
            gathered[id(parameter)] = nn.Parameter(full.cpu() if keep else full[:0], requires_grad=parameter.requires_grad)
    try:
        for module, name, parameter in places if keep else ():
            module._parameters[name] = gathered[id(parameter)]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def sum_of_all(counts: Sequence[Tensor], device: torch.device) -> Tensor:
    """The sum of what all processes counted, a scalar of whole numbers; `counts` are those of this process."""
    total = torch.stack([torch.zeros((), dtype=torch.long, device=device), *counts]).sum()
    if group_size() > 1:
        dist.all_reduce(total)
    return total


def own_share(count: int, rank: int, size: int) -> range:
    """Numbers of the rows, of `count`, that a process works on. Shares differ by one row at most, and may be empty."""
    return range(count * rank // size, count * (rank + 1) // size)
