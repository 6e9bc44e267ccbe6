"""No library loads code from a hub, and none says that it could not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.models.hub_code import SWITCH, forbid_hub_code


@pytest.mark.slow
def test_an_installed_package_of_kernels_is_not_imported(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    (tmp_path / "kernels.py").write_text("print('imported')\ndef get_kernel(*arguments, **options): print('loaded', arguments)\n")
    code = (
        "import align.models, peft, bitsandbytes\n"
        "from transformers.utils.import_utils import is_kernels_available\n"
        "assert not is_kernels_available()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_processes_that_start_without_align_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM starts its own for several GPUs; transformers asks this variable before it loads a kernel."""
    monkeypatch.delenv(SWITCH, raising=False)
    forbid_hub_code()
    assert os.environ[SWITCH] == "NO"
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    reader = Path(spec.origin).parent / "integrations" / "hub_kernels.py"
    assert f'os.environ.get("{SWITCH}", "YES")' in reader.read_text()
