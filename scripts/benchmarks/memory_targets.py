"""What real models need in training, beside what they may need.

    python scripts/benchmarks/memory_targets.py
    python scripts/benchmarks/memory_targets.py --no-layers

The targets are estimates, by the formulas of `align plan --memory`, from shapes alone and for a GPU with bfloat16. Then one layer
of Qwen3-8B runs on the CPU in bfloat16 and torch lists what it keeps for the backward pass, beside what the estimate counts.
Writes scripts/benchmarks/memory_targets.json; exits with 1 if a target is missed. docs/memory.md has the targets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from align.config.peft import Lora
from align.models.folder import ModelFolder
from align.models.shape import ModelShape, read_shape
from align.pipeline.estimate.loaded_model import LoadedModel, Peft
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.memory import Estimate, estimate_stage
from align.stages import dpo, ppo, sft
from align.store.atomic import write_json
from align.testing.shapes import SHAPES
from align.training.needs import SAMPLED_ROWS, Batch, RowLength

RESULT = Path(__file__).with_suffix(".json")
GIB = 1 << 30
ROW = 4096
MEMORY: dict[str, Any] = {"gradient_checkpointing": True, "learning_rate": 1e-5}
SFT: dict[str, Any] = MEMORY | {"model": "base", "data": "data", "max_tokens": ROW, "batch_size": 8, "micro_batch_size": 1}
WHOLE: dict[str, Any] = SFT | {"batch_size": 4, "micro_batch_size": 4, "optimizer": "adamw_8bit"}
"""Without accumulation, whose gradients would be there during every pass."""
DPO: dict[str, Any] = MEMORY | {"model": "base", "pairs": "data", "max_tokens": ROW, "batch_size": 8, "micro_batch_size": 1}
PPO: dict[str, Any] = MEMORY | {
    "model": "base", "prompts": "data", "scorers": {"rm": "base"}, "micro_batch_tokens": ROW, "max_prompt_tokens": 512,
    "max_completion_tokens": 512, "engine": "vllm",
}  # fmt: skip
SAMPLE, PAIR, PROMPT = RowLength(0, (ROW,)), RowLength(512, (ROW // 2 - 256, ROW // 2 - 256)), RowLength(512, ())
LORA, QLORA = Lora(method="lora"), Lora(method="qlora")


@dataclass(frozen=True)
class Target:
    name: str
    shape: str
    """Of `align.testing.shapes`."""
    config: Any
    peft: Peft
    rows: RowLength
    card_gib: int
    """Memory of the GPU; vLLM takes a share of it."""
    target_gib: float


TARGETS = (
    Target("sft, full, adamw_8bit", "qwen3-8b", sft.Config(**WHOLE), None, SAMPLE, 80, 80),
    Target("sft, LoRA", "qwen3-8b", sft.Config(**SFT), LORA, SAMPLE, 80, 24),
    Target("sft, QLoRA", "qwen3-8b", sft.Config(**SFT), QLORA, SAMPLE, 80, 12),
    Target("sft, LoRA", "llama-3.1-8b", sft.Config(**SFT), LORA, SAMPLE, 80, 24),
    Target("sft, QLoRA", "llama-3.1-8b", sft.Config(**SFT), QLORA, SAMPLE, 80, 12),
    Target("dpo, full", "qwen3-0.6b", dpo.Config(**DPO), None, PAIR, 24, 16),
    Target("dpo, full", "llama-3.2-1b", dpo.Config(**DPO), None, PAIR, 24, 24),
    Target("dpo, LoRA", "llama-3.2-1b", dpo.Config(**DPO), LORA, PAIR, 24, 8),
    Target("dpo, LoRA", "qwen3-8b", dpo.Config(**DPO), LORA, PAIR, 24, 24),
    Target("dpo, QLoRA", "qwen3-8b", dpo.Config(**DPO), QLORA, PAIR, 24, 12),
    Target("ppo, LoRA, reward model of 1B", "llama-3.2-1b", ppo.Config(**PPO), LORA, PROMPT, 24, 24),
)


@cache
def shape_of(name: str) -> ModelShape:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config_of(name)))
        found = read_shape(ModelFolder(Path(folder)))
    if found is None:
        raise SystemExit(f"{name}: its shape cannot be told from config.json")
    return found


def config_of(name: str) -> dict[str, Any]:
    """What the model's config.json says; those of public models are longer."""
    kind = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[SHAPES[name]["model_type"]]
    return {"architectures": [kind], "tie_word_embeddings": True, "torch_dtype": "bfloat16", **SHAPES[name]}


