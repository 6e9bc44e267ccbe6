"""Sampling on a Ray cluster with a real engine: driver and worker are killed; the same command ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from align.records import Message, Prompt
from align.runtime.pool import LOCAL, Pool
from align.stages import generate
from align.store.artifact import write_rows
from align.testing import input_artifact, stage_context, tiny_causal_lm
from align.testing.processes import children, command_of
from align.testing.ray_nodes import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")]

PROMPTS, EACH = 12, 2
SAMPLE = """
import sys
from pathlib import Path
from align.runtime.pool import Pool
from test_ray_kill import sample

if __name__ == "__main__":
    sample(Path(sys.argv[1]), "killed", Pool("ray", sys.argv[2]))
"""


def sample(place: Path, out: str, pool: Pool = LOCAL, stop: Callable[[], int | None] = lambda: None) -> None:
    artifacts = {name: input_artifact(name, place / name, kind) for name, kind in (("base", "model"), ("asked", "prompts"))}
    fields = {"model": "base", "prompts": "asked", "engine": "transformers", "shard_prompts": 1, "num_candidates": EACH}
    config = generate.Config.model_validate(fields | {"max_completion_tokens": 32, "num_workers": 1})
    generate.run(stage_context(config, place / out, artifacts, pool=pool, stop_requested=stop))


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    pytest.importorskip("ray")
    nodes = RayNodes(1, cpus=1)  # a node more, or a worker, would be ten seconds more of imports
    yield nodes
    nodes.close()


def workers_of(raylet: int) -> list[int]:
    return [child for child in children(raylet) if b"ray::Worker" in command_of(child)]


def test_neither_a_killed_driver_nor_a_killed_worker_changes_a_byte(nodes: RayNodes, tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "base")
    asked = [Prompt(id=f"p{number}", prompt=[Message(role="user", content="x" * number)]) for number in range(1, PROMPTS + 1)]
    (tmp_path / "asked").mkdir()
    write_rows(tmp_path / "asked" / "rows.jsonl", asked)

    def sealed() -> set[Path]:
        return set((tmp_path / "killed" / "work" / "shards").glob("shard-*.json"))

    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    driver = subprocess.Popen([sys.executable, "-c", SAMPLE, str(tmp_path), nodes.address], env=environment)
    until = time.monotonic() + 120
    while len(sealed()) < 2 and time.monotonic() < until:
        assert driver.poll() is None
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {path: path.stat().st_mtime_ns for path in sealed()}
    assert 2 <= len(before) < PROMPTS
    assert not (tmp_path / "killed" / "rows.jsonl").exists()

    killed: list[int] = []

    def kill_a_worker() -> None:
        if not killed and len(sealed()) >= len(before) + 2:
            killed.extend(worker for raylet in nodes.raylets for worker in workers_of(raylet))
            os.kill(killed[0], signal.SIGKILL)

    sample(tmp_path, "killed", Pool("ray", nodes.address), kill_a_worker)
    assert killed
    assert len(sealed()) == PROMPTS
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    sample(tmp_path, "whole")
    found = [(tmp_path / out / "rows.jsonl").read_bytes() for out in ("whole", "killed")]
    assert found[0] == found[1]
    assert len(found[0].splitlines()) == PROMPTS * EACH
