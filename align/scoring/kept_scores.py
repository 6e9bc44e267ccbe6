"""Scores of a list of candidates, in the store under everything that decides them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from align.config.sections import EnsembleScorer, RulesScorer, Scorer, reward_models_of
from align.records import Candidate
from align.runtime.context import RunContext
from align.scoring.scorers import Column, ScorerSet
from align.store.artifact import ROWS_NAME, Artifact, Entry, read_rows, write_rows
from align.store.kept import KeptResult, Reused, model_content, versions_of

SCORES_VERSION = 1
"""Raised whenever the same key would give other scores than before."""
SCORES = "scores"


class KeptScore(BaseModel):
    """What one scorer gave to one candidate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: float | None
    disagreement: float | None = None
    """See `Column`."""
    rules: dict[str, float] | None = None
    """See `Column`."""


def scorer_content(scorer: Scorer, artifacts: Mapping[str, Artifact], *, batch_tokens: int) -> dict[str, Any]:
    """Everything that decides the scores of given candidates.

    Args:
        artifacts: reward models, by reference.
        batch_tokens: see `RewardModelScorer`; it decides the rounding.
    """
    if isinstance(scorer, RulesScorer):
        return {"rules": scorer.model_dump(mode="json"), **versions_of("regex", "math-verify", "py3langid")}
    # These import torch, which rules do not need.
    from align.runtime.device import device_kind, frozen_dtype

    models = [model_content(artifacts[name]) for name in reward_models_of(scorer)]
    combine = scorer.model_dump(mode="json", exclude={"ensemble"}) if isinstance(scorer, EnsembleScorer) else None
    arithmetic = {"device": device_kind(), "dtype": frozen_dtype(), **versions_of("torch", "transformers")}
    return {"reward_models": models, "combine": combine, "batch_tokens": batch_tokens, **arithmetic}


def kept_scores(
    result: KeptResult,
    scorers: ScorerSet,
    name: str,
    candidates: Sequence[Candidate],
    context: RunContext,
    reused: Reused,
) -> Column:
    """What the scorer `name` of a set gives to the candidates, from the store if it has that.

    Args:
        result: of a key of `scorer_content` and the candidates' content; `result.what` names the scores in notes and progress.
        reused: takes what was found.
    """

    def write(entry: Entry) -> dict[str, Any]:
        count = context.counter(result.what, "scores")
        column = scorers.column(name, candidates, lambda done: count(done, len(candidates)))
        write_rows(entry.path / ROWS_NAME, _rows(column))
        return {"metrics": {"disagreement": column.disagreement is not None}, "rows_out": len(candidates)}

    with result.held(context):
        manifest = result.find(context)
        if manifest is not None:
            kind, _, whose = result.what.partition(" of ")
            reused.found(kind, whose, manifest)
        else:
            manifest = result.make(write)
            reused.made(manifest)
        rows = list(read_rows(result.entry.path / ROWS_NAME, KeptScore))
    disagreement = [row.disagreement for row in rows] if manifest.metrics["disagreement"] else None
    return Column([row.score for row in rows], disagreement, [row.rules for row in rows if row.rules is not None] or None)


def _rows(column: Column) -> list[KeptScore]:
    nothing: list[None] = [None] * len(column.scores)
    parts = zip(column.scores, column.disagreement or nothing, column.rules or nothing, strict=True)
    return [KeptScore(score=score, disagreement=disagreement, rules=rules) for score, disagreement, rules in parts]
