"""Episodes per second of the ppo stage against TRL 1.12's PPOTrainer, the last release of TRL with PPO.

Same models (the quickstart's sft and reward model), prompts, batch sizes and epochs, float32, the same threads; the two run one
after the other, in turns. The first rollout batch of each is left out: it holds what is done once.

    align run recipes/quickstart --until reward_model
    python3.11 -m venv build/trl112
    build/trl112/bin/pip install torch==2.13.0 transformers==5.19.0 trl==1.12.0 accelerate==1.15.0 datasets==5.2.0
    python scripts/benchmarks/ppo.py --trl-python build/trl112/bin/python

Writes scripts/benchmarks/ppo.json. `--operations` adds to it what an episode needs at least, and so how many operations a second
each side makes: those of policy and value model on real tokens in every pass, of the four models once before the updates, and of
sampling.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.config.reference import ModelReference, RewardModelReference, RowsReference
from align.data.encoding import encode_prompts
from align.data.template import ChatFormat
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.pipeline.worker import ENVIRONMENT
from align.records import Message, Prompt
from align.stages.ppo import Config
from align.store.artifact import Artifact, Entry
from align.store.atomic import write_json
from align.testing.flops import training_flops

HERE = Path(__file__).parent
QUICKSTART = HERE.parents[1] / "recipes" / "quickstart"
RESULT = HERE / "ppo.json"
SETTINGS: dict[str, Any] = {
    "batch": 256,
    "mini_batch": 64,
    "epochs": 4,
    "rollouts": 4,
    "max_completion_tokens": 64,
    "max_prompt_tokens": 96,
    "learning_rate": 1e-5,  # small: completions stay as long as the sft model's on both sides
    "threads": 2,
}
OURS = "--ours"


def artifact(run: Path, name: str) -> Artifact:
    """A finished stage or input of a run."""
    for folder in ("stages", "inputs"):
        manifest = Entry(run / folder / name).read_manifest()
        if manifest is not None:
            return Artifact(name, (run / folder / name).resolve(), manifest)
    raise SystemExit(f"{run}: no finished stage or input {name!r}; run `align run recipes/quickstart --until reward_model` first")


def run_ours(run: Path, engine: str) -> None:
    """Run the stage in this process; prints the end of every rollout batch and the metrics."""
    import torch

    from align.runtime.events import Progress
    from align.stage import StageContext
    from align.stages.ppo import run as run_stage

    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(SETTINGS["threads"])
    times: list[float] = []
    config = Config(
        model=ModelReference("sft_best"),
        prompts=RowsReference[Prompt]("prompts"),
        scorers={"rm": RewardModelReference("reward_model")},
        num_episodes=SETTINGS["batch"] * SETTINGS["rollouts"],
        rollout_batch_size=SETTINGS["batch"],
        mini_batch_size=SETTINGS["mini_batch"],
        ppo_epochs=SETTINGS["epochs"],
        max_completion_tokens=SETTINGS["max_completion_tokens"],
        max_prompt_tokens=SETTINGS["max_prompt_tokens"],
        learning_rate=SETTINGS["learning_rate"],
        checkpoint_steps=1000,
        engine=engine,  # type: ignore[arg-type]
    )
    with tempfile.TemporaryDirectory() as work:
        context = StageContext(
            name="ppo",
            work=Path(work) / "work",
            seed=17,
            emit=lambda event: times.append(time.perf_counter()) if isinstance(event, Progress) else None,
            stop_requested=lambda: None,
            config=config,
            artifacts={name: artifact(run, name) for name in ("sft_best", "reward_model", "prompts")},
            output=Path(work) / "output",
            store_root=run.resolve().parent / ".store",
        )
        context.output.mkdir()
        outcome = run_stage(context)
        rows = [json.loads(line) for line in (context.output / "metrics.jsonl").read_text().splitlines()]
    print("\n" + json.dumps({"times": times, "metrics": outcome.metrics, "log": rows}))
    sys.stdout.flush()
    os._exit(0)  # vLLM may hang in its exit handlers


def last_json(command: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, env=dict(environment), check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def rate(times: list[float]) -> float:
    """Episodes per second from the end of the first rollout batch on."""
    return float(SETTINGS["batch"] * (len(times) - 1) / (times[-1] - times[0]))


def operations_of_an_episode(completion_tokens: float) -> float:
    """At least; the quickstart's models are all of one shape."""
    model = QUICKSTART / "base_model"
    chat_format, shape = load_format(ModelFolder(model)), json.loads((model / "config.json").read_text())
    lines = (QUICKSTART / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [Prompt(id=str(row["id"]), prompt=[Message(role="user", content=row["prompt"])]) for row in map(json.loads, lines)]
    limit = SETTINGS["max_prompt_tokens"]
    encoded = encode_prompts(prompts, chat_format, max_prompt_tokens=limit, on_invalid="drop", where=str)
    rows = [(len(row.prompt_token_ids), [round(completion_tokens)]) for row in encoded.rows]
    with_head, without = (training_flops(shape, rows, has_head=has_head) / len(rows) for has_head in (True, False))
    # A forward pass is a third of a step: of policy and reference, of value and reward model; sampling is one more of the policy.
    return float(SETTINGS["epochs"] * (with_head + without) + (3 * with_head + 2 * without) / 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/quickstart"), help="a run with the stages sft_best and reward_model"
    )
    parser.add_argument("--trl-python", type=Path, help="python of an environment with trl 1.12")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--operations", action="store_true", help="count only those, and add them")
    parser.add_argument(OURS, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        run_ours(options.run, options.engine)
    if options.operations:
        result = json.loads(RESULT.read_text())
        needed, rates = operations_of_an_episode(result["completion_tokens_mean"]) / 1e9, result["episodes_per_second"]
        by_side = {side: round(needed * max(rates[side]), 1) for side in ("align", "trl_1.12")}
        result["operations"] = {"gflop_per_episode": round(needed, 2), "gflop_per_second": by_side}
        write_json(RESULT, result)
        print(json.dumps(result["operations"], indent=2))
        return
    sft, prompts = artifact(options.run, "sft_best"), artifact(options.run, "prompts")
    chat_format = ChatFormat(ModelFolder(sft.model_path).tokenizer, where="sft_best")
    limit = SETTINGS["max_prompt_tokens"]
    encoded = encode_prompts(prompts.rows(Prompt), chat_format, max_prompt_tokens=limit, on_invalid="error", where=prompts.where)
    work = Path(tempfile.mkdtemp())
    settings = SETTINGS | {
        "policy": str(sft.model_path),
        "reward_model": str(artifact(options.run, "reward").model_path),
        "prompts": [row.prompt_token_ids for row in encoded.rows] * 2,  # TRL's loader wants whole batches
        "work": str(work / "trl"),
    }
    write_json(work / "settings.json", settings)
    environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(SETTINGS["threads"])}
    ours_command = [sys.executable, __file__, OURS, "--run", str(options.run), "--engine", options.engine]
    trl_command = [str(options.trl_python), str(HERE / "trl_ppo.py"), str(work / "settings.json")]
    load_before = round(os.getloadavg()[0], 2)
    ours, trl = [], []
    for _ in range(options.repeats):
        ours.append(last_json(ours_command, environment))
        trl.append(last_json(trl_command, environment))
    shutil.rmtree(work)
    ours_rates, trl_rates = [rate(run["times"]) for run in ours], [rate(run["times"]) for run in trl]
    metrics = ours[0]["metrics"]
    result = {
        "command": shlex.join(["python", f"scripts/benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": load_before},
        "settings": SETTINGS,
        "completion_tokens_mean": round(statistics.fmean(row["rollout/completion_tokens"] for row in ours[0]["log"]), 1),
        "episodes_per_second": {
            "align": [round(value, 2) for value in ours_rates],
            "trl_1.12": [round(value, 2) for value in trl_rates],
            "ratio_of_best": round(max(ours_rates) / max(trl_rates), 2),
        },
        "seconds": metrics["seconds"],
        "sync_share": metrics["sync_share"],
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
