"""On-policy distillation: sample completions from a student, and bring its next-token probabilities towards a teacher's.

Per token the divergence over the whole vocabulary: by default reverse KL, KL(student || teacher); the generalised
Jensen-Shannon divergence with another beta. Agarwal et al. 2024 (GKD), eq. 1 and algorithm 1 with only the student's own
completions; Gu et al. 2024 (MiniLLM). No gradient flows through the sampling.
In: a model (student), a teacher with the same vocabulary, prompts. Out: a model. Metrics per rollout batch: teacher/kl,
teacher/agreement, loss/divergence_avg, objective/entropy, rollout/eos_share, ….
"""

from __future__ import annotations

from typing import ClassVar

from align.stage import StageContext, StageOutcome
from align.training.online.config import DistillConfig

VERSION = 2


class Config(DistillConfig):
    """Distillation on prompts, from a teacher."""

    method: ClassVar[str] = "distill"


def run(context: StageContext[Config]) -> StageOutcome:
    """Train towards the teacher."""
    from align.training.online.run import run_distillation

    return run_distillation(context)
