"""Reads from config.json whether a model is an encoder–decoder (T5 style) or a decoder. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.runtime.plain_file import read_small_file

CONFIG_NAME = "config.json"
ENCODER_DECODER_STAGES = ("sft", "generate", "compare")
"""Stage types that take encoder–decoder models; every other stage type refuses them."""


def architecture_in(folder: Path) -> str | None:
    """What `encoder_decoder_architecture` says of the model in a folder that was not checked.

    None also for a folder without a readable configuration: loading the model reports that problem.
    """
    try:
        config = json.loads(read_small_file(folder / CONFIG_NAME))
    except (OSError, ValueError, RecursionError):
        return None
    return encoder_decoder_architecture(config) if isinstance(config, dict) else None


def encoder_decoder_architecture(config: Mapping[str, Any]) -> str | None:
    """The architecture, such as T5ForConditionalGeneration, that a model's configuration names; None if it is a decoder's."""
    # `is`, because a configuration may hold any value there, also a text such as "false".
    if config.get("is_encoder_decoder") is not True:
        return None
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else config.get("model_type")
    return str(named or "of no named architecture")


def encoder_decoder_refusal(name: str, architecture: str, stage_type: str) -> str:
    """Why a stage does not take the model `name`; for any stage type but those of ENCODER_DECODER_STAGES."""
    *others, last = ENCODER_DECODER_STAGES
    takers = f"{', '.join(others)} and {last}"
    return f"{name} is an encoder–decoder model ({architecture}); {takers} take such models, {stage_type} does not"
