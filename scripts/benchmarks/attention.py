"""Seconds and kept bytes of a forward and backward pass over rows that several sequences share, by how attention is computed.

    python scripts/benchmarks/attention.py

Three ways, in turns in one process: `sdpa` (transformers' own: a mask of pairs of tokens, which torch makes into numbers and
keeps in every layer), `mask` (one mask for all layers) and `segments` (no mask). Four layers, on the CPU in float32, one thread.

Then batches as trainings make them, of sequences of many lengths, so that rows have padding, `mask` against `segments`: samples
of SFT in rows of their own and packed, pairs, episodes. Writes scripts/benchmarks/attention.json.
"""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.data.encoding import EncodedPreference
from align.models.attention import use_segments
from align.models.head import last_hidden_states
from align.models.sizes import DENSE_MASK_TOKENS, EPISODE_ROW_TOKENS, PAIR_ROW_TOKENS
from align.store.atomic import write_json
from align.training.online.layout import Episode, pack_episodes
from align.training.packing import PackedCollator, TrainingSample, build_row, pack_first_fit
from align.training.pairwise.collator import PairCollator, TrainingPair
from align.training.pairwise.trainer import layout_of, prepare_model

RESULT = Path(__file__).with_suffix(".json")
LAYERS = 4
SHAPES: dict[str, dict[str, int]] = {
    "toy": {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 32},
    "SmolLM2-135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    },
}  # fmt: skip
PACKED = [(256, 4), (1024, 4), (4096, 8)]
"""Tokens of a row, and sequences in it."""
PAIRS = [(128, 2), (1024, 2), (2048, 1)]
"""Tokens of a row, and pairs in it; half of a pair is its prompt."""
WAYS = ("sdpa", "mask", "segments")
TURNS = 3


def model_of(shape: str) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 1000, "num_hidden_layers": LAYERS, "max_position_embeddings": 8192, "pad_token_id": 0}
    return prepare_model(LlamaForCausalLM(LlamaConfig(**sizes, **SHAPES[shape])))


def choose(model: Any, way: str) -> None:
    model.config._attn_implementation = "sdpa"
    if way != "sdpa":
        use_segments(model)
    DENSE_MASK_TOKENS["cpu"] = 0 if way == "segments" else 1 << 20


