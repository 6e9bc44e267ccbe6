"""Every stage type, by the name that recipes use."""

from __future__ import annotations

from align.stage import StageType

STAGES: dict[str, StageType] = {
    stage.name: stage
    for stage in (
        StageType("sft", "align.stages.sft", produces="model"),
        StageType("select_checkpoint", "align.stages.select_checkpoint", produces="model"),
        StageType("reward_model", "align.stages.reward_model", produces="reward_model"),
        StageType("generate", "align.stages.generate", produces="candidates"),
        StageType("score", "align.stages.score", produces="scored_candidates"),
        StageType("best_of_n", "align.stages.best_of_n", produces="instructions", needs_trainers=False),
        StageType("pairs", "align.stages.pairs", produces="preferences", needs_trainers=False),
        StageType("dpo", "align.stages.dpo", produces="model"),
        StageType("orpo", "align.stages.orpo", produces="model"),
        StageType("ppo", "align.stages.ppo", produces="model"),
        StageType("compare", "align.stages.compare", produces="comparison"),
    )
}
