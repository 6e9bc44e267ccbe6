"""Kill what a run on a Ray cluster consists of: its driver, ranks, whole nodes; the same command must give the same bytes.

    python scripts/benchmarks/ray_faults.py [--kills 30] [--seed 1]

A tiny project's run has its SFT on two nodes, then samples in a worker on one of them, and scores in another. The nodes are
processes of this machine. One attempt after the other has something killed (signal 9), at a random moment of a random stage that
is not done yet:

- `run`: the process of the command; `stage`: that of the stage below it, which is Ray's driver;
- `rank`: one of the two that train;
- `node`: every process of a node, from its raylet to its ranks and workers. Another one joins the cluster, in one half of the
  cases at once, in the other when the attempt has ended.

After two to five such attempts the same command goes on undisturbed. Checked are

- the error, which must name what was killed (not for a kill of the run itself; a node without which the run can go on costs it
  nothing),
- that every rank and worker ends,
- that the results of all three stages have the bytes of an undisturbed run.

Runs are forked from a process that has imported the libraries (see align.testing.warm_run). Ray's nodes import them for every
stage. Writes scripts/benchmarks/ray_faults.json after every result; called again with the same seed, it adds the kills that are
missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from align.store.atomic import write_json
from align.testing import tiny_project, warm_run
from align.testing.processes import children, command_of, descendants, is_alive
from align.testing.ray_nodes import RayNodes

RESULT = Path(__file__).with_suffix(".json")
PLACES = ("run", "stage", "rank", "node")
STAGES = ("sft", "sampled", "scored")
SETTINGS = (
    *("stages.sft.checkpoint_steps=1", "stages.reward.model=base"),
    *("stages.sampled.shard_prompts=1", "stages.sampled.max_completion_tokens=32"),
)
GONE_SECONDS = 180.0
"""After a kill, the attempt and every rank and worker must have ended after so long."""
START_SECONDS = 600.0
POLL_SECONDS = 0.01
NAME = r"node \d of 2 \(.+, 127\.0\.0\.1\)"
ERRORS = {
    "stage": {"names it": r"its process was killed by signal 9 \(SIGKILL\)"},
    "rank": {"names it": rf"rank \d of 2 on {NAME} was killed by signal 9 \(SIGKILL\)"},
    "node": {
        "names it": rf"{NAME} (is gone|has not answered)",
        "before the training began": r"a node of the Ray cluster died before the training began",
        "too few nodes": r"training: nodes: 2, but 1 of the \d nodes",
    },
}


class Nodes:
    """Two nodes, kept by a process of their own: Ray starts threads, and this one forks."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_keep_nodes, args=(theirs,))
        self._process.start()
        theirs.close()
        self.address, self.raylets = self._connection.recv()
        self._awaited = 0

    def replace(self, raylet: int) -> None:
        """Begin to add a node for one that was killed."""
        self.raylets.remove(raylet)
        self._connection.send(raylet)
        self._awaited += 1

    def wait(self) -> None:
        """Return once there are two again."""
        while self._awaited:
            self.raylets.append(self._connection.recv())
            self._awaited -= 1

    def workers(self) -> list[int]:
        """Actors at work, and their ranks."""
        found = [process for raylet in self.raylets for process in descendants(raylet)]
        return [process for process in found if _is_rank(process) or _is_actor(process)]

    def ranks(self) -> list[int]:
        return [process for raylet in self.raylets for process in descendants(raylet) if _is_rank(process)]

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def _keep_nodes(connection: Connection) -> None:
    nodes = RayNodes(2, cpus=1)
    connection.send((nodes.address, nodes.raylets))
    with suppress(EOFError):
        while True:
            connection.send(nodes.replace(connection.recv()))
    nodes.close()


def _is_rank(process: int) -> bool:
    return b"multiprocessing.spawn" in command_of(process)


def _is_actor(process: int) -> bool:
    return command_of(process).startswith((b"ray::NodeRanks", b"ray::Worker"))


@dataclass
class Kill:
    """What is killed, when, and what followed."""

    place: str
    stage: str = ""
    """That the run was at."""
    seconds: float = 0.0
    """From the start of the stage."""
    at_work: bool = False
    """Whether the stage had begun to train or sample, as opposed to starting up."""
    workers: int = 0
    """Actors and ranks at that moment."""
    ended_seconds: float = 0.0
    """From the kill to the end of the attempt."""
    gone_seconds: float = 0.0
    """From the kill to the end of the last rank or worker that it had then."""
    outcome: str = ""
    """What the attempt said of it."""
    problems: list[str] = field(default_factory=list)


