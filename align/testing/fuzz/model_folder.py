"""The fuzz target of model folders: headers of weights, and the JSON files that say what a model is. No weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from align.errors import EnvironmentProblem, RecipeError
from align.models.folder import ModelFolder
from align.models.shape import read_shape
from align.testing.fuzz.mutate import HOSTILE_BYTES, as_json, changed_tree, mutated
from align.testing.fuzz.target import ACCEPTED, refusal

WEIGHTS = "model.safetensors"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 6, "max_position_embeddings": 512,
    "tie_word_embeddings": True, "torch_dtype": "float32", "eos_token_id": 2, "hidden_act": "silu", "rope_scaling": None,
}  # fmt: skip
VISION = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": CONFIG,
    "vision_config": {"n": 1},
}
PREFIX = "model.layers.0"
SHAPES = {
    "model.embed_tokens.weight": [6, 4],
    f"{PREFIX}.self_attn.q_proj.weight": [4, 4],
    f"{PREFIX}.mlp.up_proj.weight": [8, 4],
    "model.norm.weight": [4],
}
TREES: dict[str, tuple[Any, ...]] = {
    "config.json": (CONFIG, VISION),
    "generation_config.json": ({"eos_token_id": [2, 3], "pad_token_id": 0}, {"eos_token_id": 2}),
    "tokenizer_config.json": ({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "x"},),
    "tokenizer.json": ({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []},),
    "chat_settings.json": ({"thinking": "keep", "end_of_turn": "</s>", "system": "a"},),
    "model.safetensors.index.json": ({"metadata": {"total_size": 256}, "weight_map": dict.fromkeys(SHAPES, WEIGHTS)},),
}
NAMES = (
    "auto_map", "trust_remote_code", "_attn_implementation", "attn_implementation", "quantization_config", "quant_method",
    "text_config",
    "is_encoder_decoder", "architectures", "torch_dtype", "dtype", "tie_word_embeddings", "eos_token_id", "n_positions",
    "weight_map",
    "data_offsets", "shape", "__metadata__", "add_tokens", "template", "n_embd", "num_experts", "attn_logit_softcapping",
)  # fmt: skip


class ModelFolderTarget:
    """A model's folder of which one file was changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header = _header()
        self.numbers: bytes = b"\0" * self.header["model.norm.weight"]["data_offsets"][1]
        self.corpora = {name: [json.dumps(tree).encode() for tree in trees] for name, trees in TREES.items()}
        whole = json.dumps(self.header).encode()
        self.corpora[WEIGHTS] = [len(whole).to_bytes(8, "little") + whole + self.numbers]
        self.optional = ("generation_config.json", "tokenizer_config.json", "chat_settings.json", "model.safetensors.index.json")
        for name in self.corpora:
            if name not in self.optional:
                (folder / name).write_bytes(self.corpora[name][0])

    def make(self, random: Random) -> bytes:
        """Each file as often. Headers of weights have a target of their own, without a folder around them."""
        name = random.choice([WEIGHTS, *TREES])
        if random.randrange(3) == 0:
            return f"{name}\n".encode() + mutated(random, self.corpora[name], [*HOSTILE_BYTES, *_LENGTHS])
        if name != WEIGHTS:
            return f"{name}\n".encode() + as_json(random, changed_tree(random, random.choice(TREES[name]), NAMES))
        header = as_json(random, changed_tree(random, self.header, NAMES))
        length = len(header).to_bytes(8, "little") if random.randrange(8) else random.choice(_LENGTHS)
        return f"{name}\n".encode() + length + header + self.numbers

    def read(self, data: bytes) -> str:
        """Everything that align says of the folder without reading weights; RecipeError and EnvironmentProblem are refusals."""
        head, _, content = data.partition(b"\n")
        name = head.decode()
        (self.folder / name).write_bytes(content)
        try:
            # A folder object remembers what it read, also that a check failed.
            _everything_of(ModelFolder(self.folder))
        except (RecipeError, EnvironmentProblem) as error:
            return refusal(error)
        finally:
            if name in self.optional:
                (self.folder / name).unlink()
            else:
                (self.folder / name).write_bytes(self.corpora[name][0])
        return ACCEPTED


_LENGTHS = tuple(
    number.to_bytes(8, "little") for number in (0, 1, 2, 7, 100, 2**20, 100 * 2**20 + 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1)
)


def _header() -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in SHAPES.items():
        end = start + 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    return header


def _everything_of(folder: ModelFolder) -> None:
    folder.check()
    for name in (
        "config", "generation_config", "tokenizer_config", "stop_token_ids", "chat_settings", "new_tokens", "adapter_config",
        "is_adapter", "trained_token_ids", "peft", "encoder_decoder", "is_reward_model", "can_score", "stored_dtype",
        "virtual_tokens",
        "tied", "caps_scores", "context_tokens", "tensor_shapes", "is_configuration_alone", "base",
    ):  # fmt: skip
        getattr(folder, name)
    folder.saved_dtype("auto")
    read_shape(folder)
