"""Llama and T5 models of a few thousand parameters with a byte-level tokenizer, written to a folder as a real model would be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "<|pad|>", "eos_token": "<|im_end|>"}
CONTROL_TOKENS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(
    texts: Iterable[str] = (),
    *,
    vocabulary: int = 400,
    control: Sequence[str] = CONTROL_TOKENS,
    named: Mapping[str, str] = SPECIAL_TOKENS,
    template: str | None = CHAT_TEMPLATE,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that can spell any string; merges are learnt from `texts`.

    Args:
        control: control tokens of its vocabulary, which get the ids from 0.
        named: which of them is its bos_token, eos_token, pad_token, …
        template: its chat template; None: it has none, as the tokenizers of base models.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(control),
        # All 256 bytes: no text can give an unknown token, whatever the merges were learnt from.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, clean_up_tokenization_spaces=False)
    fast.chat_template = template
    return fast


def _llama_config(tokenizer: Any, changes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    defaults = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        # The tokenizer has none; transformers' default of 1 would be <|im_start|>.
        "bos_token_id": None,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    return LlamaConfig(**{**defaults, **changes})


def tiny_causal_lm(folder: Path, *, texts: Iterable[str] = (), seed: int = 0, **changes: Any) -> Path:
    """Write a random causal language model with its tokenizer to `folder`; `changes` override its LlamaConfig."""
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = tiny_tokenizer(texts)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_llama_config(tokenizer, changes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_reward_model(folder: Path, *, texts: Iterable[str] = (), seed: int = 0, **changes: Any) -> Path:
    """Write a random reward model (one score per sequence) with its tokenizer to `folder`."""
    import torch
    from transformers import LlamaForSequenceClassification

    tokenizer = tiny_tokenizer(texts)
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(_llama_config(tokenizer, {"num_labels": 1, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fill_weights(folder: Path, value: float, name: str = "model.norm.weight") -> Path:
    """Set all numbers of one tensor of a written model, such as to NaN."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, name: weights[name].fill_(value)}, file, metadata={"format": "pt"})
    return folder


def tiny_seq2seq_lm(
    folder: Path, *, texts: Iterable[str] = (), seed: int = 0, chat_template: str | None = None, **changes: Any
) -> Path:
    """Write a random T5 with its tokenizer to `folder`. As T5's own, the tokenizer appends the end-of-sequence token.

    Args:
        chat_template: none unless given, as T5 has none.
        changes: override its T5Config.
    """
    import torch
    from tokenizers import processors
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = tiny_tokenizer(texts)
    end = str(tokenizer.eos_token)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.chat_template = chat_template
    defaults = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
    }
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(**{**defaults, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
