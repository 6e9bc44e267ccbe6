"""A job under an imitation of Slurm: warned, requeued, and finished with the bytes of an undisturbed run.

Of one node: starting Ray twice takes most of a minute. tests/unit/pipeline/test_launch_script.py has two.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_slurm import JOB_ID, FakeSlurm

from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import Progress
from align.store.artifact import Manifest

pytestmark = pytest.mark.slow

STAGES = """\
stages:
  sft:     {stage: sft, model: base, data: instructions, num_epochs: 3, learning_rate: 1e-3, batch_size: 2, max_tokens: 128,
            checkpoint_steps: 2}
  sampled: {stage: generate, model: sft, prompts: prompts, num_candidates: 3, max_completion_tokens: 8, max_prompt_tokens: 96,
            engine: transformers, shard_prompts: 4}
"""
"""The first stages of the tiny project."""


def files(run: Path, stage: str) -> dict[str, str]:
    manifest = Manifest.model_validate_json((run / "stages" / stage / "manifest.json").read_bytes())
    return {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith((".safetensors", "rows.jsonl"))}


def trains(events: Path) -> bool:
    return events.exists() and any(isinstance(event, Progress) and event.stage == "sft" for event in read_events(events))


def test_a_warned_job_is_requeued_and_ends_with_the_same_bytes(
    project: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("TOKEN_OF_SOMEBODY", "hidden")
    inputs = (project / "recipe.yaml").read_text().partition("stages:")[0]
    (project / "short.yaml").write_text(inputs + STAGES)
    slurm = FakeSlurm(tmp_path / "slurm")
    arguments = ["short.yaml", "--on", "slurm", "--gpus", "0", "--time", "1h", "--out", "out", "--submit"]
    done = subprocess.run(
        [sys.executable, "-m", "align.cli.main", "launch", *arguments],
        cwd=project, env=slurm.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Submitted batch job {JOB_ID}" in done.stdout
    script = project / slurm.submitted
    assert "hidden" not in script.read_text()
    run, logs = project / "out" / "tiny", script.parent / "logs"

    request.addfinalizer(slurm.end)
    first = slurm.start(script, restarts=0)
    deadline = time.monotonic() + 120
    while not trains(run / EVENTS_NAME) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGUSR1)  # to the script alone, as --signal=B: does
    assert first.wait(timeout=120) == 143, logs_of(logs)
    assert slurm.take_requeue()
    assert not (run / "stages" / "sampled").exists()

    second = slurm.start(script, restarts=1)
    assert second.wait(timeout=240) == 0, logs_of(logs)
    assert not slurm.take_requeue()
    for stage in ("sft", "sampled"):
        assert files(run, stage) == files(finished_run, stage)
    attempts = logs / f"job_{JOB_ID}"
    assert "Run the same command again" in (attempts / "attempt_0" / "align.log").read_text()
    assert (logs / "latest").resolve() == attempts / "attempt_1"
    # align's server of processes ends by itself, a moment after align.
    deadline = time.monotonic() + 20
    while (left := alive_in_session(first.pid) + alive_in_session(second.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def logs_of(folder: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(folder.rglob("*.log")))


def alive_in_session(session: int) -> list[str]:
    listing = subprocess.run(["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [line for line in listing.stdout.splitlines() if line[0] != "Z"]
