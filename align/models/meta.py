"""Shapes of a model's tensors from its configuration, where there are no weights to read them from."""

from __future__ import annotations

from pathlib import Path


def shapes_by_config(path: Path, *, scores: bool) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the model that config.json describes, by name; a tied head is not there twice.

    The model is built by transformers, without memory for a single number.

    Args:
        scores: whether it is a reward model.
    Raises:
        ValueError, KeyError: if transformers does not have the architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = auto.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
