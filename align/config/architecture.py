"""Reads from config.json whether a model is an encoder–decoder (T5 style) or a decoder. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path

ENCODER_DECODER_STAGES = ("sft", "generate", "compare")
"""Stage types that take encoder–decoder models; every other stage type refuses them."""


def encoder_decoder_architecture(folder: Path) -> str | None:
    """The architecture, such as T5ForConditionalGeneration, of an encoder–decoder model; None for any other model.

    None also for a folder without a readable configuration: loading the model reports that problem.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    # `is`, because a configuration may hold any value there, also a text such as "false".
    if not isinstance(config, dict) or config.get("is_encoder_decoder") is not True:
        return None
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else config.get("model_type")
    return str(named or "of no named architecture")


def encoder_decoder_refusal(name: str, architecture: str, stage_type: str) -> str:
    """Why a stage does not take the model `name`; for any stage type but those of ENCODER_DECODER_STAGES."""
    *others, last = ENCODER_DECODER_STAGES
    takers = f"{', '.join(others)} and {last}"
    return f"{name} is an encoder–decoder model ({architecture}); {takers} take such models, {stage_type} does not"


def is_encoder_decoder(folder: Path) -> bool:
    """Whether the model in `folder` reads its prompt with an encoder and writes its completion with a decoder."""
    return encoder_decoder_architecture(folder) is not None
