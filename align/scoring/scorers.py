"""Any set of scorers over any candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from align.config.sections import RulesScorer, Scorer
from align.records import Candidate, ScoredCandidate
from align.scoring.rules import score_with_rules
from align.store.artifact import Artifact


def reward_model_folders(scorers: Mapping[str, Scorer], artifacts: Mapping[str, Artifact]) -> dict[str, Path]:
    """Model folder by reference, for the scorers that are reward models."""
    return {scorer: artifacts[scorer].model_path for scorer in scorers.values() if not isinstance(scorer, RulesScorer)}


class ScorerSet:
    """The scorers of a stage, each loaded once; candidates of several models can be scored one after the other."""

    def __init__(self, scorers: Mapping[str, Scorer], reward_model_folders: Mapping[str, Path], *, batch_tokens: int) -> None:
        """
        Args:
            scorers: scorer by name.
            reward_model_folders: folder by reference, for the scorers that are reward models.
        """
        self.names = list(scorers)
        self._scorers = scorers
        self._folders = reward_model_folders
        self._batch_tokens = batch_tokens
        self._loaded: dict[str, object] = {}

    def score(self, candidates: Sequence[Candidate], report: Callable[[int], None]) -> list[ScoredCandidate]:
        """The candidates in the order given, with a number per scorer; None where it is not finite.

        `report` is called with the number of scores done; there will be one per candidate and scorer.
        """
        columns: dict[str, list[float | None]] = {}
        for name in self.names:
            columns[name] = self._column(name, candidates, _shifted(report, len(columns) * len(candidates)))
        scored = []
        for index, candidate in enumerate(candidates):
            scores = {name: column[index] for name, column in columns.items()}
            scored.append(ScoredCandidate.model_construct(**dict(candidate), scores=scores))
        return scored

    def _column(self, name: str, candidates: Sequence[Candidate], report: Callable[[int], None]) -> list[float | None]:
        scorer = self._scorers[name]
        if isinstance(scorer, RulesScorer):
            values: list[float | None] = [
                score_with_rules(
                    scorer.rules,
                    prompt_id=candidate.prompt_id,
                    completion=candidate.completion,
                    reference=candidate.reference,
                ).score
                for candidate in candidates
            ]
            report(len(candidates))
        else:
            values = self._reward_model(scorer).score_candidates(candidates, report=report)
        return [value if value is not None and math.isfinite(value) else None for value in values]

    def _reward_model(self, reference: str):  # type: ignore[no-untyped-def]
        # torch comes with it, and a set of rules alone must not pay for that
        from align.scoring.reward_model import RewardModelScorer

        if reference not in self._loaded:
            self._loaded[reference] = RewardModelScorer(self._folders[reference], batch_tokens=self._batch_tokens)
        return self._loaded[reference]


def _shifted(report: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: report(before + done)
