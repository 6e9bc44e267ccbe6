"""LoRA layers: put into a loaded model, written, read and merged.

y = W x + (alpha / rank) B A x (Hu et al. 2021, equation 3); B starts at zero, so that the model starts as it was. In QLoRA, W is
kept in NF4 with double quantisation (Dettmers et al. 2023) and multiplied as what it dequantises to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.config.names import listing, nearest
from align.config.peft import Lora
from align.errors import EnvironmentProblem, RecipeError
from align.models.dropout import set_dropout
from align.models.files import ADAPTER_AGAIN, ADAPTER_PREFIX

ADAPTER = "default"
HEAD = f"{ADAPTER_PREFIX}score.weight"
"""Name of a score head there."""
HEADS = ("lm_head", "score", "embed_out")
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
"""Behind the name of a table in an adapter's file: rows in place of those of tokens that its base model never trained."""


def quantization_config(compute_dtype: str = "float32") -> Any:
    """NF4 with double quantisation, in transformers' form; the head is not quantised.

    Args:
        compute_dtype: float32 or bfloat16, what weights are unpacked to and multiplied in.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
        llm_int8_skip_modules=list(HEADS),
    )


def keep_plain_format(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking quantised layers.

    In eval mode on CPUs that multiply in bfloat16, it repacks them permanently, with rounded scales and without a gradient. The
    model would differ from the one that is merged later, and could not learn in PPO.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantized(weight: Tensor) -> Tensor:
    """A weight quantised to NF4 and back, as training with qlora sees it."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=True)
    restored: Tensor = functional.dequantize_4bit(packed, state)
    return restored.to(weight.dtype)


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """By name, every layer that LoRA can be added to: linear ones, without the head."""
    from transformers.pytorch_utils import Conv1D

    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and name.rpartition(".")[2] not in HEADS
    }


def add_lora(model: nn.Module, settings: Lora, *, task: str, where: str, token_ids: Sequence[int] = ()) -> None:
    """Add fresh layers in place and freeze everything else. A is drawn from torch's global generator, B is zero.

    Args:
        task: PEFT's name of what the model does: CAUSAL_LM or SEQ_CLS.
        where: what to name in a refusal.
        token_ids: tokens whose rows in embeddings and head are trained as well.
    Raises:
        RecipeError: if a target does not exist in the model or cannot be one, or the rank is larger than a layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    chosen = _chosen_layers(model, settings, where)
    # Sizes come from the layer: a quantised weight is packed and has another shape.
    name, smallest = min(((name, min(_sizes(layer))) for name, layer in chosen.items()), key=lambda item: item[1])
    if settings.rank > smallest:
        raise RecipeError(
            f"{where}: peft rank {settings.rank} is larger than the layer {name}, whose smaller side is {smallest}",
            hint=f"Give a rank of at most {smallest}, or choose other target_modules.",
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scaling * settings.rank,  # type: ignore[arg-type]
        lora_dropout=0.5,  # at 0 PEFT adds no dropout layer, and `set_dropout` would have nothing to set
        target_modules=sorted(
            {name.rpartition(".")[2] for name in chosen} if settings.target_modules == "all_linear" else settings.target_modules
        ),
        # GPT-2's Conv1D keeps its weight as [in, out].
        fan_in_fan_out=any(not isinstance(layer, nn.Linear) for layer in chosen.values()),
        bias="none",
        task_type=task,
        trainable_token_indices={name: list(token_ids) for name in _tables(model, where)} if token_ids else None,
    )
    model.requires_grad_(False)
    try:
        # Not PEFT's wrapper around the model: the losses find hidden states and head where they always are.
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    except ValueError as error:  # Mamba's kernels, for example, read weights that a LoRA layer would hide
        raise RecipeError(f"{where}: PEFT cannot add LoRA here: {error}", hint="Choose other target_modules.") from error
    # The 0.5 above must not reach adapter_config.json.
    config.lora_dropout = 0.0
    set_dropout(model, 0.0)
    model._hf_peft_config_loaded = True  # type: ignore[assignment]  # transformers trains a quantised model only with this


def _tables(model: Any, where: str) -> list[str]:
    """Names of the layers with a row per token: the embeddings, and the head where it is a tensor of its own."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise RecipeError(
            f"{where}: peft: PEFT cannot train the rows of new tokens in a head with a bias", hint="Leave peft out of this stage."
        )
    # PEFT itself finds a head that is the embedding table.
    own = [embeddings] if head is None or head.weight is embeddings.weight else [embeddings, head]
    return [name for name, module in model.named_modules() if any(module is table for table in own)]


def _chosen_layers(model: nn.Module, settings: Lora, where: str) -> dict[str, Any]:
    layers = linear_layers(model)
    if settings.target_modules == "all_linear":
        return layers
    ends = sorted({name.rpartition(".")[2] for name in layers})
    for target in settings.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            near = nearest(target, ends)
            advice = f"Did you mean {near!r}? " if near else ""
            raise RecipeError(
                f"{where}: peft target_modules: the model has no linear layer {target!r}",
                hint=f"{advice}It has: {listing(ends)}.",
            )
    targets = settings.target_modules
    return {name: layer for name, layer in layers.items() if any(name == t or name.endswith(f".{t}") for t in targets)}


def _sizes(layer: Any) -> tuple[int, int]:
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)  # type: ignore[return-value]


