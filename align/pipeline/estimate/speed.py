"""Stated speeds of machines, for a first guess of a stage's time: operations, and bytes read from memory, per second."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from align.engines.vllm_engine import CPU_KV_CACHE_GIB, GPU_MEMORY_SHARE, MAX_NUM_SEQS
from align.models.shape import FORWARD, ModelShape
from align.models.sizes import ENGINE_ROWS
from align.pipeline.estimate.machine import Machine

PEAKS = {
    "B200": (2250e12, 8000e9),
    "GH200": (989e12, 4000e9),
    "H200": (989e12, 4800e9),
    "H100 NVL": (835e12, 3900e9),
    "H100 PCIe": (756e12, 2000e9),
    "H100": (989e12, 3350e9),
    "A100-SXM4-40GB": (312e12, 1555e9),
    "A100-PCIE-40GB": (312e12, 1555e9),
    "A100": (312e12, 1935e9),
    "A10G": (70e12, 600e9),
    "A10": (125e12, 600e9),
    "L40S": (362e12, 864e9),
    "L4": (121e12, 300e9),
    "RTX A6000": (155e12, 768e9),
    "RTX 4090": (165e12, 1008e9),
    "RTX 3090": (71e12, 936e9),
}
"""Operations per second in bfloat16 without sparsity, and bytes per second from memory, from NVIDIA's data sheets of each device
(AWS's for A10G). The first name that occurs in the device's own counts."""
SHARE_OF_PEAK = 0.35
"""Of a GPU's operations, that a training or a forward pass reaches: stated, not measured."""
SHARE_OF_BANDWIDTH = 0.6
"""Of a GPU's bytes per second, that sampling reaches: stated, not measured."""
CPU_CORE_FLOPS = 50e9
"""Operations per second of a CPU core in float32. Two cores reached 125e9 in an SFT step of 135 million parameters
(scripts/benchmarks/real_shape.json)."""
CPU_BANDWIDTH = 20e9
"""Bytes per second from a computer's memory: about two channels of DDR4; stated, not measured."""
START_SECONDS = 15.0
"""Of a stage in a new process: its imports, the model and its data."""
FORKED_START_SECONDS = 1.0
"""Of a stage that is forked from a process with the imports, as all but the first of a run are on a CPU."""
STEP_SECONDS = {"vllm": 0.01, "transformers": 0.03}
"""Of a step of sampling, besides arithmetic and memory: Python and the scheduler."""
ENGINE_START_SECONDS = {("vllm", "cuda"): 60.0, ("vllm", "cpu"): 15.0}
"""vLLM's imports, its measuring of the memory, and on a GPU its CUDA graphs: stated, not measured."""


def peak_flops(device_name: str) -> float | None:
    """Operations per second of a GPU in bfloat16; None for one that is not in the table."""
    return next((flops for name, (flops, _) in PEAKS.items() if name in device_name), None)


@dataclass(frozen=True)
class Speed:
    """What a machine is taken to reach."""

    flops: float
    """Operations per second."""
    bandwidth: float
    """Bytes per second from the memory that holds the weights."""
    cache_bytes: float
    """Memory for vLLM's keys and values."""
    shares_memory: bool
    """Whether `cache_bytes` are for the weights too."""
    number_bytes: int
    """Of a weight, a key or a value while sampling."""

    def forward_seconds(self, parameters: int, tokens: float) -> float:
        """A pass without gradients over so many tokens."""
        return FORWARD * parameters * tokens / self.flops

    def sampling_seconds(self, shape: ModelShape, engine: str, *, prompts: float, prompt: float, each: int, new: int) -> float:
        """Sampling `each` completions of `new` tokens for `prompts` prompts of `prompt` tokens, without the engine's start.

        The completions of a batch grow by a token in each step. A step reads the weights once, and keys and values of all tokens
        before; or it takes as long as its operations, whichever is more.
        """
        key_bytes = self.number_bytes * 2 * shape.num_layers * shape.key_size
        weights, row = self.number_bytes * shape.parameters, key_bytes * (prompt + new)
        room = self.cache_bytes - (weights if self.shares_memory else 0)
        most = min(MAX_NUM_SEQS, room // row) if engine == "vllm" else ENGINE_ROWS
        at_once = max(1.0, min(most, prompts * each))
        read = (weights + at_once * key_bytes * (prompt + new / 2)) / self.bandwidth
        step = STEP_SECONDS[engine] + max(read, self.forward_seconds(shape.parameters, at_once))
        # vLLM computes a prompt once for all of its completions.
        begun = prompts * prompt * (1 if engine == "vllm" else each)
        return math.ceil(prompts * each / at_once) * new * step + self.forward_seconds(shape.parameters, begun)


def stated_speed(machine: Machine) -> Speed | None:
    """None for a GPU that is not known, or that has no bfloat16."""
    if machine.device == "cpu":
        # vLLM's cache has a size of its own there, whatever the weights take.
        cache = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB)) * 2**30
        return Speed(CPU_CORE_FLOPS * len(os.sched_getaffinity(0)), CPU_BANDWIDTH, cache, False, 4)
    peak = next((peak for name, peak in PEAKS.items() if name in machine.name), None)
    if peak is None or not machine.has_bfloat16:
        return None
    return Speed(SHARE_OF_PEAK * peak[0], SHARE_OF_BANDWIDTH * peak[1], GPU_MEMORY_SHARE * machine.total_bytes, True, 2)
