"""The hub for the recipes of public models: tiny twins of the models, and rows in the columns of the data sets.

A twin has the model's architecture, control tokens and kind of chat template; nothing of the models themselves is here. The
columns and splits are those of the data sets' pages.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.testing.tiny import tiny_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = 10
"""Of every split, or part of one."""
TEXTS = ("Say it kindly.", "Count from 1 to 20.", "우산을 두고 왔어.", "Name a colour, please.", "속상했겠다. 12")


@dataclass(frozen=True)
class Twin:
    """What a model of the hub is made of: its kind, and what its tokenizer's files say."""

    model_type: str
    tokens: dict[str, str]
    """Of tokenizer_config.json: bos_token, eos_token, pad_token."""
    control: tuple[str, ...] = ()
    """Further control tokens of its vocabulary."""
    template: str | None = None
    writes_bos: bool = False
    """Whether the tokenizer puts the beginning-of-sequence token in front by itself."""
    sizes: dict[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    """Where generation_config.json stops, if it says so."""
    scores: bool = False
    """A reward model."""

    def write(self, folder: Path) -> Path:
        """The twin as a model folder, random."""
        import torch
        from tokenizers import processors
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

        control = tuple(dict.fromkeys((*self.tokens.values(), *self.control)))
        tokenizer = tiny_tokenizer(TEXTS, control=control, named=self.tokens, template=self.template)
        if self.writes_bos:
            bos = self.tokens["bos_token"]
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
            )
        sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024, "vocab_size": len(tokenizer)}
        names = ("bos", "eos", "pad")
        sizes |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
        sizes |= {"initializer_range": 0.1, "tie_word_embeddings": True, **self.sizes}
        # As the public models are stored.
        sizes |= {"dtype": "bfloat16"} | ({"num_labels": 1} if self.scores else {})
        torch.manual_seed(0)
        auto = AutoModelForSequenceClassification if self.scores else AutoModelForCausalLM
        model = auto.from_config(AutoConfig.for_model(self.model_type, **sizes))
        if self.stops:
            model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(self.stops))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder


CHATML = ("<|im_start|>", "<|im_end|>")
# Of the kind of Qwen3's: the last answer gets an empty thinking block, and so does the generation prompt when thinking is off.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)

