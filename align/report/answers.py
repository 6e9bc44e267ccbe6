"""Joining the models' answers: by prompt id and candidate index, never by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.errors import DataError
from align.records import ScoredCandidate
from align.report.statistics import FloatArray

SAME_ANSWERS = "Every compared model must answer the same prompts with the same number of candidates and the same scorers."


@dataclass(frozen=True)
class AnswerTable:
    """Numbers of every model, with rows in one order of prompts and columns in order of the candidate index."""

    models: list[str]
    """Models, in the order given."""
    prompt_ids: list[str]
    """Prompts, in the order of the first model's rows."""
    num_candidates: int
    """Candidates per prompt and model."""
    scorers: list[str]
    """Scorers, in the order of the first candidate's scores."""
    rows: dict[str, dict[str, list[ScoredCandidate]]]
    """Model → prompt id → its candidates by index."""
    scores: dict[str, dict[str, FloatArray]]
    """Model → scorer → [prompts, candidates]; NaN where there is no finite score."""
    tokens: dict[str, FloatArray]
    """Model → [prompts, candidates], completion tokens."""
    disagreement: dict[str, dict[str, FloatArray]]
    """Model → scorer that is an ensemble → [prompts, candidates], standard deviation of its members; NaN where not known."""


def align_answers(answers: Mapping[str, Sequence[ScoredCandidate]]) -> AnswerTable:
    """Join every model's candidates by `prompt_id` and check that the models can be compared.

    Raises:
        DataError: if a model has no answers, other prompts, another number of candidates or other scorers than the first,
            or two rows with the same prompt id and candidate index.
    """
    if not answers:
        raise DataError("there is no model to compare", hint=SAME_ANSWERS)
    rows = {model: _by_prompt(model, candidates) for model, candidates in answers.items()}
    first = next(iter(rows))
    # One order for all models; later arrays are paired by position and rely on it.
    prompt_ids = list(rows[first])
    example = rows[first][prompt_ids[0]]
    scorers = list(example[0].scores)
    for model in rows:
        _check_prompts(model, rows[model], first, rows[first])
        _check_candidates(model, rows[model], len(example), scorers)
    return AnswerTable(
        models=list(rows),
        prompt_ids=prompt_ids,
        num_candidates=len(example),
        scorers=scorers,
        rows=rows,
        scores={model: {scorer: _scores(rows[model], prompt_ids, scorer) for scorer in scorers} for model in rows},
        tokens={
            model: np.array(
                [[row.completion_tokens for row in rows[model][prompt_id]] for prompt_id in prompt_ids], dtype=np.float64
            )
            for model in rows
        },
        disagreement={
            model: {scorer: _disagreement(rows[model], prompt_ids, scorer) for scorer in example[0].disagreement}
            for model in rows
        },
    )


def _by_prompt(model: str, candidates: Sequence[ScoredCandidate]) -> dict[str, list[ScoredCandidate]]:
    groups: dict[str, dict[int, ScoredCandidate]] = {}
    for row in candidates:
        group = groups.setdefault(row.prompt_id, {})
        if row.candidate_index in group:
            raise DataError(f"model {model!r}: two rows for prompt {row.prompt_id!r}, candidate {row.candidate_index}")
        group[row.candidate_index] = row
    if not groups:
        raise DataError(f"model {model!r} has no answers", hint=SAME_ANSWERS)
    return {prompt_id: [group[index] for index in sorted(group)] for prompt_id, group in groups.items()}


def _check_prompts(
    model: str, rows: Mapping[str, list[ScoredCandidate]], first: str, first_rows: Mapping[str, list[ScoredCandidate]]
) -> None:
    absent = [prompt_id for prompt_id in first_rows if prompt_id not in rows]
    extra = [prompt_id for prompt_id in rows if prompt_id not in first_rows]
    if absent:
        raise DataError(
            f"model {model!r} has no answer to {len(absent)} prompts that {first!r} answered, the first is {absent[0]!r}",
            hint=SAME_ANSWERS,
        )
    if extra:
        raise DataError(
            f"model {model!r} answered {len(extra)} prompts that {first!r} did not, the first is {extra[0]!r}", hint=SAME_ANSWERS
        )
    for prompt_id, candidates in rows.items():
        # Ids can agree by accident, for example row numbers of two different files.
        if candidates[0].prompt != first_rows[prompt_id][0].prompt:
            raise DataError(f"prompt {prompt_id!r} has another text for {model!r} than for {first!r}", hint=SAME_ANSWERS)


def _check_candidates(model: str, rows: Mapping[str, list[ScoredCandidate]], num_candidates: int, scorers: Sequence[str]) -> None:
    for prompt_id, candidates in rows.items():
        where = f"model {model!r}, prompt {prompt_id!r}"
        if len(candidates) != num_candidates:
            raise DataError(f"{where}: {len(candidates)} candidates, expected {num_candidates}", hint=SAME_ANSWERS)
        for row in candidates:
            if row.scores.keys() != set(scorers):
                raise DataError(f"{where}: scores of {sorted(row.scores)}, expected {sorted(scorers)}", hint=SAME_ANSWERS)


def _scores(rows: Mapping[str, list[ScoredCandidate]], prompt_ids: Sequence[str], scorer: str) -> FloatArray:
    # None becomes NaN: numpy reads it so for a float dtype.
    scores = np.array([[row.scores[scorer] for row in rows[prompt_id]] for prompt_id in prompt_ids], dtype=np.float64)
    return np.where(np.isfinite(scores), scores, np.nan)


def _disagreement(rows: Mapping[str, list[ScoredCandidate]], prompt_ids: Sequence[str], scorer: str) -> FloatArray:
    return np.array([[row.disagreement.get(scorer) for row in rows[prompt_id]] for prompt_id in prompt_ids], dtype=np.float64)
