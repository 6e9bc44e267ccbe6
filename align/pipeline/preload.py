"""Imported by the fork server before it forks the first stage: the trainers, the scorer and the loader of models.

peft would import bitsandbytes, which asks CUDA for the GPU's capability. That initialises CUDA, and then no forked stage could
use the GPU. So bitsandbytes is hidden during the imports; stages that need it get a new process.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from pathlib import Path

from align.pipeline.worker import PRELOAD_LOG_VARIABLE
from align.runtime.process import send_output_to

MODULES = ("align.training.trl_trainers", "align.training.pairwise.trainer", "align.scoring.reward_model", "align.models.load")

# Before the imports, so that no warning of a library appears among the lines of a run.
if log := os.environ.get(PRELOAD_LOG_VARIABLE):
    send_output_to(Path(log))

# With None here, Python reports that there is no such module. peft checks once, at import, and keeps the answer.
found = sys.modules.get("bitsandbytes")
sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
try:
    for module in MODULES:
        importlib.import_module(module)
finally:
    if found is None:
        del sys.modules["bitsandbytes"]
    else:
        sys.modules["bitsandbytes"] = found

# A stage collects garbage whenever a model is done with. It need not look at what was imported (0.3 s each time), nor copy the
# memory of the server by doing so.
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # or libraries write into the log that their objects are still there
