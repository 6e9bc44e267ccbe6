"""Model folders: safety checks, fetching, loading, saving. Importing this loads no torch."""

from align.models.folder import check_model_folder
from align.models.hub import fetch_model
from align.models.load import load_causal_lm, load_reward_model, load_tokenizer
from align.models.save import check_finite, save_model

__all__ = [
    "check_finite",
    "check_model_folder",
    "fetch_model",
    "load_causal_lm",
    "load_reward_model",
    "load_tokenizer",
    "save_model",
]
