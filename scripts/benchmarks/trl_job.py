#!/usr/bin/env python3
"""SFT, DPO or a reward model by TRL, as its documentation does it, from a model's folder to a model's folder; see peers.py.

    python scripts/benchmarks/trl_job.py sft MODEL ROWS.jsonl OUT --epochs 2 --batch-size 8 --learning-rate 1e-3 --max-length 256

Prints the seconds that TRL says the training alone took.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TRL_EXPERIMENTAL_SILENCE="1")


def conversations(method: str, row: dict[str, str]) -> dict[str, Any]:
    """A row in the form that TRL's trainer of the method reads."""
    prompt = [{"role": "user", "content": row["prompt"]}]

    def answer(name: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": row[name]}]

    if method == "sft":
        return {"prompt": prompt, "completion": answer("completion")}
    return {"prompt": prompt, "chosen": answer("chosen"), "rejected": answer("rejected")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=("sft", "dpo", "reward_model"))
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("out")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    options = parser.parse_args()

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    lines = options.rows.read_text(encoding="utf-8").splitlines()
    dataset = Dataset.from_list([conversations(options.method, json.loads(line)) for line in lines])
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    configs = {"sft": SFTConfig, "dpo": DPOConfig, "reward_model": RewardConfig}
    trainers = {"sft": SFTTrainer, "dpo": DPOTrainer, "reward_model": RewardTrainer}
    config = configs[options.method](
        output_dir=options.out,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        max_length=options.max_length,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    load: Any = AutoModelForSequenceClassification if options.method == "reward_model" else AutoModelForCausalLM
    labels = {"num_labels": 1} if options.method == "reward_model" else {}
    model = load.from_pretrained(options.model, **labels)
    trainer = trainers[options.method](model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    trainer._send_telemetry = lambda: None
    result = trainer.train()
    trainer.save_model(options.out)
    print(json.dumps({"train_seconds": round(result.metrics["train_runtime"], 3), "steps": trainer.state.global_step}))


if __name__ == "__main__":
    main()
