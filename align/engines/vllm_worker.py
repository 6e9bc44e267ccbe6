"""What align adds to the processes in which vLLM computes (its option worker_extension_cls), for `collective_rpc`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from align.engines.weight_transfer import ReceivingWorker

if TYPE_CHECKING:
    from torch import Tensor

# vLLM 0.32 has two runners of models, each with a function that counts NaN in the logits of every request.
_COUNTS = {"vllm.v1.worker.gpu_model_runner": "count_nans_per_row", "vllm.v1.worker.gpu.sample.sampler": "get_num_nans"}


class EngineWorker(ReceivingWorker):
    """One class for all engines: vLLM adds it to its own for good, and a second one would be in its way."""

    def count_broken_logits(self) -> None:
        """Let vLLM count in place of NaN what no token can be drawn from."""
        for module, name in _COUNTS.items():
            if (found := sys.modules.get(module)) is not None:  # of the two, the one in use is loaded by now
                assert hasattr(found, name), f"vLLM has no {module}.{name} any more"
                setattr(found, name, broken_rows)


def broken_rows(logits: Tensor) -> Tensor:
    """[rows] 1 where no token can be drawn from a row: it has NaN or +∞, or nothing but −∞. Else 0, int32.

    Args:
        logits: [rows, vocabulary]; −∞ excludes a token.
    """
    return (~logits.amax(-1).isfinite()).int()  # the largest of numbers with NaN among them is NaN
