"""Applies a set of scorers to candidates."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from align.config.sections import EnsembleScorer, JudgeScorer, RulesScorer, Scorer, reward_models_of
from align.models.folder import ModelFolder
from align.records import Candidate, ScoredCandidate
from align.runtime.profile import phase
from align.scoring.ensemble import combine_members
from align.scoring.judge import PairwiseJudge
from align.scoring.rules import RuledPrompt, score_with_rules
from align.store.artifact import Artifact

if TYPE_CHECKING:
    from align.scoring.reward_model import RewardModelScorer


class Column(NamedTuple):
    """What one scorer gave to some candidates, in their order."""

    scores: list[float | None]
    """None where a score is not finite."""
    disagreement: list[float | None] | None = None
    """Of an ensemble: standard deviation of its members' scores."""
    rules: list[dict[str, float]] | None = None
    """Of rules: by rule, 1.0 where the candidate passes it, else 0.0."""

    def at(self, places: Sequence[int]) -> Column:
        """That of the candidates at these places."""
        disagreement = None if self.disagreement is None else [self.disagreement[place] for place in places]
        rules = None if self.rules is None else [self.rules[place] for place in places]
        return Column([self.scores[place] for place in places], disagreement, rules)


def reward_model_folders(scorers: Mapping[str, Scorer], artifacts: Mapping[str, Artifact]) -> dict[str, ModelFolder]:
    """Model folder by reference, for the scorers that are or have reward models."""
    references = (reference for scorer in scorers.values() for reference in reward_models_of(scorer))
    return {reference: ModelFolder.of(artifacts[reference]) for reference in references}


class ScorerSet:
    """The scorers of a stage. A reward model is loaded when it first scores and stays until the set is closed."""

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        reward_model_folders: Mapping[str, ModelFolder],
        *,
        batch_tokens: int,
        store_root: Path | None = None,
    ) -> None:
        """Prepare the scorers.

        Args:
            scorers: scorer by name.
            reward_model_folders: see the function of this name.
            store_root: where replies of judges are kept; needed where there is a judge.
        """
        self.names = list(scorers)
        self._scorers = scorers
        self._folders = reward_model_folders
        self._batch_tokens = batch_tokens
        self._loaded: dict[str, RewardModelScorer] = {}
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

    def one_model_each(self) -> list[ScorerSet]:
        """The same scorers in sets that need one reward model, or one ensemble, at most; what needs none is in the first."""
        models = {name: tuple(reward_models_of(scorer)) for name, scorer in self._scorers.items()}
        different = list(dict.fromkeys(filter(None, models.values())))
        place = {name: different.index(models[name]) if models[name] else 0 for name in self.names}
        return [self._only([name for name in self.names if place[name] == at]) for at in range(max(1, len(different)))]

    def _only(self, names: list[str]) -> ScorerSet:
        part = copy(self)
        part.names, part._loaded = names, {}
        part._judges = {name: judge for name, judge in self._judges.items() if name in names}
        return part

    def announce(self, candidates: Sequence[Candidate]) -> list[str]:
        """Sentences on the cost of scoring all these candidates; only judges have one."""
        return [judge.announce(candidates) for judge in self._judges.values()]

    def pop_counts(self) -> dict[str, dict[str, int]]:
        """The counts since the last call, by judge."""
        return {name: judge.take_tally() for name, judge in self._judges.items()}

    @phase("score")
    def score(self, candidates: Sequence[Candidate], report: Callable[[int], None]) -> list[ScoredCandidate]:
        """The candidates in the order given, with a number per scorer; None where it is not finite.

        `report` is called with the number of scores done; there will be one per candidate and scorer.
        """
        columns: dict[str, Column] = {}
        for name in self.names:
            columns[name] = self._column(name, candidates, _shifted(report, len(columns) * len(candidates)))
        return with_scores(candidates, columns)

    @phase("score")
    def column(self, name: str, candidates: Sequence[Candidate], report: Callable[[int], None] = lambda done: None) -> Column:
        """What one of the scorers gives to the candidates; `report` is called with the number of them that are done."""
        return self._column(name, candidates, report)

    def score_by(self, name: str) -> Callable[[Sequence[Candidate]], list[float | None]]:
        """One of the scorers as a function."""
        return lambda candidates: self.column(name, candidates).scores

    def close(self) -> None:
        """Free the memory of the reward models; one that scores again is loaded again."""
        while self._loaded:
            self._loaded.popitem()[1].close()

    def _column(self, name: str, candidates: Sequence[Candidate], report: Callable[[int], None]) -> Column:
        scorer = self._scorers[name]
        disagreement, rules = None, None
        if isinstance(scorer, RulesScorer):
            found = [score_with_rules(scorer.rules, RuledPrompt.of(row), row.completion) for row in candidates]
            values: list[float | None] = [each.score for each in found]
            rules = [each.values for each in found]
            report(len(candidates))
        elif isinstance(scorer, JudgeScorer):
            values = self._judges[name].score_candidates(candidates, report=report)
        elif isinstance(scorer, EnsembleScorer):
            part = lambda done: report(done // len(scorer.ensemble))  # noqa: E731
            members = [
                self._reward_model(member).score_candidates(candidates, report=_shifted(part, number * len(candidates)))
                for number, member in enumerate(scorer.ensemble)
            ]
            values, disagreement = combine_members(scorer, members)
        else:
            values = self._reward_model(scorer).score_candidates(candidates, report=report)
        # A broken reward model may give NaN, which cannot be ranked. JSON holds neither NaN nor infinities.
        finite = [value if value is not None and math.isfinite(value) else None for value in values]
        return Column(finite, disagreement, rules)

    def _reward_model(self, reference: str) -> RewardModelScorer:
        # This imports torch, which a set of rules alone does not need.
        from align.scoring.reward_model import RewardModelScorer

        if reference not in self._loaded:
            self._loaded[reference] = RewardModelScorer(self._folders[reference], batch_tokens=self._batch_tokens)
        return self._loaded[reference]


def with_scores(candidates: Sequence[Candidate], columns: Mapping[str, Column]) -> list[ScoredCandidate]:
    """The candidates with the scores of each column, which are in their order."""
    scored = []
    for index, candidate in enumerate(candidates):
        scores = {name: column.scores[index] for name, column in columns.items()}
        disagreement = {name: column.disagreement[index] for name, column in columns.items() if column.disagreement is not None}
        # The fields were checked when the candidates were read; another validation would only cost time.
        scored.append(ScoredCandidate.model_construct(**dict(candidate), scores=scores, disagreement=disagreement))
    return scored


def _shifted(report: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: report(before + done)
