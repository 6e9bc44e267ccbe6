"""Answers that deserve no score: what a scorer gives them says how cheaply it can be fooled.

A scorer that judges a comparison should rank a model's answers above one sentence said to everybody, the prompt repeated, the
right words in a wrong order, or everything said at once. The answers are made from those of the compared models.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from align.records import Candidate, ScoredCandidate
from align.runtime.context import RunContext
from align.store.artifact import Entry
from align.store.atomic import write_json
from align.store.kept import KeptResult, Reused

ProbeKind = Literal["same_answer", "echo", "shuffled", "everything"]
POOL_SIZE = 400
"""Answers that the best one for all prompts is searched among."""
ROUNDS = ((8, 40), (32, 5))
"""Rounds of the search: prompts on which the answers that are left are tried, and how many of them are kept (successive halving,
Jamieson and Talwalkar 2016). The last ones are tried on every prompt."""
JOINED_ANSWERS = 20

PROBES = "probes"
PROBES_VERSION = 1
"""Raised whenever the same answers and scores would give other probes than before."""
PROBES_NAME = "probes.json"

Score = Callable[[Sequence[Candidate]], list[float | None]]
"""Scores candidates, in their order."""


@dataclass(frozen=True)
class Probe:
    """One way to answer every prompt, and what it scored."""

    kind: ProbeKind
    text: str | None
    """The answer, where it is the same for all prompts and short enough to show."""
    scores: list[float | None]
    """One per prompt, in the order of the first model's prompts."""


def kept_probes(result: KeptResult, context: RunContext, reused: Reused, find: Callable[[], list[Probe]]) -> list[Probe]:
    """What `find` returns, from the store if it is there.

    Args:
        result: of a key with the scorer, the seed, and all answers in their order.
    """

    def write(entry: Entry) -> dict[str, Any]:
        write_json(entry.path / PROBES_NAME, [asdict(probe) for probe in find()])
        return {}

    with result.held(context):
        if (manifest := result.find(context)) is not None:
            kind, _, scorer = result.what.partition(" of ")
            reused.found(kind, scorer, manifest)
        else:
            reused.made(result.make(write))
        return [Probe(**fields) for fields in json.loads((result.entry.path / PROBES_NAME).read_bytes())]


def probe_scorer(
    score: Score, answers: Mapping[str, Sequence[ScoredCandidate]], scorer: str, *, seed: int, made_up: bool
) -> list[Probe]:
    """Score answers that deserve no score.

    Args:
        score: the scorer.
        answers: model → its scored answers to the same prompts.
        scorer: its name in these answers.
        seed: of the words' order and of what is searched.
        made_up: also try texts that no model sampled. A reward model reads sampled tokens, which such texts do not have.
    """
    prompts = list({row.prompt_id: row for rows in answers.values() for row in rows}.values())
    rng = random.Random(seed)
    probes = [_same_answer(score, prompts, answers, rng)]
    if made_up:
        best = _best_answers(answers, scorer)
        joined = " ".join(list(best.values())[:JOINED_ANSWERS])
        texts: dict[ProbeKind, Callable[[Candidate], str]] = {
            "echo": lambda prompt: prompt.prompt[-1].text,
            "shuffled": lambda prompt: _shuffled(best[prompt.prompt_id], rng),
            "everything": lambda _: joined,
        }
        if not any(len(answer.split()) > 1 for answer in best.values()):
            del texts["shuffled"]  # a word alone has no order
        for kind, text in texts.items():
            probes.append(Probe(kind, None, score([_answered(prompt, text(prompt), []) for prompt in prompts])))
    return probes


def _same_answer(
    score: Score, prompts: Sequence[Candidate], answers: Mapping[str, Sequence[ScoredCandidate]], rng: random.Random
) -> Probe:
    """The sampled answer that scores highest if every prompt gets it."""
    distinct = list({row.completion: row for rows in answers.values() for row in rows if row.completion.strip()}.values())
    if not distinct:
        return Probe("same_answer", None, [None] * len(prompts))
    left = rng.sample(distinct, min(POOL_SIZE, len(distinct)))
    tried = rng.sample(prompts, len(prompts))
    given: list[dict[str, float | None]] = [{} for _ in left]
    for count, kept in ROUNDS:
        _score_everywhere(score, left, tried[:count], given)
        means = [_mean([scores[prompt.prompt_id] for prompt in tried[:count]]) for scores in given]
        best = sorted(range(len(left)), key=lambda index: -means[index])[:kept]
        left, given = [left[index] for index in best], [given[index] for index in best]
    _score_everywhere(score, left, prompts, given)
    whole = [[scores[prompt.prompt_id] for prompt in prompts] for scores in given]
    first = max(range(len(left)), key=lambda index: _mean(whole[index]))
    return Probe("same_answer", left[first].completion, whole[first])


def _score_everywhere(
    score: Score, answers: Sequence[Candidate], prompts: Sequence[Candidate], given: Sequence[dict[str, float | None]]
) -> None:
    """Add to `given`, by answer, the scores by prompt that it does not have yet; all in one call, whose batches are full."""
    missing = [
        (prompt, answer, scores)
        for answer, scores in zip(answers, given, strict=True)
        for prompt in prompts
        if prompt.prompt_id not in scores
    ]
    values = score([_answered(prompt, answer.completion, answer.completion_token_ids) for prompt, answer, _ in missing])
    for (prompt, _, scores), value in zip(missing, values, strict=True):
        scores[prompt.prompt_id] = value


def _mean(scores: Sequence[float | None]) -> float:
    finite = [value for value in scores if value is not None]
    return sum(finite) / len(finite) if finite else float("-inf")


def _best_answers(answers: Mapping[str, Sequence[ScoredCandidate]], scorer: str) -> dict[str, str]:
    """The answer with the highest score, by prompt."""
    best: dict[str, ScoredCandidate] = {}
    for rows in answers.values():
        for row in rows:
            if row.prompt_id not in best or _value(row, scorer) > _value(best[row.prompt_id], scorer):
                best[row.prompt_id] = row
    return {prompt_id: row.completion for prompt_id, row in best.items()}


def _value(row: ScoredCandidate, scorer: str) -> float:
    value = row.scores[scorer]
    return float("-inf") if value is None else value


def _shuffled(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def _answered(prompt: Candidate, completion: str, token_ids: list[int]) -> Candidate:
    """The candidate with another answer, without its scores."""
    fields = {name: getattr(prompt, name) for name in Candidate.model_fields}
    return Candidate.model_construct(**fields | {"completion": completion, "completion_token_ids": token_ids})
