"""How often a plan reads the files of a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from align.testing import tiny_project

# An audit hook cannot be taken away again, hence a process of its own.
COUNTED = """
import json, os, sys
reads = []
sys.addaudithook(lambda event, arguments: event == "open" and reads.append(str(arguments[0])))
from align.cli.main import main
code = main(sys.argv[1:])
print(json.dumps([code, reads]))
"""


def test_a_plan_reads_each_file_of_a_model_for_its_checks_and_for_its_hash(tmp_path: Path) -> None:
    recipe = tiny_project(tmp_path / "project")
    command = [sys.executable, "-c", COUNTED, "plan", str(recipe), "--memory", "--out", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    code, reads = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    found = Counter(path.name for path in map(Path, reads) if path.resolve().parent == tmp_path / "project" / "base")
    # Each file for its hash, which is kept, and for the check of the folder; config.json for that of the recipe as well.
    assert (found["config.json"], found["generation_config.json"], found["tokenizer_config.json"]) == (3, 2, 2)
    assert found["tokenizer.json"] == 2, "lengths are counted by the hash that is known"
