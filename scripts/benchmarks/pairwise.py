#!/usr/bin/env python3
"""Training steps on pairs, ours against TRL's trainers: pairs per second and peak memory.

    .venv/bin/python scripts/benchmarks/pairwise.py [--out scripts/benchmarks/pairwise.json]
    .venv/bin/python scripts/benchmarks/pairwise.py --device cuda --params 1b --dtype bfloat16 --out …

The same random Llama, the same pairs, the same optimizer and batch size; each trainer orders and batches the pairs as it does by
itself. Each side runs in a process of its own, in turn; a run is a pass over all pairs to warm up and then timed passes, of which
the best of all runs counts. Reference log-probabilities are there before the clock starts, on both sides; in the row `dpo_online`
TRL computes them in every step, as it does unless told otherwise. TRL gets its tokens ready-made and is otherwise as it comes.
Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.pipeline.estimate.speed import peak_flops
from align.testing.flops import training_flops

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

SIZES: dict[str, dict[str, int]] = {
    "6m": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
# Mean tokens of prompt and completion; single ones lie within a third of it either way.
SHAPES = {"prompt_3_to_1": (96, 32), "equal": (64, 64)}
SPREAD = 1 / 3
CASES = (
    ("dpo", "prompt_3_to_1"),
    ("dpo", "equal"),
    ("dpo_online", "prompt_3_to_1"),
    ("reward_model", "prompt_3_to_1"),
    ("reward_model", "equal"),
)
SIDES = ("align", "trl")
BATCH = 16
PAIRS = 96
PAD, END = 0, 1


def make_pairs(shape: str, *, vocabulary: int, scale: int) -> list[dict[str, list[int]]]:
    """Random tokens; the same for every side and run."""
    chance = random.Random(shape)

    def ids(mean: int) -> list[int]:
        count = round(mean * scale * chance.uniform(1 - SPREAD, 1 + SPREAD))
        return [chance.randrange(2, vocabulary) for _ in range(count)]

    prompt, completion = SHAPES[shape]
    return [
        {"prompt_ids": ids(prompt), "chosen_ids": [*ids(completion), END], "rejected_ids": [*ids(completion), END]}
        for _ in range(PAIRS)
    ]


def make_model(options: argparse.Namespace, loss: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[options.params],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        num_labels=1,
    )
    auto = AutoModelForSequenceClassification if loss == "reward_model" else AutoModelForCausalLM
    return auto.from_config(config, dtype=torch.float32).to(options.device)


def training_options(options: argparse.Namespace, folder: str, *, epochs: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": epochs,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "bf16": options.dtype == "bfloat16",
        "use_cpu": options.device == "cpu",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 0,
    }


def our_trainer(loss: str, model: Any, pairs: Sequence[dict[str, list[int]]], arguments: dict[str, Any]) -> Any:
    from align.data.encoding import EncodedPreference
    from align.runtime.context import RunContext
    from align.stages import dpo, reward_model
    from align.testing import pairwise_config
    from align.training.pairwise.collator import TrainingPair
    from align.training.pairwise.mask_probe import choose_collator
    from align.training.pairwise.trainer import PairwiseTrainer, prepare_model

    numbers = {} if loss == "reward_model" else {"reference_chosen_logps": -250.0, "reference_rejected_logps": -250.0}
    rows = [
        TrainingPair(EncodedPreference(str(i), pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]), numbers)
        for i, pair in enumerate(pairs)
    ]
    context = RunContext(name="benchmark", work=Path(), seed=0, emit=lambda event: print(event, file=sys.stderr))
    collator = choose_collator(prepare_model(model), rows, context, pad_token_id=PAD)
    method = pairwise_config(reward_model, center_coef=0.0) if loss == "reward_model" else pairwise_config(dpo, beta=0.1)
    return PairwiseTrainer(model, rows, method, collator, arguments)


def trl_trainer(loss: str, model: Any, pairs: Sequence[dict[str, list[int]]], arguments: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    from align.testing import tiny_tokenizer

    class ReadyDPOTrainer(DPOTrainer):  # type: ignore[misc]
        """Takes tokens and reference log-probabilities as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _send_telemetry(self) -> None:
            pass

    class ReadyRewardTrainer(RewardTrainer):  # type: ignore[misc]
        def _send_telemetry(self) -> None:
            pass

    tokenizer = tiny_tokenizer()
    if loss == "reward_model":
        rows = [{f"{side}_ids": pair["prompt_ids"] + pair[f"{side}_ids"] for side in ("chosen", "rejected")} for pair in pairs]
        config = RewardConfig(**arguments, max_length=None)
        return ReadyRewardTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    online = loss == "dpo_online"
    numbers = {} if online else {"ref_chosen_logps": -250.0, "ref_rejected_logps": -250.0}
    config = DPOConfig(**arguments, max_length=None, beta=0.1, precompute_ref_log_probs=not online)
    reference = None
    if online:
        import copy

        reference = copy.deepcopy(model)
    return ReadyDPOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list([{**pair, **numbers} for pair in pairs]),
        processing_class=tokenizer,
    )


