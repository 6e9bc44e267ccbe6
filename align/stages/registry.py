"""Every stage type, by the name that recipes use. A stage's module is imported when something of it is asked for."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.stage import StageConfig, StageContext, StageOutcome


@dataclass(frozen=True)
class StageType:
    """One entry of the registry."""

    name: str
    module: str
    produces: str
    """Kind of the artifact it makes."""
    needs_trainers: bool = True
    """Whether it uses torch, so that its process had better be forked from one that has the trainers imported."""
    reads_epochs: bool = False
    """Whether it reads the models of each epoch that its inputs have."""
    reads_origins: bool = False
    """Whether it reads rows and curves of everything that its inputs were made from."""

    def load(self) -> Any:
        return sys.modules.get(self.module) or importlib.import_module(self.module)  # asked for hundreds of times by a plan

    @property
    def version(self) -> int:
        """Raised whenever the same configuration and inputs would give other bytes than before."""
        return int(self.load().VERSION)

    @property
    def config_type(self) -> type[StageConfig]:
        return self.load().Config  # type: ignore[no-any-return]

    def run(self, context: StageContext[Any]) -> StageOutcome:
        return self.load().run(context)  # type: ignore[no-any-return]


STAGES: dict[str, StageType] = {
    stage.name: stage
    for stage in (
        StageType("sft", "align.stages.sft", produces="model"),
        StageType("select_checkpoint", "align.stages.select_checkpoint", produces="model", reads_epochs=True),
        StageType("reward_model", "align.stages.reward_model", produces="reward_model"),
        StageType("generate", "align.stages.generate", produces="candidates"),
        StageType("score", "align.stages.score", produces="scored_candidates"),
        StageType("best_of_n", "align.stages.best_of_n", produces="instructions", needs_trainers=False),
        StageType("pairs", "align.stages.pairs", produces="preferences", needs_trainers=False),
        StageType("label", "align.stages.label", produces="labelled", needs_trainers=False),
        StageType("dpo", "align.stages.dpo", produces="model"),
        StageType("orpo", "align.stages.orpo", produces="model"),
        StageType("kto", "align.stages.kto", produces="model"),
        StageType("simpo", "align.stages.simpo", produces="model"),
        StageType("ppo", "align.stages.ppo", produces="model"),
        StageType("grpo", "align.stages.grpo", produces="model"),
        StageType("rloo", "align.stages.rloo", produces="model"),
        StageType("distill", "align.stages.distill", produces="model"),
        StageType("select_model", "align.stages.select_model", produces="model"),
        StageType("compare", "align.stages.compare", produces="comparison", reads_origins=True),
    )
}
