"""TRL's PPO on the same models and prompts, for `ppo.py`. Runs in an environment of its own with trl 1.12, which still has PPO.

Prints one JSON line: the time at the end of every rollout batch, and TRL's log.
"""

# mypy: disable-error-code="misc, no-untyped-call"
# What it imports is not installed where types are checked.

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", help="JSON: policy, reward_model, prompts (token ids), batch, mini_batch, epochs, …")
    settings = json.loads(Path(parser.parse_args().settings).read_text())
    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(settings["policy"], padding_side="left")
    load_policy = lambda: AutoModelForCausalLM.from_pretrained(settings["policy"], dtype=torch.float32)  # noqa: E731
    load_reward = lambda: AutoModelForSequenceClassification.from_pretrained(  # noqa: E731
        settings["reward_model"], num_labels=1, dtype=torch.float32
    )
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **more):  # type: ignore[no-untyped-def]
            times.append(time.perf_counter())

    config = PPOConfig(
        output_dir=settings["work"],
        per_device_train_batch_size=settings["mini_batch"],
        gradient_accumulation_steps=settings["batch"] // settings["mini_batch"],
        num_mini_batches=settings["batch"] // settings["mini_batch"],
        local_rollout_forward_batch_size=settings["mini_batch"],
        num_ppo_epochs=settings["epochs"],
        total_episodes=settings["batch"] * settings["rollouts"],
        response_length=settings["max_completion_tokens"],
        temperature=1.0,
        stop_token="eos",
        missing_eos_penalty=1.0,
        kl_coef=0.05,
        learning_rate=settings["learning_rate"],
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=17,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=load_policy(),
        ref_model=load_policy(),
        reward_model=load_reward(),
        value_model=load_reward(),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in settings["prompts"]]),
        eval_dataset=Dataset.from_list([{"input_ids": ids} for ids in settings["prompts"][: settings["mini_batch"]]]),
        callbacks=[Clock()],
    )
    started = time.perf_counter()
    sys.stdout = sys.stderr  # TRL prints its log
    trainer.train()
    sys.stdout = sys.__stdout__
    print(json.dumps({"times": [moment - started for moment in times], "log": trainer.state.log_history}))


if __name__ == "__main__":
    main()
