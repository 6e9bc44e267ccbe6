"""What every test relies on: no network, no telemetry, no surprises from the terminal. Set before anything is imported."""

from __future__ import annotations

import os

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "WANDB_MODE": "disabled",
        "MPLBACKEND": "agg",
        # Help texts and tables are as wide as the terminal; tests want one width.
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
)
for variable in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE"):
    os.environ.pop(variable, None)
