"""Choose and start an engine."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from typing import Any

from align.engines.protocol import TextEngine
from align.errors import EnvironmentProblem, RecipeError
from align.models.folder import ModelFolder
from align.runtime.device import has_bfloat16, own_device
from align.runtime.gpus import gpu_of_rank
from align.runtime.profile import phase
from align.runtime.spread import EngineDevices

# Keys of config.json that do not change what weights fit into a running engine.
NOT_ARCHITECTURE = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", "attention_dropout")


def has_vllm() -> bool:
    """Whether vLLM is installed. This only looks for the package: importing it takes seconds."""
    return importlib.util.find_spec("vllm") is not None


def resolve_engine(name: str) -> str:
    """The engine that `auto` means on this machine; raises EnvironmentProblem when the named one is not installed."""
    if name == "auto":
        return "vllm" if has_vllm() else "transformers"
    if name == "vllm" and not has_vllm():
        raise EnvironmentProblem(
            "engine: vllm is not installed in this environment",
            hint="Install it with `make setup`, or set engine: transformers (slower).",
        )
    return name


def engine_for_model(name: str, model_folder: ModelFolder) -> str:
    """The engine, vllm or transformers, that `name` means for a model; `auto` is transformers where vLLM cannot serve it.

    Raises:
        RecipeError: if `name` is vllm and vLLM cannot serve the model. EnvironmentProblem: see `resolve_engine`.
    """
    problem = ""
    if architecture := model_folder.encoder_decoder:
        problem = f"does not serve encoder–decoder models, and {model_folder.path} is one ({architecture})"
    elif count := model_folder.virtual_tokens:
        problem = f"cannot sample behind virtual tokens, and {model_folder.path} has {count}"
    elif model_folder.base.has_mxfp4:
        problem = f"is not given weights in MXFP4, and {model_folder.base.path} has them"
    if not problem:
        return resolve_engine(name)
    if name == "vllm":
        raise RecipeError(f"engine: vllm {problem}", hint="Set engine: transformers, or leave engine out.")
    return "transformers"


def resolve_dtype(name: str) -> str:
    """bfloat16 on a GPU that computes it natively, float32 elsewhere, unless the recipe says otherwise."""
    if name != "auto":
        return name
    return "bfloat16" if has_bfloat16() else "float32"


@phase("engine")
def open_engine(
    name: str,
    model_folder: ModelFolder,
    *,
    dtype: str,
    max_model_tokens: int,
    memory_share: float | None = None,
    num_gpus: int = 1,
) -> TextEngine:
    """Start the engine `name` (auto, vllm or transformers) with the model in `model_folder`.

    Args:
        memory_share, num_gpus: see `VllmEngine`; more than one GPU only for vLLM.
    Raises:
        RecipeError, EnvironmentProblem: see `engine_for_model`.
    """
    resolved = engine_for_model(name, model_folder)
    if model_folder.encoder_decoder:
        from align.engines.seq2seq_engine import Seq2SeqEngine

        return Seq2SeqEngine(model_folder, dtype=resolve_dtype(dtype), max_model_tokens=max_model_tokens)
    if resolved == "vllm":
        from align.engines.vllm_engine import VllmEngine

        return VllmEngine(
            model_folder,
            dtype=resolve_dtype(dtype),
            max_model_tokens=max_model_tokens,
            memory_share=memory_share,
            num_gpus=num_gpus,
        )
    from align.engines.transformers_engine import TransformersEngine

    return TransformersEngine(model_folder, dtype=resolve_dtype(dtype), max_model_tokens=max_model_tokens)


def architecture_of(model_folder: ModelFolder) -> str:
    """A text that is equal for two models if one's weights fit into an engine started with the other."""
    kept = {key: value for key, value in model_folder.config.items() if key not in NOT_ARCHITECTURE}
    # Virtual tokens are no key of config.json, and only an engine with such tokens can use them.
    return json.dumps({**kept, "virtual_tokens": model_folder.virtual_tokens}, sort_keys=True)


def open_beside_ranks(name: str, model_folder: ModelFolder, **options: Any) -> TextEngine:
    """What `open_engine` starts, in a process that trains together with others: vLLM has its own process, on the same GPU."""
    if resolve_engine(name) != "vllm":
        return open_engine(name, model_folder, **options)
    from align.engines.apart import EngineApart

    return EngineApart(partial(open_engine, name, model_folder, **options), environment=gpu_of_rank())


def open_separate(name: str, model_folder: ModelFolder, devices: EngineDevices, **options: Any) -> TextEngine:
    """Engines of vLLM as `open_engine` starts them, on devices that are not those of the training in this process."""
    from align.engines.separate import SeparateEngines

    opened = partial(open_engine, name, model_folder, num_gpus=devices.tensor_parallel, **options)
    return SeparateEngines(opened, devices, own_device())
