"""The quickstart's base model: its tokenizer, its architecture and its pre-training from scratch on a CPU."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Small enough that a Korean noun and its particle stay apart: the model can then take up a noun with another particle.
MAX_VOCABULARY = 2048
PAD, START, END, DOCUMENT_END = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CONTEXT_TOKENS = 512

WINDOW_TOKENS = 128
"""Length of one packed training sequence."""
BATCH_WINDOWS = 16
PEAK_LEARNING_RATE = 2.5e-3
WARMUP_SHARE = 0.06

# The answer and the token that ends it lie between the generation markers: they are what training learns from.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\\n' }}"
    "{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(documents: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: no normalizer and no added tokens, so that every string comes back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=2,
        special_tokens=[PAD, START, END, DOCUMENT_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The markers of a chat are split off first, or merges would be learnt inside them.
    plain = (text.replace(START, "\n").replace(END, "\n") for text in documents)
    tokenizer.train_from_iterator(plain, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, DOCUMENT_END],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A small Llama with fresh weights."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=64,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    return model


def packed(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> torch.Tensor:
    """All documents end to end, `<|endoftext|>` after each, cut into windows: token ids [windows, WINDOW_TOKENS]."""
    end = tokenizer.convert_tokens_to_ids(DOCUMENT_END)
    rows = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    stream = [token for row in rows for token in (*row, end)]
    whole = len(stream) // WINDOW_TOKENS * WINDOW_TOKENS
    return torch.tensor(stream[:whole]).view(-1, WINDOW_TOKENS)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to a twentieth of the peak."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return PEAK_LEARNING_RATE * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return PEAK_LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def _batches(windows: torch.Tensor, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of token ids [BATCH_WINDOWS, WINDOW_TOKENS], reshuffled on every pass through the corpus."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH_WINDOWS:
            order = torch.cat([order, torch.randperm(len(windows), generator=generator)])
        yield windows[order[:BATCH_WINDOWS]]
        order = order[BATCH_WINDOWS:]


def pretrain(model: LlamaForCausalLM, windows: torch.Tensor, steps: int, seed: int) -> float:
    """Train in place on packed windows [windows, WINDOW_TOKENS]; the mean loss of the last 50 steps, in nats per token."""
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}], lr=0.0, betas=(0.9, 0.98)
    )
    # Without a matrix unit for bfloat16 its arithmetic is emulated, and half as fast as single precision.
    bfloat16 = torch.cpu._is_amx_tile_supported()
    model.train()
    forward: Callable[..., Any] = torch.compile(model, dynamic=False)  # a model this small mostly waits between operators
    started, losses = time.monotonic(), []
    for step, batch in enumerate(_batches(windows, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = forward(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 49 or step + 1 == steps:
            recent = sum(losses[-50:]) / len(losses[-50:])
            print(f"step {step + 1}/{steps}  loss {recent:.3f}  {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    model.eval()
    return float(sum(losses[-50:]) / len(losses[-50:]))


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, windows: torch.Tensor) -> float:
    """Perplexity per token of packed windows [windows, WINDOW_TOKENS]."""
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in torch.split(windows, BATCH_WINDOWS)]
    return math.exp(sum(losses) / len(windows))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """The model and its tokenizer as `from_pretrained` reads them, in single precision; what was there before goes."""
    if directory.exists():
        shutil.rmtree(directory)
    model.float().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