def lora_state(model: Any) -> dict[str, Tensor]:
    """The adapter's tensors by PEFT's names, with a score head where there is one."""
    state = {
        f"{ADAPTER_PREFIX}{name.replace(f'.{ADAPTER}.', '.').removesuffix(f'.{ADAPTER}')}": parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name or TOKEN_ROWS in name or name.endswith("score.weight")
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def load_lora_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put an adapter's tensors into a model that has fresh layers of the same shape.

    Raises:
        EnvironmentProblem: if the tensors are not those of the layers. A score head may be missing; it then stays new.
    """
    own = dict(model.named_parameters())
    places = {_place(name): tensor for name, tensor in state.items()}
    wanted = {name for name in own if ".lora_" in name or TOKEN_ROWS in name}
    if (unknown := places.keys() - own.keys()) or (wanted := wanted - places.keys()):
        name = min(unknown or wanted)
        raise EnvironmentProblem(f"the adapter does not fit its base model: {name}", hint=ADAPTER_AGAIN)
    with torch.no_grad():
        for name, tensor in places.items():
            own[name].copy_(tensor)


def _place(name: str) -> str:
    plain = name.removeprefix(ADAPTER_PREFIX)
    if plain.endswith(TOKEN_ROWS):
        return f"{plain}.{ADAPTER}"
    return plain.replace(".lora_A.", f".lora_A.{ADAPTER}.").replace(".lora_B.", f".lora_B.{ADAPTER}.")


def token_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows that an adapter has in place of its base model's, by the name of the table's layer."""
    return {
        name.removeprefix(ADAPTER_PREFIX).removesuffix(TOKEN_ROWS): rows
        for name, rows in state.items()
        if name.endswith(TOKEN_ROWS)
    }


def merge(
    model: nn.Module, state: Mapping[str, Tensor], settings: Lora, token_ids: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Add an adapter to the weights of a plain model in place: W + (alpha / rank) B A; for qlora, W is rounded to NF4 first.

    Args:
        token_ids: whose rows the adapter replaces, by the name of the table's layer.
    Raises:
        EnvironmentProblem: if the adapter's tensors are not those of its settings and the model.
    """
    layers = linear_layers(model)
    names = sorted(_chosen_layers(model, settings, "the adapter"))
    wanted = {f"{ADAPTER_PREFIX}{name}.lora_{part}.weight" for name in names for part in "AB"}
    rows, ids = token_rows(state), token_ids or {}
    layers_of_state = {name for name in state if name != HEAD and not name.endswith(TOKEN_ROWS)}
    if differing := (wanted ^ layers_of_state) | (rows.keys() ^ ids.keys()):
        raise EnvironmentProblem(f"the adapter does not fit its base model: {min(differing)}", hint=ADAPTER_AGAIN)
    with torch.no_grad():
        if settings.method == "qlora":
            # All of them: training had layers without LoRA in 4 bits, too.
            for layer in layers.values():
                # As transformers packs them: GPT-2's layers transposed; subclasses of Linear (Falcon's) not at all.
                if not isinstance(layer, nn.Linear):
                    layer.weight.copy_(quantized(layer.weight.T).T)
                elif type(layer) is nn.Linear:
                    layer.weight.copy_(quantized(layer.weight))
        for name in names:
            a, b = (state[f"{ADAPTER_PREFIX}{name}.lora_{part}.weight"] for part in "AB")
            layer, delta = layers[name], settings.scaling * (b @ a)
            layer.weight += delta if isinstance(layer, nn.Linear) else delta.T
        for name, replaced in rows.items():
            model.get_submodule(name).weight[list(ids[name])] = replaced  # type: ignore[index,operator]
        if (head := state.get(HEAD)) is not None:
            model.score.weight.copy_(head)  # type: ignore[union-attr,operator]


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a model with LoRA layers, merged and detached, by its name without them. The model does not change."""
    wrapped = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    tables = {name: module for name, module in model.named_modules() if hasattr(module, "token_adapter")}
    for name, module in tables.items():
        if module.token_adapter.tied_adapter is None:
            yield f"{name}.weight", module.weight.detach().to(torch.float32)
    for name, module in wrapped.items():
        base = module.get_base_layer()
        delta = module.get_delta_weight(ADAPTER).detach()
        yield f"{name}.weight", (_plain(base) + _as_in_its_folder(delta, base)).to(torch.float32)
        if getattr(base, "bias", None) is not None:
            yield f"{name}.bias", base.bias.detach()
    inside = tuple(f"{name}." for name in (*wrapped, *tables))
    for name, parameter in model.named_parameters():
        if not name.startswith(inside):
            owner = model.get_submodule(name.rpartition(".")[0])
            yield name, _plain(owner) if hasattr(parameter, "quant_state") else parameter.detach()


def _plain(layer: Any) -> Tensor:
    """A layer's weight in the layout of its folder, dequantised where it is in 4 bits."""
    if not hasattr(layer.weight, "quant_state"):
        weight: Tensor = layer.weight.detach()
        return weight
    from bitsandbytes import functional

    return _as_in_its_folder(functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state), layer)


def _as_in_its_folder(weight: Tensor, layer: Any) -> Tensor:
    """A weight in its folder's layout: transformers packs GPT-2's layers, which are [in, out], as [out, in]."""
    from transformers.pytorch_utils import Conv1D

    return weight.T if getattr(layer, "source_cls", None) is Conv1D else weight


def write_lora_config(model: Any, folder: Path) -> None:
    """PEFT's adapter_config.json, without the base model's path: it would show this machine's folders to others."""
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path = ""
    config.inference_mode = True
    config.save_pretrained(str(folder))
