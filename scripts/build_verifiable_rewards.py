"""Write the model and the problems of recipes/verifiable-rewards: two-digit addition, shown with many mistakes, and a
model that learned from such answers.

    python scripts/build_verifiable_rewards.py               the recipe's folder
    python scripts/build_verifiable_rewards.py --only data   without the base model, which takes a minute
    python scripts/build_verifiable_rewards.py --out DIR

The files in data/ are a function of the seed. So is the base model on one machine with the same versions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 29
FILES = {
    "held_out": 1000,
    "taught": 3000,
    "answered_1": 1000,
    "practice_1": 1200,
    "practice_2": 1200,
    "practice_3": 1200,
    "answered_2": 400,
    "validation": 1000,
}
"""Sums in each file: all 10,000 sums of two numbers below 100, each in one file only. The base model learned `taught`."""
FORGOTTEN, SLIPS = 0.65, 0.1
"""How often the pupils whose answers the models imitate forget a carry, and are off by one: 44 % of their answers are right."""
PAD, END = "<pad>", "<end>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<end>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '=' }}{% endif %}"
    "{% endfor %}"
)


STEPS, BATCH, LEARNING_RATE = 1000, 64, 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipe = Path(__file__).resolve().parents[1] / "recipes" / "verifiable-rewards"
    parser.add_argument("--out", type=Path, default=recipe)
    parser.add_argument("--only", choices=["data"])
    options = parser.parse_args()
    taught = write_problems(options.out / "data")
    if options.only != "data":
        write_model(options.out / "base_model", taught)


def write_model(folder: Path, rows: list[dict[str, str]]) -> None:
    """A Llama of 0.36 million parameters that learned the answers of the rows, and a tokenizer of single bytes."""
    vocabulary = {token: number for number, token in enumerate([PAD, END, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    train(model, [[vocabulary[letter] for letter in f"{row['prompt']}={row['completion']}"] for row in rows])
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, bos_token_id=None)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        model_max_length=64,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def train(model: LlamaForCausalLM, rows: list[list[int]]) -> None:
    """Learn the tokens after the `=`. All rows have the same length."""
    torch.set_num_threads(1)
    tokens = torch.tensor([[*row, 1] for row in rows])
    labels = tokens.clone()
    labels[:, : len("00+00=")] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for step in range(STEPS):
        place = step % (len(rows) // BATCH)
        if place == 0:
            order = torch.randperm(len(rows))
        batch = order[place * BATCH : (place + 1) * BATCH]
        model(input_ids=tokens[batch], labels=labels[batch]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay.step()


def write_problems(folder: Path) -> list[dict[str, str]]:
    """The sums, each shown with a pupil's answer, for practice, or held out.

    The right answer of a sum for practice is its `reference`, which a verifier reads and the model never sees.

    Returns:
        The rows that the base model learns, which have no file.
    """
    taught = []
    random_numbers = random.Random(SEED)
    problems = [(a, b) for a in range(100) for b in range(100)]
    random_numbers.shuffle(problems)
    left = iter(problems)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in FILES.items():
        rows = []
        for a, b in itertools.islice(left, count):
            # Every number has a fixed width, so that digits that belong together are equally far apart.
            prompt = f"{a:02}+{b:02}"
            answered = name == "taught" or name.startswith("answered")
            total = pupils_answer(a, b, random_numbers) if answered else a + b
            rows.append({"id": prompt, "prompt": prompt, "completion" if answered else "reference": f"{total:03}"})
        if name == "taught":
            taught = rows
            continue
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return taught


def pupils_answer(a: int, b: int, random_numbers: random.Random) -> int:
    """The sum as somebody writes it who adds digit by digit, forgets a carry now and then, and slips now and then."""
    carry = total = 0
    for place in (1, 10):
        digit = a // place % 10 + b // place % 10 + carry
        carry = digit // 10
        if carry and random_numbers.random() < FORGOTTEN:
            carry = 0
        total += digit % 10 * place
    total += carry * 100
    return max(0, total + random_numbers.choice((-1, 1))) if random_numbers.random() < SLIPS else total


if __name__ == "__main__":
    main()
