"""Model folders: safety checks, fetching, loading, saving. Importing this loads no torch."""

from align.models.folder import ModelFolder
from align.models.hub import fetch_model
from align.models.hub_code import forbid_hub_code
from align.models.load import load_causal_lm, load_reward_model
from align.models.save import check_finite, save_model

__all__ = [
    "ModelFolder",
    "check_finite",
    "fetch_model",
    "load_causal_lm",
    "load_reward_model",
    "save_model",
]

# Here, so that it holds before any module that loads a model imports peft, and that bitsandbytes.
forbid_hub_code()
