from __future__ import annotations

import os
import subprocess
import sys

import pytest

from align.runtime import threads
from align.runtime.threads import thread_environment


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cores", lambda: 2)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)


def test_threads_that_wait_sleep() -> None:
    assert thread_environment({}) == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_set_stays(name: str) -> None:
    assert thread_environment({name: "5"}) == {}


@pytest.mark.parametrize(("quota", "number"), [(1.5, "1"), (0.5, "1"), (2.0, None), (None, None)])
def test_a_quota_below_the_cores_is_the_number_of_threads(
    quota: float | None, number: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert thread_environment({}).get("OMP_NUM_THREADS") == number
    assert "OMP_NUM_THREADS" not in thread_environment({"OMP_NUM_THREADS": "7"})


def test_torch_takes_them() -> None:
    """libgomp shows what it read when it is loaded, which is when torch is imported."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_DISPLAY_ENV": "verbose", **thread_environment({})}
    shown = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True, timeout=120)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr
    assert "GOMP_SPINCOUNT = '0'" in shown.stderr
