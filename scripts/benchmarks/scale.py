"""Sampling on a Ray cluster with a simulated engine: what failures cost, and what the driver costs per row.

    python scripts/benchmarks/scale.py

The nodes are processes of this machine. An engine waits instead of computing, so that 64 workers fit on two cores; everything
else is what a stage does: the pool, the shards, their seals. Two parts:

- failures: 100,000 prompts on 64 workers in 8 nodes, undisturbed, and again with kill -9 of 20 workers and of 2 nodes (seeded; by
  the number of finished shards, so that they fall anywhere in the run). Nodes are not replaced. Every row must be there once, and
  all shards must have the same bytes in both runs.
- driver: 10,000 to 1,000,000 prompts on 4 workers whose engine takes no time; CPU seconds and peak memory of the driver's
  process.

Shards have 64 prompts and take 4 seconds on average: all of them are 100 seconds for 64 workers, and at most 40 seconds of a core
(the part `driver` shows that). The result says how busy the machine was, with all that ran on it. Seconds count from the moment
when all workers have started: 64 processes take a minute to start on two cores. A worker that replaces another starts within
them. Writes scripts/benchmarks/scale.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simulated_sampler import SimulatedSampler

from align.records import Candidate
from align.runtime.ray_pool import RayPool
from align.store.artifact import read_rows
from align.store.atomic import write_json
from align.store.shard import read_seal, shard_path
from align.testing.processes import children, command_of
from align.testing.ray_nodes import RayNodes

RESULT = Path(__file__).with_suffix(".json")
SHARD_PROMPTS, SHARD_SECONDS = 64, 4.0
RAY_LOOK_MILLISECONDS = 3000
"""Ray's own value, which decides how long a dead node stays unnoticed."""
SEED = 11


def workers_of(raylets: list[int]) -> list[int]:
    """Processes of actors that have begun."""
    return sorted(child for raylet in raylets for child in children(raylet) if command_of(child).startswith(b"ray::Worker"))


