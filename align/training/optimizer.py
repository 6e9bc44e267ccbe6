"""The optimizers that a recipe can name: for transformers' Trainer by its name, for online training made here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from align.config.online import OnlineOptimization
from align.config.sections import OptimizerName
from align.errors import RecipeError
from align.runtime.device import device_name


def trainer_name(name: OptimizerName) -> str:
    """What transformers calls the optimizer."""
    if name == "paged_adamw_8bit" and device_name() == "cpu":
        return "adamw_8bit"  # the same numbers; there is no other memory to move them to
    if name == "adamw":
        # On a GPU one kernel for all tensors, without copies of them. On a CPU it would round otherwise than the loop does.
        return "adamw_torch_fused" if device_name() == "cuda" else "adamw_torch"
    return name


def require_checkpointing(model: Any, where: str) -> None:
    """Refuse gradient checkpointing for a model that cannot recompute its layers.

    Raises:
        RecipeError: if it cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise RecipeError(
            f"{where}: gradient_checkpointing: transformers cannot do it with this architecture ({model.config.model_type})",
            hint="Leave it out, and lower micro_batch_size or max_tokens if memory is short.",
        )


def recompute_layers(model: Any, where: str) -> None:
    """Let the backward pass compute each layer again, also while the model is in evaluation mode.

    Raises:
        RecipeError: if the model cannot.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    require_checkpointing(model, where)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        # transformers recomputes in training mode only. The mode of the layer alone has no other effect: dropout asks the modules
        # in it, which stay in evaluation mode.
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
    model.base_model.register_forward_pre_hook(_keep_no_casts)


def _keep_no_casts(*_: Any) -> None:
    # Autocast would keep its bfloat16 copies of all weights to the end of the forward pass, 13 GiB at 8 billion parameters.
    # Layers that are computed again cast theirs again anyway. The end of the surrounding autocast restores the setting.
    if torch.is_autocast_enabled(device_name()):
        torch.set_autocast_cache_enabled(False)


def moments_in_8_bits(optimizer: Any) -> None:
    """Keep the moments of embeddings in 8 bits too, in an optimizer that transformers made and that has not stepped yet.

    transformers lets bitsandbytes keep them in 32 bits: 6 bytes a number more, 3.5 GiB of Qwen3-8B. That is for blocks that mix
    the tokens' rows; blocks of 256 numbers lie within a row. bitsandbytes would also keep the model alive by its note of it.
    """
    if type(getattr(optimizer, "optimizer", optimizer)).__module__.startswith("bitsandbytes"):
        from bitsandbytes.optim import GlobalOptimManager

        GlobalOptimManager.get_instance().module_weight_config_triple.clear()


def make_optimizer(parameters: Iterable[Tensor], config: OnlineOptimization, *, learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, with the settings that transformers' Trainer gives it."""
    options: dict[str, Any] = {"lr": learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        adafactor: torch.optim.Optimizer = Adafactor(list(parameters), scale_parameter=False, relative_step=False, **options)
        return adafactor
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, eps=config.adam_epsilon, fused=True, **options)
    import bitsandbytes

    kinds = {"adamw_8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit}
    made: torch.optim.Optimizer = kinds[trainer_name(config.optimizer)](parameters, eps=config.adam_epsilon, **options)
    return made
