"""What the script of a Slurm job does with signals and exit codes; align, Ray and Slurm are programs of a line or two here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.config.machine import MachineSettings
from align.pipeline.launch.job import Job, settings_for
from align.pipeline.launch.write import write_job

PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "$*" >>"$HERE/requeued"; fi',
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "hostname": 'if [ "$1" = --ip-address ]; then echo 127.0.1.1; else echo "10.1.2.3 fe80::1"; fi',
    # A head or a worker, until it is told to end.
    "ray": """\
trap 'echo ended >>"$HERE/ray_ended"; exit' TERM
echo "$RAY_AUTH_MODE $(wc -c <"$RAY_AUTH_TOKEN_PATH") $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >>"$HERE/token"
echo "$*" >>"$HERE/ray"
while true; do sleep 0.05; done""",
    # Waits, as the true one does, for so many nodes.
    "python": """\
echo "$*" >>"$HERE/waited"
until [ "$(wc -l 2>/dev/null <"$HERE/ray" || echo 0)" -ge "${@: -1}" ]; do sleep 0.05; done""",
    "align": """\
trap 'echo stopped >>"$HERE/stopped"; exit 143' TERM
echo "$*" >"$HERE/started"; for _ in $(seq "${TENTHS:-0}"); do sleep 0.1; done; exit "${CODE:-0}\"""",
}


class Script:
    """A job's script, and programs in place of those that it calls."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, nodes: int) -> None:
        self.folder, programs = folder, folder / "bin"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n")
            (programs / name).chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(programs / "python"))
        self.job = Job(
            system="slurm",
            name="mine",
            nodes=nodes,
            gpus=2,
            folder=folder,
            here=folder / "job",
            recipe="recipe.yaml",
            options=("--out", "runs"),
            settings=settings_for(MachineSettings(), nodes=nodes, gpus=2),
        )
        self._script = write_job(self.job).script

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        slurm = {"HERE": str(self.folder), "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[1-2]"}
        return subprocess.Popen(["bash", self._script], env={**os.environ, **slurm, **variables})

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 30
        while not (self.folder / name).exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_warning_stops_align_and_requeues_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int) -> None:
    script = Script(tmp_path, monkeypatch, nodes=nodes)
    process = script.start(TENTHS="300")
    script.wait_for("started")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 143
    assert script.lines("stopped") == ["stopped"]
    assert script.lines("requeued") == ["requeue 17"]
    assert len(script.lines("ray_ended")) == (2 if nodes == 2 else 0)


@pytest.mark.parametrize("code", ["0", "2", "5"])
def test_the_code_of_align_is_that_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    script = Script(tmp_path, monkeypatch, nodes=1)
    assert script.start(CODE=code).wait(timeout=60) == int(code)
    assert script.lines("requeued") == []
    assert script.lines("started") == [f"run recipe.yaml --out runs --machine {tmp_path}/job/machine.yaml"]


def test_a_run_that_ends_in_time_after_the_warning_is_not_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(tmp_path, monkeypatch, nodes=1)
    (tmp_path / "bin" / "align").write_text('#!/bin/bash\ntrap "" TERM\ntouch "$HERE/started"\nsleep 0.5\n')
    process = script.start()
    script.wait_for("started")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0
    assert script.lines("requeued") == []


def test_a_warning_while_align_ends_hides_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bash may forget the code of a process that it takes as the signal comes; then there is another attempt."""
    script = Script(tmp_path, monkeypatch, nodes=1)
    (tmp_path / "bin" / "align").write_text('#!/bin/bash\ntrap "" TERM\nkill -USR1 $PPID\nexit 3\n')
    code = script.start().wait(timeout=60)
    assert (code, script.lines("requeued")) in ((3, []), (143, ["requeue 17"]))


def test_a_cancelled_job_waits_for_align_and_sends_it_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm signals every process of a job that it cancels, and a second SIGTERM would end align at once."""
    script = Script(tmp_path, monkeypatch, nodes=1)
    process = script.start(TENTHS="5")
    script.wait_for("started")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert script.lines("stopped") == []


def test_attempts_have_logs_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(tmp_path, monkeypatch, nodes=1)
    for variables in ({}, {"SLURM_RESTART_COUNT": "1"}):
        assert script.start(**variables).wait(timeout=60) == 0
    assert sorted(path.name for path in (script.job.logs / "job_17").iterdir()) == ["attempt_0", "attempt_1"]
    assert (script.job.logs / "latest").resolve() == script.job.logs / "job_17" / "attempt_1"
    assert (script.job.logs / "latest" / "align.log").exists()


def test_the_nodes_are_one_ray_cluster_at_their_own_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(tmp_path, monkeypatch, nodes=2)
    assert script.start(TENTHS="5").wait(timeout=60) == 0
    head, worker = script.lines("ray")
    assert head.startswith("start --head --node-ip-address=10.1.2.3 --port=20017 ")  # not 127.0.1.1
    assert worker.startswith("start --address=10.1.2.3:20017 --node-ip-address=10.1.2.3 --num-gpus=2 ")
    assert [line.rpartition(" ")[2] for line in script.lines("waited")] == ["1", "2"]
    assert script.lines("token") == ["token 64 600"] * 2
    attempt = script.job.logs / "job_17" / "attempt_0"
    assert "  address: 10.1.2.3:20017\n" in (attempt / "machine.yaml").read_text()
    assert script.lines("started") == [f"run recipe.yaml --out runs --machine {attempt}/machine.yaml"]
