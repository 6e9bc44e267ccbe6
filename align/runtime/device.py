"""What the device can do: whether there is a GPU that torch can use, its memory, and whether it computes bfloat16.

Two sources: the driver, by nvidia-smi, which answers without torch's second of import and creates no CUDA context; and torch, in
the processes that run models. Where the two disagree, nothing runs: a model would be trained on the CPU without a word.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from align.errors import AlignError, EnvironmentProblem
from align.runtime.gpus import GPU_VARIABLE, visible_gpus
from align.system_errors import no_more_memory

if TYPE_CHECKING:
    import torch

Device = Literal["cpu", "cuda"]
BFLOAT16_CAPABILITY = 8.0
"""Compute capability from which NVIDIA's GPUs compute bfloat16 (Ampere). torch's own `is_bf16_supported` counts emulation too,
which is slower than float32."""
CUDA_13_CAPABILITY = 7.5
"""Compute capability from which CUDA 13 works (Turing); it left out Maxwell, Pascal and Volta."""
DRIVER_SECONDS = 5
ON_THE_CPU = f"To run on the CPU all the same, set {GPU_VARIABLE}= (empty)."
NO_MEMORY = (
    "out of memory",
    "an't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "bad_alloc",
)
"""Parts of the messages of errors that are about memory."""
QUERY = ("index", "uuid", "name", "memory.total", "memory.used", "compute_cap")


class Problem(NamedTuple):
    """Why torch cannot use a GPU, and what to do."""

    text: str
    advice: str


@dataclass(frozen=True)
class Gpu:
    """A GPU, or the part of one that MIG has cut off, as the driver describes it."""

    name: str
    total_bytes: int | None
    """None where the driver does not know, as with memory that the computer shares with the GPU."""
    used_bytes: int
    capability: float
    cuda_version: float | None
    """The newest CUDA that the driver can run."""

    @property
    def has_bfloat16(self) -> bool:
        return self.capability >= BFLOAT16_CAPABILITY

    @property
    def problem(self) -> Problem | None:
        """Why torch cannot use it, as far as that can be seen without torch; None where nothing is wrong."""
        wanted = torch_cuda()
        if wanted is None:
            return Problem("torch is a build for CPUs", "Stages run on the CPU. Install a build of torch for CUDA.")
        # Within a major version any driver will do.
        if self.cuda_version is not None and int(self.cuda_version) < int(wanted):
            text = f"its driver is too old: it runs CUDA {self.cuda_version:g}, and torch was built for CUDA {wanted:g}"
            return Problem(text, f"Install a newer NVIDIA driver. {ON_THE_CPU}")
        # 0: the driver does not say.
        if wanted >= 13 and 0 < self.capability < CUDA_13_CAPABILITY:
            text = f"it is too old for CUDA {wanted:g}: compute capability {self.capability:g}, below {CUDA_13_CAPABILITY:g}"
            return Problem(text, f"Install a build of torch for CUDA 12. {ON_THE_CPU}")
        return None

    def __str__(self) -> str:
        memory = "memory shared with the computer" if self.total_bytes is None else f"{self.total_bytes / 2**30:.0f} GiB"
        return f"{self.name}, {memory}, {'bfloat16' if self.has_bfloat16 else 'no bfloat16: auto means float32'}"


def visible_gpu() -> Gpu | None:
    """The GPU that a stage would use, the first that CUDA_VISIBLE_DEVICES names; None where there is none or it is hidden."""
    return visible_gpu_and_line()[0]


def device_line() -> str | None:
    """What stages run on, in a line, and what stands in the way; None on a computer without an NVIDIA GPU."""
    return visible_gpu_and_line()[1]


def visible_gpu_and_line() -> tuple[Gpu | None, str | None]:
    """`visible_gpu` and `device_line`; the driver is asked once."""
    gpus = list(_driver_gpus())
    gpu, visible = _first_visible(gpus), os.environ.get(GPU_VARIABLE)
    if gpu is None:
        return None, f"{GPU_VARIABLE}={visible} leaves none of {len(gpus)} GPUs; stages run on the CPU" if gpus else None
    count = len(gpus) if visible is None else len(visible.split(","))
    several = f", the first of {count} that are visible" if count > 1 else ""
    return gpu, f"{gpu}{several}" if gpu.problem is None else f"{gpu}{several}; {gpu.problem.text}"


def visible_driver_gpus() -> list[tuple[str, Gpu]]:
    """Every GPU that this process may use, with the name that CUDA_VISIBLE_DEVICES has, or may have, for it."""
    gpus, visible = list(_driver_gpus()), os.environ.get(GPU_VARIABLE)
    if visible is None:
        return [(names[0], gpu) for names, gpu in gpus]
    found = [(name, next((gpu for names, gpu in gpus if _is_called(names, name)), None)) for name in visible_gpus()]
    return [(name, gpu) for name, gpu in found if gpu is not None]


def refuse_unusable_gpu() -> None:
    """Refuse what `device_name` would refuse, as far as that can be seen without torch.

    Raises:
        EnvironmentProblem: if there is a GPU that this build of torch was made for and cannot use.
    """
    gpu = visible_gpu() if torch_cuda() is not None else None
    if gpu is not None and gpu.problem is not None:
        raise _unusable(gpu, gpu.problem)


def _unusable(gpu: Gpu, problem: Problem) -> EnvironmentProblem:
    return EnvironmentProblem(f"there is a GPU ({gpu.name}) that torch cannot use: {problem.text}", hint=problem.advice)


def _first_visible(gpus: Iterable[tuple[tuple[str, ...], Gpu]]) -> Gpu | None:
    visible = os.environ.get(GPU_VARIABLE)
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return None
    first = visible.split(",")[0].strip() if visible else "0"
    return next((gpu for names, gpu in gpus if _is_called(names, first)), None)


def _is_called(names: Iterable[str], given: str) -> bool:
    """Whether a GPU with these names is meant by an index, or by a UUID, which may be shortened."""
    return any(name == given or (not given.isdigit() and name.startswith(given)) for name in names)


def _driver_gpus() -> Iterator[tuple[tuple[str, ...], Gpu]]:
    """Every GPU with the names that CUDA_VISIBLE_DEVICES may have for it; of a GPU that MIG has divided, its parts."""
    lines = ask_driver(f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    if not rows:
        return
    found = re.search(r"CUDA Version:\s*([\d.]+)", "\n".join(ask_driver()))
    cuda_version, parts = float(found[1]) if found else None, _mig_parts()
    for index, uuid, name, total, used, capability in (row for row in rows if len(row) == len(QUERY)):
        power = _number(capability) or 0.0
        if divided := parts.get(uuid):
            for number, (part_uuid, profile, gib) in enumerate(divided):
                # CUDA uses one part only: the first, where the card is named.
                names = (part_uuid, index, uuid) if number == 0 else (part_uuid,)
                yield names, Gpu(f"{name} MIG {profile}", gib << 30, 0, power, cuda_version)
            continue
        total_mib, used_mib = _number(total), _number(used) or 0
        size = None if total_mib is None else int(total_mib) << 20
        yield (index, uuid), Gpu(name, size, int(used_mib) << 20, power, cuda_version)


def _mig_parts() -> dict[str, list[tuple[str, str, int]]]:
    """UUID, profile and GiB of every part, by the UUID of its card."""
    parts: dict[str, list[tuple[str, str, int]]] = {}
    card = ""
    for line in ask_driver("-L"):
        uuid = re.search(r"\(UUID: (\S+)\)", line)
        if uuid is None:
            continue
        # A part's line stands below its card's and begins with its profile, such as 3g.20gb.
        if profile := re.match(r"\s+MIG (\S*?(\d+)gb\S*)", line):
            parts.setdefault(card, []).append((uuid[1], profile[1], int(profile[2])))
        else:
            card = uuid[1]
    return parts


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A]
        return None


def ask_driver(*options: str) -> list[str]:
    """The lines that nvidia-smi prints with these options; none where it is not there or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, *options], capture_output=True, text=True, timeout=DRIVER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()]