def packed_pass(model: Any, tokens: int, sequences: int) -> torch.Tensor:
    ids = torch.arange(tokens)[None] % 990 + 5
    return last_hidden_states(model, input_ids=ids, position_ids=torch.arange(tokens)[None] % (tokens // sequences))


def pair_pass(model: Any, tokens: int, pairs: int) -> torch.Tensor:
    quarter = tokens // pairs // 4
    rows = [TrainingPair(EncodedPreference(str(n), [5 + n] * 2 * quarter, [7] * quarter, [8] * quarter)) for n in range(pairs)]
    found: torch.Tensor = model(layout=layout_of(PairCollator(form="shared_prompt", pad_token_id=0, row_tokens=tokens)(rows)))
    return found


def measure(model: Any, compute: Any, tokens: int, count: int) -> dict[str, Any]:
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seconds: dict[str, float] = {}
    kept_mib: dict[str, float] = {}
    for _ in range(2):  # the quicker of two, so that a disturbance does not count
        for way in WAYS:
            choose(model, way)
            kept: dict[int, torch.Tensor] = {}

            def remember(tensor: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
                if tensor.untyped_storage().data_ptr() not in own:
                    kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, else its address would be used again
                return tensor

            started = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
                found = compute(model, tokens, count)
            kept_mib[way] = round(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2**20, 1)
            kept.clear()
            found.square().sum().backward()
            model.zero_grad()
            seconds[way] = min(time.perf_counter() - started, seconds.get(way, float("inf")))
    return {
        "seconds": {way: round(value, 3) for way, value in seconds.items()},
        "seconds_of_sdpa": {way: round(seconds[way] / seconds["sdpa"], 2) for way in WAYS[1:]},
        "kept_mib": kept_mib,
    }


def lengths_of(chance: random.Random) -> Iterator[int]:
    """Lengths of short replies, in tokens: 24 at the median, 4 to 140."""
    while True:
        yield max(4, min(140, int(chance.lognormvariate(3.2, 0.6))))


def batches() -> dict[str, list[dict[str, torch.Tensor]]]:
    """Inputs of `last_hidden_states` or, for pairs, of the model's `layout`, by what they are of."""
    lengths = lengths_of(random.Random(1))

    def tokens() -> list[int]:
        return [5] * next(lengths)

    samples = [TrainingSample(tokens(), tokens()) for _ in range(64)]
    pairs = [TrainingPair(EncodedPreference(str(number), tokens(), tokens(), tokens())) for number in range(32)]
    collate = PackedCollator(pad_token_id=0)
    packed = [build_row([samples[place] for place in row]) for row in pack_first_fit([len(sample) for sample in samples], 256)]
    alone = [build_row([sample]) for sample in samples]
    of_pairs = PairCollator(form="shared_prompt", pad_token_id=0, row_tokens=PAIR_ROW_TOKENS["cpu"])
    episodes = [Episode(prompt_token_ids=tokens(), completion_token_ids=tokens()) for _ in range(64)]
    of_episodes = pack_episodes(
        episodes, range(64), micro_batch_tokens=4096, row_tokens=EPISODE_ROW_TOKENS["cpu"], pad_token_id=0
    )

    def inputs(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        return {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}

    return {
        "samples, 8 rows": [inputs(alone[start : start + 8]) for start in range(0, len(alone), 8)],
        "samples, packed to 256": [inputs(packed[start : start + 8]) for start in range(0, len(packed), 8)],
        "16 pairs": [layout_of(of_pairs(pairs[start : start + 16])) for start in range(0, len(pairs), 16)],
        "episodes": [{"input_ids": batch.input_ids, "position_ids": batch.position_ids} for batch in of_episodes],
    }


def measure_batches(model: Any) -> dict[str, Any]:
    """Seconds of a forward and backward pass over each kind of batch; the quickest of several turns."""
    found: dict[str, Any] = {}
    for name, made in batches().items():
        compute: Callable[[dict[str, torch.Tensor]], torch.Tensor] = (
            (lambda batch: model(layout=batch)) if "side_ids" in made[0] else (lambda batch: last_hidden_states(model, **batch))
        )
        seconds: dict[str, float] = {}
        for _ in range(TURNS):
            for way in ("mask", "segments"):
                choose(model, way)
                started = time.perf_counter()
                for batch in made:
                    compute(batch).square().sum().backward()  # type: ignore[no-untyped-call]
                    model.zero_grad()
                seconds[way] = min(time.perf_counter() - started, seconds.get(way, float("inf")))
        found[name] = {way: round(value, 3) for way, value in seconds.items()}
        found[name]["ratio"] = round(seconds["segments"] / seconds["mask"], 2)
    return found


def main() -> None:
    torch.set_num_threads(1)
    before = round(os.getloadavg()[0], 2)
    results: dict[str, Any] = {}
    for shape in SHAPES:
        model = model_of(shape)
        packed = {f"{tokens} tokens, {n} sequences": measure(model, packed_pass, tokens, n) for tokens, n in PACKED}
        pairs = {f"{tokens} tokens, {n} pairs": measure(model, pair_pass, tokens, n) for tokens, n in PAIRS}
        results[shape] = {"packed": packed, "pairs": pairs}
    of_batches = {}
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        of_batches[f"{threads} threads"] = {shape: measure_batches(model_of(shape)) for shape in SHAPES}
    result = {
        "command": "python scripts/benchmarks/attention.py",
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "load_before": before,
        },
        "layers": LAYERS,
        "results": results,
        "batches": of_batches,
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