def run_side(options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, then time the windows of one side."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(options.threads)
    model = make_model(options, options.loss)
    pairs = make_pairs(options.shape, vocabulary=model.config.vocab_size, scale=options.scale)
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if options.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    steps = PAIRS // BATCH
    make = our_trainer if options.side == "align" else trl_trainer
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(options.loss, model, pairs, training_options(options, folder, epochs=1 + options.windows))
        trainer.add_callback(Clock())
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    marks = times[steps - 1 :: steps]
    seconds = min(after - before for before, after in itertools.pairwise(marks))
    rate = PAIRS / seconds
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"pairs_per_second": rate, "peak_memory_bytes": memory, "parameters": sum(p.numel() for p in model.parameters())}
    if options.device == "cuda":
        result["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        name = torch.cuda.get_device_name()
        result["device"] = name
        peak = peak_flops(name)
        if peak is not None:
            lengths = [(len(pair["prompt_ids"]), [len(pair["chosen_ids"]), len(pair["rejected_ids"])]) for pair in pairs]
            of_all = training_flops(
                SIZES[options.params], lengths, has_head=options.loss != "reward_model", shared_prompt=options.side == "align"
            )
            result["model_flop_utilisation"] = rate * of_all / len(pairs) / peak
    return result


def measure(options: argparse.Namespace, loss: str, shape: str, side: str) -> dict[str, Any]:
    """One run of one side, in a process of its own."""
    passed = {name: str(getattr(options, name)) for name in ("device", "params", "dtype", "threads", "windows", "scale")}
    arguments = [part for name, value in passed.items() for part in (f"--{name}", value)]
    command = [sys.executable, __file__, "--side", side, "--loss", loss, "--shape", shape, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(options: argparse.Namespace, loss: str, shape: str) -> dict[str, Any]:
    """Both sides in turn; the best rate and the smallest peak of each."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            # How the reference is got makes no difference to our side.
            runs[side].append(measure(options, "dpo" if (loss, side) == ("dpo_online", "align") else loss, shape, side))
    best = {side: max(found, key=lambda run: float(run["pairs_per_second"])) for side, found in runs.items()}
    peaks = {side: min(int(run["peak_memory_bytes"]) for run in found) for side, found in runs.items()}
    row: dict[str, Any] = {"loss": loss, "shape": shape}
    for side in SIDES:
        row[side] = {"pairs_per_second": round(best[side]["pairs_per_second"], 2), "peak_memory_bytes": peaks[side]}
        if "model_flop_utilisation" in best[side]:
            row[side]["model_flop_utilisation"] = round(best[side]["model_flop_utilisation"], 3)
    row["speed_ratio"] = round(best["align"]["pairs_per_second"] / best["trl"]["pairs_per_second"], 3)
    row["memory_ratio"] = round(peaks["align"] / peaks["trl"], 3)
    row["parameters"] = best["align"]["parameters"]
    row["device"] = best["align"].get("device", "cpu")
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--params", choices=list(SIZES), default="6m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, in turn")
    parser.add_argument("--windows", type=int, default=2, help="timed windows of a run, each a pass over all pairs")
    parser.add_argument("--scale", type=int, default=1, help="all lengths times this")
    parser.add_argument("--case", action="append", choices=["/".join(case) for case in CASES], help="default: all")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--loss", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options)))
        return 0
    result: dict[str, Any] = {
        "command": " ".join(["python", "scripts/benchmarks/pairwise.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(os.getloadavg()[0], 2)},
        "batch_pairs": BATCH,
        "lengths": {shape: [tokens * options.scale for tokens in means] for shape, means in SHAPES.items()},
        "rows": [],
    }
    for loss, shape in CASES:
        if not options.case or f"{loss}/{shape}" in options.case:
            result["rows"].append(compare(options, loss, shape))
            print(json.dumps(result["rows"][-1]), file=sys.stderr)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
