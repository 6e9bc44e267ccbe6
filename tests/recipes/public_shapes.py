"""The sizes of the models that the recipes of public models start from, as config.json names them, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model as config.json describes it."""

    model_type: str
    parameters: int
    """As published; of a reward model without its head."""
    sizes: Mapping[str, Any]
    scores: bool = False
    """A reward model."""

    def write(self, folder: Path) -> Path:
        """A folder with this config.json and nothing else."""
        from transformers import AutoConfig

        labels = {"num_labels": 1, "architectures": ["Qwen3ForSequenceClassification"]} if self.scores else {}
        AutoConfig.for_model(self.model_type, dtype="bfloat16", **self.sizes, **labels).save_pretrained(folder)
        return folder


def _sizes(
    hidden: int, intermediate: int, layers: int, heads: int, key_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    values = (hidden, intermediate, layers, heads, key_heads, vocabulary)
    return {**dict(zip(names, values, strict=True)), "tie_word_embeddings": True, **more}


QWEN3 = _sizes(1024, 3072, 28, 16, 8, 151_936, head_dim=128, max_position_embeddings=32_768)
SHAPES = {
    "HuggingFaceTB/SmolLM2-360M": Shape("llama", 361_821_120, _sizes(960, 2560, 32, 15, 5, 49_152, max_position_embeddings=8192)),
    "HuggingFaceTB/SmolLM2-1.7B": Shape(
        "llama", 1_711_376_384, _sizes(2048, 8192, 24, 32, 32, 49_152, max_position_embeddings=8192)
    ),
    "Qwen/Qwen3-0.6B-Base": Shape("qwen3", 596_049_920, QWEN3),
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": Shape("qwen3", 596_049_920, QWEN3, scores=True),
    "meta-llama/Llama-3.2-1B": Shape(
        "llama", 1_235_814_400, _sizes(2048, 8192, 16, 32, 8, 128_256, head_dim=64, max_position_embeddings=131_072)
    ),
    "allenai/OLMo-2-0425-1B": Shape(
        "olmo2",
        1_484_916_736,
        _sizes(2048, 8192, 16, 16, 16, 100_352, max_position_embeddings=4096, tie_word_embeddings=False),
    ),
    "google/gemma-3-1b-it": Shape(
        "gemma3_text",
        999_885_952,
        _sizes(1152, 6912, 26, 4, 1, 262_144, head_dim=256, max_position_embeddings=32_768, sliding_window=512),
    ),
}
