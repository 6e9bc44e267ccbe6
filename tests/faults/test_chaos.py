"""A slice of scripts/chaos.py: kills, damages and other faults over a whole run, and no result that differs in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "chaos.py"
MINUTES = 2
"""After which no case begins: on a slow machine fewer of them are run."""


def test_no_fault_is_silent(tmp_path: Path) -> None:
    result = tmp_path / "chaos.json"
    counts = ["--kills", 15, "--damages", 8, "--others", 2]
    # Another seed than that of the committed figures: other moments, other files.
    options = [*counts, "--seed", 2, "--jobs", 1, "--minutes", MINUTES, "--out", result]
    done = subprocess.run([sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    kinds = [kind for kind in ("kill", "damage", "other") if kind in found]
    assert kinds[0] == "kill"
    for kind in kinds:
        assert (found[kind]["silent"], found[kind]["problems"]) == (0, [])
        assert found[kind]["identical"] == found[kind]["cases"]
