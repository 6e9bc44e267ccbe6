"""Applies a set of scorers to candidates."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from align.config.sections import JudgeScorer, RulesScorer, Scorer
from align.models.folder import ModelFolder
from align.records import Candidate, ScoredCandidate
from align.scoring.judge import PairwiseJudge
from align.scoring.rules import score_with_rules
from align.store.artifact import Artifact


def reward_model_folders(scorers: Mapping[str, Scorer], artifacts: Mapping[str, Artifact]) -> dict[str, ModelFolder]:
    """Model folder by reference, for the scorers that are reward models."""
    references = (scorer for scorer in scorers.values() if not isinstance(scorer, RulesScorer | JudgeScorer))
    return {reference: ModelFolder(artifacts[reference].model_path) for reference in references}


class ScorerSet:
    """The scorers of a stage, each loaded once; candidates of several models can be scored one after the other."""

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        reward_model_folders: Mapping[str, ModelFolder],
        *,
        batch_tokens: int,
        store_root: Path | None = None,
    ) -> None:
        """Prepare the scorers; a reward model is loaded when it first scores.

        Args:
            scorers: scorer by name.
            reward_model_folders: folder by reference, for the scorers that are reward models.
            store_root: where replies of judges are kept; needed where there is a judge.
        """
        self.names = list(scorers)
        self._scorers = scorers
        self._folders = reward_model_folders
        self._batch_tokens = batch_tokens
        self._loaded: dict[str, object] = {}
        self._judges: dict[str, PairwiseJudge] = {}
        for name, scorer in scorers.items():
            if isinstance(scorer, JudgeScorer):
                assert store_root is not None
                self._judges[name] = PairwiseJudge(name, scorer.judge, store_root=store_root, environment=os.environ)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_loaded": {}}  # a copy in another process loads its own

    @property
    def whole_prompts(self) -> bool:
        """Whether all candidates of a prompt must be scored together."""
        return bool(self._judges)

    def announce(self, candidates: Sequence[Candidate]) -> list[str]:
        """Sentences on the cost of scoring all these candidates; only judges have one."""
        return [judge.announce(candidates) for judge in self._judges.values()]

    def pop_counts(self) -> dict[str, dict[str, int]]:
        """The counts since the last call, by judge."""
        return {name: judge.take_tally() for name, judge in self._judges.items()}

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
            # The fields were checked when the candidates were read; another validation would only cost time.
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
        elif isinstance(scorer, JudgeScorer):
            values = self._judges[name].score_candidates(candidates, report=report)
        else:
            values = self._reward_model(scorer).score_candidates(candidates, report=report)
        # A broken reward model may give NaN, which cannot be ranked. JSON holds neither NaN nor infinities.
        return [value if value is not None and math.isfinite(value) else None for value in values]

    def _reward_model(self, reference: str):  # type: ignore[no-untyped-def]
        # This imports torch, which a set of rules alone does not need.
        from align.scoring.reward_model import RewardModelScorer

        if reference not in self._loaded:
            self._loaded[reference] = RewardModelScorer(self._folders[reference], batch_tokens=self._batch_tokens)
        return self._loaded[reference]


def _shifted(report: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: report(before + done)
