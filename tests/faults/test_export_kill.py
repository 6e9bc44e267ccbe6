"""An export killed in the middle: nothing half at the place where the model was to be, and the next one cleans up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.export import export_model, open_source
from align.testing import tiny_causal_lm

pytestmark = pytest.mark.slow

# A shell that starts something in the background makes it deaf to Ctrl-C, and so this test, and so what it starts.
HEARING = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
ALIGN = [sys.executable, "-c", f"{HEARING}; from align.cli.main import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("model") / "mine", seed=1)


def killed_while_written(model: Path, target: Path, number: int) -> subprocess.Popen[str]:
    """An export that got the signal when its weights were there and its check was not done."""
    process = subprocess.Popen(
        [*ALIGN, "export", str(model), "--to", str(target)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(target.parent.glob(".*/model.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    return process


def test_only_what_a_killed_export_left_is_cleaned_away(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    process = killed_while_written(model, target, signal.SIGSTOP)
    try:
        assert not target.exists()
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".out.")
        export_model(open_source(model), target, check=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "out"], "it may still be at work"
        shutil.rmtree(target)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [left.name]

    export_model(open_source(model), target, check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "README.md").exists()


def test_ctrl_c_leaves_no_trace(model: Path, tmp_path: Path) -> None:
    process = killed_while_written(model, tmp_path / "out", signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
