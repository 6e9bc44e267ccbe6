"""Commands that load a model, under a limit of addresses within which torch's libraries would wait for ever."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from align.testing import tiny_causal_lm

LIMIT = 2 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("limited") / "model", texts=["hello"])


@pytest.mark.parametrize(
    "command", ["chat {model}", "serve {model}", "export {model} --to {out}", "data inspect {rows} --model {model}"]
)
def test_it_is_refused_before_torch_is_imported(tmp_path: Path, model: Path, command: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n')
    arguments = command.format(model=model, out=tmp_path / "out", rows=rows).split()
    done = subprocess.run(
        [sys.executable, "-m", "align.cli.main", *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error: a process may have 2,048 MiB of addresses here (ulimit -v)")
    assert done.stderr.count("\n") == 2 and not done.stdout