def kills_at(num_shards: int, workers: int, nodes: int) -> dict[int, str]:
    """What is killed when so many shards are done: between 5 and 90 % of them."""
    draw = random.Random(SEED)
    counts = draw.sample(range(num_shards // 20, num_shards * 9 // 10), workers + nodes)
    return dict(zip(counts, ["worker"] * workers + ["node"] * nodes, strict=True))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def drive(job: dict[str, Any]) -> dict[str, Any]:
    """Run the pool in this process, and kill what the job says; returns what it cost."""
    num_shards = -(-job["prompts"] // SHARD_PROMPTS)
    work = SimulatedSampler(Path(job["folder"]), job["prompts"], SHARD_PROMPTS, job["seconds"], job["workers"])
    kills = kills_at(num_shards, *job["kills"]) if any(job["kills"]) else {}
    draw, raylets, done, killed = random.Random(SEED), list(job["raylets"]), 0, []
    first_cpu = 0.0

    def begun() -> float:
        """When the last of the first workers had started, and all began."""
        return max(os.stat(path).st_mtime for path in work.started.iterdir())

    def on_done(*_: object) -> None:
        nonlocal done, first_cpu
        done += 1
        first_cpu = first_cpu or cpu_seconds()
        if (what := kills.get(done)) is not None:
            victim = draw.choice(workers_of(raylets) if what == "worker" else raylets)
            os.kill(victim, signal.SIGKILL)
            if what == "node":
                raylets.remove(victim)
            killed.append({"kind": what, "after_shards": done, "second": round(time.time() - begun(), 1)})

    before, started = cpu_seconds(), time.time()
    RayPool(job["workers"], address=job["address"], shared=work.folder).map(work, range(num_shards), on_done=on_done)
    ended, cpu = time.time(), cpu_seconds()
    return {
        "start_seconds": round(begun() - started, 1),
        "seconds": round(ended - begun(), 1),
        "shards": num_shards,
        "reported": done,
        "driver_cpu_seconds": round(cpu - before, 2),
        # To join the cluster and start the workers costs a second, however many rows follow.
        "driver_cpu_seconds_from_the_first_shard": round(cpu - first_cpu, 2),
        "microseconds_per_row_from_the_first_shard": round((cpu - first_cpu) / job["prompts"] * 1e6, 1),
        "driver_peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **({"killed": killed} if killed else {}),
    }


def cpu_seconds_of_the_machine() -> float:
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def in_a_process(job: dict[str, Any]) -> dict[str, Any]:
    """`drive` in a process of its own, whose CPU time and memory are the driver's alone."""
    busy, started = cpu_seconds_of_the_machine(), time.perf_counter()
    command = [sys.executable, __file__, "--drive", json.dumps(job)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    used = (cpu_seconds_of_the_machine() - busy) / (time.perf_counter() - started) / len(os.sched_getaffinity(0))
    measured["machine_busy"] = round(used, 2)
    return measured


def check(folder: Path, prompts: int) -> tuple[int, str]:
    """Rows, each of which must be there once, and the hash of all shards."""
    digest, ids = hashlib.sha256(), set()
    rows = 0
    for index in range(-(-prompts // SHARD_PROMPTS)):
        path = shard_path(folder, index)
        if read_seal(path) is None:
            raise SystemExit(f"{path} is not complete")
        digest.update(path.read_bytes())
        for row in read_rows(path, Candidate):
            rows += 1
            ids.add(row.prompt_id)
    if not rows == len(ids) == prompts:
        raise SystemExit(f"{folder}: {rows} rows, {len(ids)} ids, {prompts} prompts")
    return rows, digest.hexdigest()


def failures(folder: Path, *, prompts: int, nodes: int, workers: int, kills: tuple[int, int]) -> dict[str, Any]:
    found: dict[str, Any] = {"prompts": prompts, "nodes": nodes, "workers": workers, "shard_seconds": SHARD_SECONDS}
    hashes: set[str] = set()
    for name, chosen in (("undisturbed", (0, 0)), ("disturbed", kills)):
        cluster = RayNodes(nodes, cpus=workers // nodes, look_milliseconds=RAY_LOOK_MILLISECONDS)
        job = {"folder": str(folder / name), "prompts": prompts, "seconds": SHARD_SECONDS, "workers": workers, "kills": chosen}
        try:
            found[name] = in_a_process(job | {"address": cluster.address, "raylets": cluster.raylets})
        finally:
            cluster.close()
        found[name]["rows"], sha256 = check(folder / name, prompts)
        hashes.add(sha256)
        print(name, found[name], flush=True)
    found["same_bytes"] = len(hashes) == 1
    found["disturbed_to_undisturbed"] = round(found["disturbed"]["seconds"] / found["undisturbed"]["seconds"], 3)
    return found


def driver(folder: Path, *, sizes: list[int], workers: int) -> list[dict[str, Any]]:
    found = []
    cluster = RayNodes(2, cpus=workers // 2)
    try:
        for prompts in sizes:
            target = folder / str(prompts)
            job = {"folder": str(target), "prompts": prompts, "seconds": 0.0, "workers": workers, "kills": (0, 0), "raylets": []}
            found.append({"prompts": prompts, **in_a_process(job | {"address": cluster.address})})
            check(target, prompts)
            print(found[-1], flush=True)
    finally:
        cluster.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["failures", "driver"], default=["failures", "driver"])
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--kills", type=int, nargs=2, default=(20, 2), metavar=("WORKERS", "NODES"))
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        print(json.dumps(drive(json.loads(arguments.drive))))
        return
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "ray": version("ray")}
    result = json.loads(arguments.result.read_text()) if arguments.result.exists() else {}
    result |= {"command": "python scripts/benchmarks/scale.py", "machine": machine}
    sampling = result.setdefault("sampling", {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "failures" in arguments.parts:
            sampling["failures"] = failures(
                folder, prompts=arguments.prompts, nodes=arguments.nodes, workers=arguments.workers, kills=tuple(arguments.kills)
            )
            write_json(arguments.result, result)
        if "driver" in arguments.parts:
            sampling["driver"] = driver(folder, sizes=arguments.sizes, workers=4)
            write_json(arguments.result, result)


if __name__ == "__main__":
    main()