def estimate(target: Target) -> Estimate:
    config = target.config.model_copy(update={"peft": target.peft})
    machine = Machine("cuda", "GPU", target.card_gib * GIB, target.card_gib * GIB, 10**15, has_bfloat16=True, device_line="")
    rows = [target.rows] * SAMPLED_ROWS  # more rows than are read, so that passes and batches are full
    return estimate_stage(config.training_needs(), target.peft, {"base": shape_of(target.shape)}, rows, machine)


def estimates() -> Iterator[dict[str, Any]]:
    """Of every target, in GiB, with the terms of the estimate."""
    for target in TARGETS:
        memory = {term: round(size / GIB, 2) for term, size in asdict(estimate(target).memory).items()}
        peak = memory.pop("peak")
        row = {"name": target.name, "model": target.shape, "gib": peak, "target_gib": target.target_gib, "terms_gib": memory}
        yield row | {"is_met": peak <= target.target_gib}


def measure_layers(tokens: int) -> Iterator[dict[str, Any]]:
    """MiB that one layer of Qwen3-8B keeps of a row under bfloat16 autocast, and what is counted; and so without layers kept."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from align.models.lora import add_lora
    from align.models.trainable import keep_trained_in_float32

    batch = Batch(tokens, tokens, 0, is_masked=False, accumulates=False)
    small = SHAPES["qwen3-8b"] | {"vocab_size": 512}
    for peft, recomputes in ((None, False), (None, True), (LORA, False), (LORA, True)):
        kept = []
        for layers in (1, 2):  # their difference is one layer
            config = AutoConfig.for_model(**{**small, "num_hidden_layers": layers})
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if peft is None else torch.bfloat16)
            if peft is not None:
                add_lora(model, peft, task="CAUSAL_LM", where="benchmark")
                keep_trained_in_float32(model)
            if recomputes:
                model.gradient_checkpointing_enable()
                model.enable_input_require_grads()
            kept.append(_kept_bytes(model.train(recomputes), tokens))
        counted = LoadedModel(shape_of("qwen3-8b"), peft, frozen="float32" if peft is None else "bfloat16", recomputes=recomputes)
        yield {
            "method": "full" if peft is None else peft.method,
            "gradient_checkpointing": recomputes,
            "measured_mib": round((kept[1] - kept[0]) / 2**20, 1),
            "counted_mib": round(tokens * counted.kept_of_a_layer(batch, "bfloat16") / 2**20, 1),
        }


def _kept_bytes(model: Any, tokens: int) -> int:
    """Of the tensors that a forward pass keeps, without weights and the copies that autocast makes of them."""
    import torch

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes = {parameter.shape for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Any] = []  # else an address would be used again

    def remember(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.shape not in sizes and tensor.mT.shape not in sizes:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.arange(tokens)[None] % 500
    with (
        torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        model.base_model(input_ids=ids, use_cache=False)
    return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-layers", action="store_true", help="leave the measurement out; nothing is written then")
    parser.add_argument("--tokens", type=int, default=512, help="of the row that the layers are measured with")
    options = parser.parse_args()
    rows = list(estimates())
    for row in rows:
        verdict = "met" if row["is_met"] else "MISSED"
        cells = (row["model"], row["name"], f"{row['gib']:.1f} GiB", f"{row['target_gib']} GiB", verdict)
        print(f"| {' | '.join(cells)} | {row['terms_gib']}")
    if not options.no_layers:
        layers = list(measure_layers(options.tokens))
        for layer in layers:
            print(json.dumps(layer))
        write_json(RESULT, {"targets": rows, "layer_tokens": options.tokens, "layers": layers})
    if not all(row["is_met"] for row in rows):
        raise SystemExit("a target is missed")


if __name__ == "__main__":
    main()