@functools.cache
def torch_cuda() -> float | None:
    """The CUDA version that the installed torch was built for; None for a build for CPUs. torch is not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"^cuda\b.*= '([\d.]+)'", Path(spec.origin).with_name("version.py").read_text(), re.MULTILINE)
    return float(found[1]) if found else None


def device_name() -> Device:
    """Where the models of this process run. Imports torch; on a GPU, TF32 is off from then on.

    Raises:
        EnvironmentProblem: if the driver has a GPU that this build of torch was made for and cannot use.
    """
    import torch

    if torch.cuda.is_available():
        # TF32 would round the factors of float32 products to 11 bits, also in heads and scores. It is off by default, but an
        # environment variable turns it on, or a library: transformers and accelerate do for torch.compile.
        torch.set_float32_matmul_precision("highest")
        return "cuda"
    if torch_cuda() is not None and (gpu := visible_gpu()) is not None:
        unknown = Problem(f"torch cannot initialise CUDA {torch_cuda():g}", f"Install a newer NVIDIA driver. {ON_THE_CPU}")
        raise _unusable(gpu, gpu.problem or unknown)
    return "cpu"


def device_kind() -> str:
    """What decides the rounding of a computation besides its numbers: the name of the GPU, or cpu. Imports torch."""
    import torch

    return torch.cuda.get_device_name() if device_name() == "cuda" else "cpu"


def own_device() -> torch.device:
    """The device of this process, with its number. Imports torch."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if device_name() == "cuda" else torch.device("cpu")


