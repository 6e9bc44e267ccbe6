"""The fuzz target of adapters: the two files that say what an adapter is and which base model it belongs to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

from align.config.peft import Lora
from align.errors import EnvironmentProblem, RecipeError
from align.models.adapter import write_base_record
from align.models.files import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, BASE_NAME
from align.models.folder import ModelFolder
from align.testing.fuzz.mutate import as_json, changed_tree, mutated
from align.testing.fuzz.target import ACCEPTED, changed_file, refusal
from align.testing.tiny import tiny_causal_lm

CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "inference_mode": True,
    "base_model_name_or_path": None, "trainable_token_indices": {"embed_tokens": [1, 2]}, "modules_to_save": None,
}  # fmt: skip
NAMES = (
    "auto_mapping", "revision", "place", "fingerprint", "peft", "method", "rank", "alpha", "quantization", "num_virtual_tokens",
)  # fmt: skip


class AdapterTarget:
    """An adapter's folder of which one file was changed."""

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        base = tiny_causal_lm(folder / "store" / "base" / "model", texts=["hello there"])
        self.folder = folder / "store" / "adapter" / "model"
        shutil.copytree(base, self.folder, ignore=shutil.ignore_patterns("*.safetensors"))
        weights = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 4)}
        save_file(weights, self.folder / ADAPTER_WEIGHTS_NAME)
        (self.folder / ADAPTER_CONFIG_NAME).write_text(json.dumps(CONFIG))
        write_base_record(self.folder, base=base, store_root=folder / "store", peft=Lora(method="lora"))
        self.contents = {name: (self.folder / name).read_bytes() for name in (ADAPTER_CONFIG_NAME, BASE_NAME)}

    def make(self, random: Random) -> bytes:
        """Values are changed two times of three, bytes otherwise."""
        name = random.choice(list(self.contents))
        if random.randrange(3) == 0:
            return f"{name}\n".encode() + mutated(random, [self.contents[name]])
        return f"{name}\n".encode() + as_json(random, changed_tree(random, json.loads(self.contents[name]), NAMES))

    def read(self, data: bytes) -> str:
        """Everything that align says of an adapter without reading weights; RecipeError and EnvironmentProblem are refusals."""
        with changed_file(self.folder, self.contents, data):
            try:
                _everything_of(ModelFolder(self.folder))
            except (RecipeError, EnvironmentProblem) as error:
                return refusal(error)
        return ACCEPTED


def _everything_of(folder: ModelFolder) -> None:
    folder.check()
    for name in ("adapter_config", "trained_token_ids", "peft", "virtual_tokens", "is_reward_model", "can_score", "base"):
        getattr(folder, name)