# Of the kind of Gemma's: another name for the assistant, trimmed turns, a system message in front of the first question.
TRIMMING = (
    "{{ bos_token }}{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for message in (messages[1:] if system else messages) %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{{ system if loop.first else '' }}{{ message.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
SMOLLM2 = Twin("llama", {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, (*CHATML, "<repo_name>", "<file_sep>"))
TWINS: dict[str, Twin] = {
    "HuggingFaceTB/SmolLM2-360M": SMOLLM2,
    "HuggingFaceTB/SmolLM2-1.7B": SMOLLM2,
    "Qwen/Qwen3-0.6B-Base": Twin("qwen3", {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, CHATML, THINKING),
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": Twin(
        "qwen3", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, CHATML, THINKING, scores=True
    ),
    "meta-llama/Llama-3.2-1B": Twin(
        "llama",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_0|>"),
        writes_bos=True,
        sizes={"rope_parameters": LLAMA_3_ROPE},
    ),
    "allenai/OLMo-2-0425-1B": Twin(
        "olmo2",
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
        sizes={"tie_word_embeddings": False},
    ),
    "google/gemma-3-1b-it": Twin(
        "gemma3_text",
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        ("<start_of_turn>", "<end_of_turn>"),
        TRIMMING,
        writes_bos=True,
        sizes={"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16},
        stops=("<eos>", "<end_of_turn>"),
    ),
}


def conversation(text: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def _ultrafeedback(text: str, number: int) -> dict[str, Any]:
    chosen, rejected = (conversation(text, answer) for answer in ("Of course: here it is.", f"No. {number}"))
    scores = {"score_chosen": 8.5, "score_rejected": 4.0}
    return {"prompt": text, "prompt_id": f"{number:x}", "chosen": chosen, "rejected": rejected, "messages": chosen, **scores}


def _smoltalk(text: str, number: int) -> dict[str, Any]:
    turns = [*conversation(text, "Certainly."), *conversation(f"And {number}?", "That too.")]
    return {"messages": turns, "source": "everyday-conversations"}


def _tulu(text: str, number: int) -> dict[str, Any]:
    return {"id": f"tulu_{number}", **_smoltalk(text, number)}


def _personas(text: str, number: int) -> dict[str, Any]:
    return {"id": f"personas_{number}", "prompt": text, "messages": conversation(text, f"{number}"), "constraints": ["number"]}


def _olmo_pairs(text: str, number: int) -> dict[str, Any]:
    row = _ultrafeedback(text, number)
    return {"id": f"pair_{number}", "source": "on-policy", **{key: row[key] for key in ("prompt", "chosen", "rejected")}}


def _ifeval(text: str, number: int) -> dict[str, Any]:
    return {"key": 1000 + number, "prompt": text, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def _math(text: str, number: int) -> dict[str, Any]:
    solution = f"So it is \\boxed{{{number}}}."
    return {"problem": text, "generated_solution": solution, "expected_answer": f"{number}", "problem_source": "augmented_gsm8k"}


def _gsm8k(text: str, number: int) -> dict[str, Any]:
    return {"question": text, "answer": f"{number} + 0 = <<{number}+0={number}>>{number}\n#### {number}"}


def _orca_korean(text: str, number: int) -> dict[str, Any]:
    return {
        "system": "친절하게 답하세요." if number % 2 else "",
        "question": text,
        "chosen": "속상했겠다.",
        "rejected": f"{number}",
    }


def _wikitext(text: str, number: int) -> dict[str, Any]:
    # Every other line of WikiText is empty.
    return {"text": f" = {text} = \n" if number % 2 else ""}


DATASETS: dict[str, tuple[str | None, tuple[str, ...], Callable[[str, int], dict[str, Any]]]] = {
    "HuggingFaceH4/ultrafeedback_binarized": (None, ("train_prefs", "test_prefs"), _ultrafeedback),
    "HuggingFaceTB/smol-smoltalk": (None, ("train", "test"), _smoltalk),
    "HuggingFaceTB/smoltalk": ("all", ("train", "test"), _smoltalk),
    "SJ-Donald/orca-dpo-pairs-ko": (None, ("train",), _orca_korean),
    "allenai/olmo-2-0425-1b-preference-mix": (None, ("train",), _olmo_pairs),
    "allenai/tulu-3-sft-olmo-2-mixture-0225": (None, ("train",), _tulu),
    "allenai/tulu-3-sft-personas-instruction-following": (None, ("train",), _personas),
    "allenai/tulu-3-sft-personas-math-grade": (None, ("train",), _personas),
    "google/IFEval": (None, ("train",), _ifeval),
    "nvidia/OpenMathInstruct-2": (None, ("train", "train_1M", "train_2M", "train_5M"), _math),
    "openai/gsm8k": ("main", ("train", "test"), _gsm8k),
    "Salesforce/wikitext": ("wikitext-2-raw-v1", ("train", "validation", "test"), _wikitext),
}
"""By id: the subset that the recipes use, the splits, and a row of a text and a number."""


def twin_rows(
    dataset: str, split: str, revision: str | None = None, subset: str | None = None, max_rows: int | None = None
) -> tuple[str, Iterator[tuple[int, dict[str, Any]]]]:
    """What `fetch_dataset_rows` gives: rows with other texts for every split and part of one."""
    wanted, splits, row = DATASETS[dataset]
    assert revision is not None, f"{dataset}: a recipe names a revision, which can be pinned"
    assert subset == wanted, f"{dataset}: its subsets include {wanted}, not {subset}"
    name = re.fullmatch(r"(\w+)(\[\d*%?:\d*%?\])?", split)
    assert name is not None and name[1] in splits, f"{dataset}: has {splits}, not {split}"
    rows = (row(f"{TEXTS[number % len(TEXTS)]} {dataset} {split} {number}", number) for number in range(ROWS))
    return COMMIT, itertools.islice(enumerate(rows, start=1), max_rows)