class Run:
    """One result, and the attempts at it."""

    def __init__(self, arguments: Sequence[str], out: Path) -> None:
        self.out = out
        self._arguments = [*arguments, "--out", str(out)]
        self._output = out.with_suffix(".txt")
        self._events = out / "tiny" / "events.jsonl"
        self._read = 0
        self._process = 0
        self._started = 0.0

    def start(self) -> None:
        self._read = self._events.stat().st_size if self._events.exists() else 0
        self._process, self._started = warm_run.start_warm(self._arguments, self._output), time.monotonic()

    def exit_code(self) -> int | None:
        """None while it runs."""
        process, status = os.waitpid(self._process, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if process else None

    def undisturbed(self) -> None:
        """Let the command go to its end."""
        self.start()
        _, status = os.waitpid(self._process, 0)
        if status:
            raise SystemExit(f"the command ended with {os.waitstatus_to_exitcode(status)}:\n{self.output()}")

    def output(self) -> str:
        return self._output.read_text()

    def events(self) -> list[dict[str, Any]]:
        """Those of the last attempt."""
        if not self._events.exists():
            return []
        lines = self._events.read_bytes()[self._read :].split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def finished(self) -> set[str]:
        """Stages that are done."""
        return {stage for stage in STAGES if (self.out / "tiny" / "stages" / stage / "manifest.json").exists()}

    def stage_process(self) -> int:
        """Of the stage that runs; 0 if there is none."""
        return next((stage for server in children(self._process) for stage in children(server)), 0)

    def disturb(self, kill: Kill, nodes: Nodes, durations: Mapping[str, float], chance: random.Random) -> bool:
        """Let the command run until the kill, and to its end; False if it ended before."""
        target = "sft" if kill.place == "rank" else chance.choice([s for s in STAGES if s not in self.finished()])
        delay = chance.uniform(0.0, durations[target])
        at_once = chance.random() < 0.5
        chosen = chance.randrange(2)
        self.start()
        due = None
        while True:
            if self.exit_code() is not None:
                return False
            events = self.events()
            begun = [event["stage"] for event in events if event["kind"] == "stage_started"]
            if due is None and target in begun:
                due = time.monotonic() + delay
            if due is not None and time.monotonic() >= due and (victims := self._victims(kill.place, nodes, chosen)):
                break
            if time.monotonic() > self._started + START_SECONDS:
                raise SystemExit(f"{kill}: not begun:\n{self.output()}")
            time.sleep(POLL_SECONDS)
        workers = nodes.workers()
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        kill.stage, kill.seconds = begun[-1], round(killed_at - due + delay, 2)
        kill.at_work = any(event["kind"] == "progress" and event["stage"] == begun[-1] for event in events)
        kill.workers = len(workers)
        if kill.place == "node" and at_once:
            nodes.replace(victims[0])
        code = self._watch_the_end(kill, workers, killed_at)
        if kill.place == "node" and not at_once:
            nodes.replace(victims[0])
        nodes.wait()
        self._judge(kill, code)
        return True

    def _victims(self, place: str, nodes: Nodes, chosen: int) -> list[int]:
        if place == "run":
            return [self._process]
        if place == "stage":
            return [stage] if (stage := self.stage_process()) else []
        if place == "rank":
            return ranks[chosen : chosen + 1] if len(ranks := nodes.ranks()) == 2 else []
        raylet = nodes.raylets[chosen]
        return [raylet, *descendants(raylet)]

    def _watch_the_end(self, kill: Kill, workers: Sequence[int], killed_at: float) -> int:
        """The exit code; what the kill took is noted."""
        code, gone = None, False
        while code is None or not gone:
            now = time.monotonic()
            if code is None and (code := self.exit_code()) is not None:
                kill.ended_seconds = round(now - killed_at, 2)
            # Where the run goes on without a node, workers of the other one go on too.
            if not gone and not any(map(is_alive, workers)):
                gone, kill.gone_seconds = True, round(now - killed_at, 2)
            if now > killed_at + GONE_SECONDS:
                raise SystemExit(f"{kill}: after {GONE_SECONDS} s, exit code {code}, {list(map(command_of, workers))}")
            time.sleep(POLL_SECONDS)
        return code

    def _judge(self, kill: Kill, code: int) -> None:
        if kill.place == "run":
            kill.outcome = "killed"
        elif code == 0:
            kill.outcome = "went on"
        else:
            output = self.output()
            found = [name for name, pattern in ERRORS[kill.place].items() if re.search(pattern, output)]
            kill.outcome = found[0] if found else "another error"
            if not found:
                kill.problems.append(f"ended with {code}:\n{output}")

    def content(self) -> dict[str, str]:
        """sha256 of every file of the results."""
        found: dict[str, str] = {}
        for stage in STAGES:
            manifest = json.loads((self.out / "tiny" / "stages" / stage / "manifest.json").read_text())
            found |= {f"{stage}/{name}": entry["sha256"] for name, entry in manifest["files"].items()}
        return found

    def durations(self) -> dict[str, float]:
        """Seconds of each stage in the last attempt."""
        times = {(event["kind"], event["stage"]): event["time"] for event in self.events() if "stage" in event}
        return {stage: times["stage_finished", stage] - times["stage_started", stage] for stage in STAGES}


def summary_of(kills: Sequence[Kill]) -> dict[str, Any]:
    """The figures of the kills of one place."""
    return {
        "place": kills[0].place,
        "kills": len(kills),
        "at_stages": dict(Counter(kill.stage for kill in kills)),
        "at_work": sum(kill.at_work for kill in kills),
        "with_actors_or_ranks": sum(kill.workers > 0 for kill in kills),
        "outcomes": dict(Counter(kill.outcome for kill in kills)),
        "seconds_to_the_end_median": round(statistics.median(kill.ended_seconds for kill in kills), 2),
        "seconds_to_the_end_most": max(kill.ended_seconds for kill in kills),
        "seconds_outlived_most": max(kill.gone_seconds for kill in kills),
    }


def check(folder: Path, nodes: Nodes, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Kill so often, and write what is found after each result.

    Args:
        found: what an earlier call with the same seed found; added to.
    """
    machine = folder / "machine.yaml"
    machine.write_text(
        "training: {processes: 1, nodes: 2, strategy: ddp}\nsampling: {engines: 1, pool: ray}\n"
        f"ray: {{address: '{nodes.address}'}}\n"
    )
    arguments = ["run", str(folder / "project" / "recipe.yaml"), *(part for text in SETTINGS for part in ("--set", text))]
    # The reward model is made once, in one process, and copied.
    Run([*arguments, "--until", "reward"], folder / "before").undisturbed()
    arguments += ["--machine", str(machine), "--until", "scored"]

    def begin(name: str) -> Run:
        shutil.copytree(folder / "before", folder / name, symlinks=True)
        return Run(arguments, folder / name)

    calm = begin("undisturbed")
    calm.undisturbed()
    wanted, durations = calm.content(), calm.durations()
    print(durations, flush=True)
    done = [Kill(**kill) for kill in found.pop("kills")]
    planned = Counter({"run": options.kills // 2, "stage": options.kills - options.kills // 2, "node": options.kills})
    planned["rank"] = options.kills // 3
    planned -= Counter(kill.place for kill in done)
    while planned:
        started = time.monotonic()
        run, of_this = begin(f"run-{found['results']}"), list[Kill]()
        chance = random.Random(f"{options.seed} {found['results']}")
        for _ in range(chance.randint(2, 5)):
            finished = run.finished()
            # A rank can only be killed while there is a training.
            places = [place for place in PLACES if planned[place] and (place != "rank" or "sft" not in finished)]
            if len(finished) == len(STAGES) or not places:
                break
            kill = Kill(chance.choices(places, [planned[place] for place in places])[0])
            if not run.disturb(kill, nodes, durations, chance):
                found["ended_before_the_kill"] += 1
                break
            planned -= Counter([kill.place])
            of_this.append(kill)
        if len(run.finished()) < len(STAGES):
            run.undisturbed()
        content = run.content()
        others = sorted(name for name in content.keys() | wanted.keys() if content.get(name) != wanted.get(name))
        for kill in of_this:
            kill.problems += [f"other bytes: {', '.join(others)}"] if others else []
            print(kill, flush=True)
        done += of_this
        shutil.rmtree(run.out)
        found["results"] += 1
        found["different"] += bool(others)
        found["seconds"] = round(found["seconds"] + time.monotonic() - started)
        found["undisturbed_seconds"] = durations
        found["places"] = [summary_of(of_it) for place in PLACES if (of_it := [kill for kill in done if kill.place == place])]
        write_json(options.out, {**found, "kills": [asdict(kill) for kill in done]})
    found["kills"] = [asdict(kill) for kill in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of drivers (half of them runs), and of nodes; a third, of ranks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "ray": version("ray")}
    asked = {"kills": options.kills, "seed": options.seed}
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if found.get("asked", {}).get("seed") != options.seed:
        found = {"results": 0, "different": 0, "ended_before_the_kill": 0, "seconds": 0.0, "kills": []}
    found |= {"command": "python scripts/benchmarks/ray_faults.py", "machine": machine, "asked": asked}

    with tempfile.TemporaryDirectory() as name:
        nodes, folder = Nodes(), Path(name)
        try:
            warm_run.import_libraries()
            # Computing would start threads in this process, which forks.
            os.waitpid(warm_run.in_a_fork(lambda: tiny_project(folder / "project") and None), 0)
            check(folder, nodes, options, found)
        finally:
            nodes.close()
    if problems := [f"{kill['place']}, {kill['stage']}: {text}" for kill in found["kills"] for text in kill["problems"]]:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