def has_bfloat16() -> bool:
    """Whether the models of this process run on a GPU that computes bfloat16 natively. Imports torch."""
    import torch

    if device_name() == "cpu":
        return False
    major, minor = torch.cuda.get_device_capability()
    return major + minor / 10 >= BFLOAT16_CAPABILITY


def frozen_dtype(precision: str = "auto") -> Literal["float32", "bfloat16"]:
    """What weights that do not learn are kept in: bfloat16 on a GPU that computes it, float32 elsewhere. Imports torch.

    Nothing is lost by it that matters: no small update has to survive, nearly all models are published in bfloat16, and half the
    memory is free. Heads and log-softmax are float32 all the same (`align.models.head`).

    Args:
        precision: of the training that the weights serve, as in a recipe; float32 keeps them in float32.
    """
    return "bfloat16" if precision != "float32" and has_bfloat16() else "float32"


def out_of_memory(error: BaseException) -> str | None:
    """What an error says about memory that was not there, in a sentence or two; None for an error of another kind."""
    # By name: importing torch for its class would cost a second, also in stages that do not use it. torch raises a plain
    # RuntimeError on a CPU, and where cuBLAS finds no room for its workspace.
    if isinstance(error, AlignError):  # some are RuntimeErrors too, and quote what they are about
        return None
    text = str(error)
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not known and not (isinstance(error, RuntimeError | OSError) and any(sign in text for sign in NO_MEMORY)):
        return None
    # What follows is advice on the allocator's settings.
    return ". ".join(text.split(". ")[:3]) or no_more_memory()


def peak_gpu_bytes() -> int | None:
    """The most that torch had allocated at once on the GPU of this process; None where it has used none. Imports no torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())


def free_memory() -> None:
    """Free the memory of models that nothing uses any more, so that the next one finds room.

    A model in training refers to itself, so its weights would stay until the collector happens to run; torch would keep the
    freed memory of a GPU for itself, where another engine cannot have it.
    """
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
