"""How stages' processes come to be on a GPU machine."""

from __future__ import annotations

import pytest

from align.runtime.launcher import Spawned, launcher_for

pytestmark = pytest.mark.gpu


def test_a_gpu_machine_spawns() -> None:
    """CPU twin: tests/unit/runtime/test_launcher.py::test_one_place_decides_how_jobs_are_run."""
    # A process that is forked after CUDA was initialised cannot use it. Here no GPU is pretended: the driver's are counted.
    assert isinstance(launcher_for(preload="align.pipeline.preload", environment={}), Spawned)
