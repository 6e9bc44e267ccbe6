"""Score candidates with any set of scorers: reward models, declarative rules, judges.

In: candidates, scorers. Out: the same candidates, each with one raw number per scorer. A score that is not finite is written
as null and counted, never replaced. Metrics: mean, spread and share of non-finite scores by scorer; of an ensemble how much its
members disagree; of a judge its comparisons, how many were consistent, its position bias, and what it cost.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from align.config.base import ExecutionOnly, Problem
from align.config.checks import check_several_candidates
from align.config.graph import RecipeGraph
from align.config.reference import RowsReference
from align.config.row_need import RowNeed
from align.config.sections import JudgeScorer, Scorer
from align.errors import StageError
from align.records import Candidate, ScoredCandidate
from align.runtime.profile import phase
from align.stage import StageConfig, StageContext, StageOutcome
from align.store.artifact import ROWS_NAME, read_rows, write_rows
from align.store.shard import read_seal, shard_path, write_shard

if TYPE_CHECKING:
    from align.scoring.judge import JudgeTally
    from align.scoring.scorers import Column, ScorerSet

VERSION = 4
SHARD_ROWS = 4096
"""Candidates that an interruption can cost; what is in a shard follows from their order."""


class Config(StageConfig):
    """Score candidates."""

    candidates: RowsReference[Candidate]
    """Candidates to score."""
    scorers: dict[str, Scorer] = Field(min_length=1)
    """Scorer by name: the name of a reward model stage, {rules: …}, {ensemble: […]} or {judge: …}."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass of a reward model; scores depend on it by rounding only (below 1e-5)."""
    num_workers: ExecutionOnly[int] = Field(default=1, ge=1)
    """Processes that share the shards, each with a reward model of its own; only 1 where a judge scores."""

    @classmethod
    def check_graph(cls, fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
        scorers = fields.get("scorers")
        for name, scorer in (scorers if isinstance(scorers, dict) else {}).items():
            if isinstance(scorer, dict) and "judge" in scorer:
                yield from check_several_candidates(fields.get("candidates"), graph, "candidates", f"the judge '{name}'")

    def row_needs(self) -> Iterator[RowNeed]:
        from align.scoring.rules import prompt_needs

        yield from prompt_needs("candidates", {("scorers", name): scorer for name, scorer in self.scorers.items()})

    @model_validator(mode="after")
    def _one_judge(self) -> Config:
        judges = [name for name, scorer in self.scorers.items() if isinstance(scorer, JudgeScorer)]
        if judges and self.num_workers > 1:
            raise ValueError(
                f"num_workers is {self.num_workers}, but the judge '{judges[0]}' is called from one process, whose "
                "max_concurrency says how many requests run at the same time; leave num_workers out"
            )
        return self


def run(context: StageContext[Config]) -> StageOutcome:
    """Score every candidate, with one reward model in memory at a time; say how the scores are spread."""
    from align.scoring.judge import JudgeTally
    from align.scoring.scorers import ScorerSet, reward_model_folders, with_scores

    config = context.config
    candidates = context.artifact(config.candidates).rows(Candidate)
    folders = reward_model_folders(config.scorers, context.artifacts)
    scorers = ScorerSet(config.scorers, folders, batch_tokens=config.batch_tokens, store_root=context.store_root)
    for sentence in scorers.announce(candidates):
        context.note(sentence)
    shards = list(enumerate(pieces(candidates, whole_prompts=scorers.whole_prompts)))
    parts = {context.work / "shards" / str(number): part for number, part in enumerate(scorers.one_model_each())}
    count, finished, total = context.counter("score", "scores"), 0, len(candidates) * len(scorers.names)
    for folder, part in parts.items():
        finished = _score_shards(part, folder, shards, lambda scores: count(scores, total), finished, context)
        part.close()
    tallies = {name: JudgeTally() for name in scorers.pop_counts()}
    scored: list[ScoredCandidate] = []
    for index, piece in shards:
        columns: dict[str, Column] = {}
        for folder in parts:
            columns |= _read_shard(shard_path(folder, index), piece, tallies)
        scored.extend(with_scores(piece, {name: columns[name] for name in scorers.names}))
    write_rows(context.output / ROWS_NAME, scored)
    metrics: dict[str, dict[str, Any]] = {name: dict(describe_scores(scored, name)) for name in scorers.names}
    for name, tally in tallies.items():
        metrics[name] |= tally.metrics()
    if broken := [name for name in scorers.names if scored and metrics[name]["nonfinite"] == len(scored)]:
        raise StageError(
            f"{context.name}: none of {len(scored):,} candidates got a finite score from {', '.join(broken)}",
            hint="Look at the scorer: a reward model gives NaN or refuses the prompts, or a judge gave no consistent verdict.",
        )
    return StageOutcome(metrics=metrics, rows_in=len(candidates), rows_out=len(scored))


def _score_shards(
    scorers: ScorerSet,
    folder: Path,
    shards: Sequence[tuple[int, Sequence[Candidate]]],
    count: Callable[[int], None],
    finished: int,
    context: StageContext[Config],
) -> int:
    """Score the shards that `folder` lacks. `count` gets the number of scores that are done, of which `finished` were before."""
    from align.runtime.executor import executor_for
    from align.runtime.pool import LOCAL

    missing = [(index, piece) for index, piece in shards if read_seal(shard_path(folder, index)) is None]
    finished += sum(len(piece) for _, piece in shards) * len(scorers.names)
    finished -= sum(len(piece) for _, piece in missing) * len(scorers.names)

    def done(item: tuple[int, Sequence[Candidate]], _: None) -> None:
        nonlocal finished
        finished += len(item[1]) * len(scorers.names)
        count(finished)

    pool = LOCAL if scorers.whole_prompts else context.pool  # a judge is called from here, with one limit on its requests
    with phase("score"):
        executor_for(context.config.num_workers, len(missing), gpus_each=1, pool=pool, shared=folder).map(
            ShardScorer(scorers, folder, lambda scores: count(finished + scores)),
            missing,
            on_done=done,
            check_stop=context.check_stop,
        )
    return finished


def _read_shard(path: Path, candidates: Sequence[Candidate], tallies: Mapping[str, JudgeTally]) -> dict[str, Column]:
    """Scores by scorer, in the order of the candidates; what its judges counted is added to the tallies."""
    from align.scoring.scorers import Column

    # Read back from disk: an earlier run or another process may have scored the shard.
    seal = read_seal(path)
    rows = list(read_rows(path, ScoredCandidate)) if seal else []
    if seal is None or [_key(row) for row in rows] != [_key(candidate) for candidate in candidates]:
        raise StageError(f"{path}: the shard changed while it was being used", hint="Run the same command again.")
    for name, counts in seal["judged"].items():
        tallies[name].add(counts)
    return {
        name: Column(
            [row.scores[name] for row in rows],
            [row.disagreement[name] for row in rows] if name in rows[0].disagreement else None,
        )
        for name in rows[0].scores
    }


def _key(candidate: Candidate) -> tuple[str, int]:
    return candidate.prompt_id, candidate.candidate_index


@dataclass(frozen=True)
class ShardScorer:
    """Scores the candidates of one shard and writes them; the seal, with the judges' counts, is written last.

    `report` gets the number of the shard's finished scores. A copy in another process loads reward models of its own and reports
    whole shards only.
    """

    scorers: ScorerSet
    folder: Path
    report: Callable[[int], None]

    def __call__(self, item: tuple[int, Sequence[Candidate]]) -> None:
        index, candidates = item
        rows = self.scorers.score(candidates, self.report)
        write_shard(shard_path(self.folder, index), rows, judged=self.scorers.pop_counts())

    def __reduce__(self) -> tuple[type[ShardScorer], tuple[Any, ...]]:
        # The function that reports cannot be pickled, and would report to nobody in another process.
        return ShardScorer, (self.scorers, self.folder, _report_nothing)


def _report_nothing(scores: int) -> None:
    pass


def pieces(candidates: Sequence[Candidate], *, whole_prompts: bool) -> Iterator[Sequence[Candidate]]:
    """The candidates in shards of SHARD_ROWS; with `whole_prompts` a shard may be larger, so that no prompt is cut.

    If the candidates of some prompt do not follow each other, `whole_prompts` makes one shard of all.
    """
    ids = [candidate.prompt_id for candidate in candidates]
    starts = [index for index in range(len(ids)) if index == 0 or ids[index] != ids[index - 1]]
    # A judge compares the candidates of one prompt, so a shard must have all of them.
    if whole_prompts and len(starts) > len(set(ids)):
        yield candidates
        return
    first_rows = {*starts, len(ids)}
    start = 0
    while start < len(candidates):
        end = min(start + SHARD_ROWS, len(candidates))
        while whole_prompts and end not in first_rows:
            end += 1
        yield candidates[start:end]
        start = end


def describe_scores(scored: Sequence[ScoredCandidate], scorer: str) -> dict[str, float | int | None]:
    """Mean, spread (standard deviation), bounds, and the number of candidates without a finite score.

    Of an ensemble also `disagreement`, the mean of its members' standard deviations.
    """
    values = [value for value in (candidate.scores[scorer] for candidate in scored) if value is not None]
    if not values:
        return {"mean": None, "spread": None, "min": None, "max": None, "nonfinite": len(scored)}
    deviations = [value for row in scored if (value := row.disagreement.get(scorer)) is not None]
    return {
        "mean": statistics.fmean(values),
        "spread": statistics.pstdev(values),
        "min": min(values),
        "max": max(values),
        "nonfinite": len(scored) - len(values),
        **({"disagreement": statistics.fmean(deviations)} if deviations else {}),
    }
