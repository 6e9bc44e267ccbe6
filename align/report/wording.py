"""Numbers and sentences, said the same way in the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from align.report.results import Estimate, Ranking, Results, ScoreResult, TokenResult

AnyEstimate = Estimate | ScoreResult | TokenResult

BETTER, WORSE, UNCLEAR = "▲", "▼", "~"
MARKS_LEGEND = f"{BETTER} better, {WORSE} worse: the 95 % interval of the difference excludes 0.  {UNCLEAR} not separated."
FEW_PROMPTS = 30  # below this a bootstrap interval is known to be too narrow

MIN_DECIMALS = 2
MAX_DECIMALS = 5


def decimals_of(estimates: Iterable[AnyEstimate]) -> int:
    """Decimals at which the narrowest interval of a column still shows its width, the same for the whole column."""
    halves = [(estimate.ci95[1] - estimate.ci95[0]) / 2 for estimate in estimates]
    narrowest = min((half for half in halves if half > 0), default=1.0)
    return min(MAX_DECIMALS, max(MIN_DECIMALS, math.ceil(-math.log10(narrowest))))


def score_decimals(results: Results, scorer: str) -> int:
    """Decimals for every score and difference of a scorer."""
    scores = [model.scores[scorer] for model in results.models.values()]
    return decimals_of([*scores, *(score.delta for score in scores if score.delta is not None)])


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """The value with fixed decimals; a value that rounds to zero has no minus sign."""
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text if float(text) != 0 else text.replace("-", "+" if signed else "")


def estimate_text(estimate: AnyEstimate, decimals: int, *, signed: bool = False) -> str:
    """`mean [low, high]`."""
    return f"{number(estimate.mean, decimals, signed=signed)} {interval_text(estimate, decimals, signed=signed)}"


def interval_text(estimate: AnyEstimate, decimals: int, *, signed: bool = False) -> str:
    """`[low, high]`."""
    return "[" + ", ".join(number(end, decimals, signed=signed) for end in estimate.ci95) + "]"


def percent_text(estimate: Estimate) -> str:
    """A share as `68 % [64, 72]`."""
    return f"{100 * estimate.mean:.0f} % [{100 * estimate.ci95[0]:.0f}, {100 * estimate.ci95[1]:.0f}]"


def mark_of(delta: Estimate) -> str:
    """Whether a difference to the baseline is separated from zero, and in which direction."""
    if not delta.excludes_zero:
        return UNCLEAR
    return BETTER if delta.mean > 0 else WORSE


def seconds_text(seconds: float) -> str:
    """A duration a person reads: `8.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def conclusions(results: Results) -> list[str]:
    """What the comparison found and what to be wary of, in plain sentences computed from its numbers."""
    return [*verdicts(results), *cautions(results)]


def verdicts(results: Results) -> list[str]:
    """Who beats whom and by how much: one sentence per scorer."""
    return [_verdict(results, scorer) for scorer in results.scorers]


def cautions(results: Results) -> list[str]:
    """What speaks against taking the verdicts at their word; often nothing."""
    sentences = _disagreements(results)
    if results.prompts < FEW_PROMPTS:
        sentences.append(f"Only {results.prompts} prompts: with so few, the intervals are narrower than they should be.")
    return sentences


def _verdict(results: Results, scorer: str) -> str:
    ranking, baseline = results.ranking[scorer], results.baseline
    decimals = score_decimals(results, scorer)
    prompts = str(ranking.prompts) if ranking.prompts == results.prompts else f"{ranking.prompts} of {results.prompts}"
    basis = f"({prompts} prompts, 95 % paired bootstrap)"
    best = results.models[ranking.best].scores[scorer]
    if ranking.difference is None:
        return f"On {scorer}, {baseline} scores {estimate_text(best, decimals)} {basis}; no other model was compared."
    if best.delta is None:
        return f"On {scorer}, no model beats {baseline} {basis}; {_closest(ranking, ranking.difference, decimals)}"
    if best.delta.excludes_zero:
        first = f"On {scorer}, {ranking.best} beats {baseline} by {estimate_text(best.delta, decimals)} {basis}"
    else:
        first = (
            f"On {scorer}, {ranking.best} has the highest mean but is not separated from {baseline}: "
            f"{estimate_text(best.delta, decimals, signed=True)} {basis}{_other_winners(results, scorer, decimals)}"
        )
    if ranking.runner_up == baseline:
        return f"{first}; best: {ranking.best}."
    return f"{first}; best: {ranking.best}; {_closest(ranking, ranking.difference, decimals)}"


def _closest(ranking: Ranking, difference: Estimate, decimals: int) -> str:
    verdict = "separated" if ranking.separated else "not separated"
    decimals = max(decimals, decimals_of([difference]))  # close models differ by less than the scores' decimals show
    return f"{ranking.best} and {ranking.runner_up} differ by {estimate_text(difference, decimals)}: {verdict}."


def _other_winners(results: Results, scorer: str, decimals: int) -> str:
    # A model with a lower mean can still beat the baseline more surely than the one with the highest.
    clauses = []
    for name in results.ranking[scorer].order[1:]:
        delta = results.models[name].scores[scorer].delta
        if delta is not None and delta.excludes_zero and delta.mean > 0:
            clauses.append(f"; {name} beats it by {estimate_text(delta, decimals)}")
    return "".join(clauses)


def _disagreements(results: Results) -> list[str]:
    sentences = []
    for name, model in results.models.items():
        marks = {scorer: mark_of(score.delta) for scorer, score in model.scores.items() if score.delta is not None}
        up = [scorer for scorer, mark in marks.items() if mark == BETTER]
        down = [scorer for scorer, mark in marks.items() if mark == WORSE]
        if up and down:
            sentences.append(
                f"{name} rises on {', '.join(up)} and falls on {', '.join(down)}: "
                "if it was trained on the former, that is what reward hacking looks like."
            )
    return sentences
