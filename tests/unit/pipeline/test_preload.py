"""The fork server's imports: a stage that is forked from it must find CUDA untouched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from align.config.peft import Lora
from align.pipeline.jobs import _needs_bitsandbytes
from align.stages.sft import Config

# On a machine without a GPU nothing would ask for a capability; so CUDA seems to be there.
HOOKS = """
import sys, torch
def hook(name):
    def called(*arguments, **options):
        touched.append(name)
        return (8, 0)
    return called
touched = []
torch.cuda.is_available = lambda: True
torch.cuda._lazy_init = hook("_lazy_init")
torch.cuda.get_device_capability = hook("get_device_capability")
"""
REPORT = """
print(touched, "trl" in sys.modules, sys.modules.get("bitsandbytes"))
torch.cuda.is_available = lambda: False
import importlib.util
if importlib.util.find_spec("bitsandbytes") is not None:
    from bitsandbytes import functional
"""


@pytest.mark.slow
def test_the_preload_does_not_touch_cuda_nor_hide_bitsandbytes_for_good() -> None:
    """A stage that merges a qlora adapter packs weights as training saw them, so it imports bitsandbytes."""
    code = f"{HOOKS}\nimport align.pipeline.preload\n{REPORT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[] True None"]), done.stdout + done.stderr
    assert "Failed to load" not in done.stderr
    assert "leaked" not in done.stderr


@pytest.mark.parametrize(("peft", "needed"), [(None, False), (Lora(method="lora"), False), (Lora(method="qlora"), True)])
def test_stages_in_4_bits_get_a_process_without_the_preload(peft: Lora | None, needed: bool, tmp_path: Path) -> None:
    config = Config.model_construct(peft=peft)
    assert _needs_bitsandbytes(config) is needed


@pytest.mark.parametrize(("optimizer", "needed"), [("adamw", False), ("adamw_8bit", True), ("paged_adamw_8bit", True)])
def test_optimizers_in_8_bits_get_one_too(optimizer: str, needed: bool) -> None:
    assert _needs_bitsandbytes(Config.model_construct(peft=None, optimizer=optimizer)) is needed
