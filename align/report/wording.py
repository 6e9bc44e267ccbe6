"""The wording of numbers and sentences, shared by the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from align.metric import duration_text
from align.report.estimate import Difference, Estimate
from align.report.results import Results

BETTER, WORSE, UNCLEAR = "▲", "▼", "~"
MARKS_LEGEND = f"{BETTER} better, {WORSE} worse: the 95 % interval of the difference excludes 0.  {UNCLEAR} not separated."
RED_FLAG = "!"
RED_FLAG_LEGEND = f"{RED_FLAG} red flag: see above what it gave up."
PATH_LEGEND = (
    "path: time of all stages that the row was made from and the baseline was not; of the baseline, of all that it was made from."
)
TRIALS_LEGEND = "trials: settings that were tried for the row, of which the best on validation prompts was kept."
FEW_PROMPTS = 30  # below this a bootstrap interval is known to be too narrow

MIN_DECIMALS = 2
MAX_DECIMALS = 5


def decimals_of(estimates: Iterable[Estimate]) -> int:
    """Decimals at which the narrowest interval of a column still shows its width, the same for the whole column."""
    halves = [(estimate.ci95[1] - estimate.ci95[0]) / 2 for estimate in estimates]
    # An interval of width zero, as a single prompt has, would need endless decimals.
    narrowest = min((half for half in halves if half > 0), default=1.0)
    return min(MAX_DECIMALS, max(MIN_DECIMALS, math.ceil(-math.log10(narrowest))))


def path_legend(results: Results) -> str:
    """What the column `path` says, and how much of it several rows share; empty where no row has a path."""
    costs = {name: results.models[name].cost for name in results.models_baseline_first}
    paths = {name: cost for name, cost in costs.items() if cost is not None and cost.seconds is not None}
    if not paths:
        return ""
    shared = [f"{name} {duration_text(cost.shared_seconds)}" for name, cost in paths.items() if cost.shared_seconds]
    sentences = [PATH_LEGEND]
    if shared:
        sentences.append(f"Shared with other models, and paid once: {', '.join(shared)}.")
    if results.best_of_rows:
        sentences.append("n/answer: best of n samples and scores n completions for every answer.")
    if any(cost.flops for cost in paths.values()):
        sentences.append("FLOPs are estimated.")
    if most_trials(results) > 1:
        sentences.append(TRIALS_LEGEND)
    return " ".join(sentences)


def most_trials(results: Results) -> float:
    """The largest number of trials that a row had."""
    return max((row.cost.trials for row in results.models.values() if row.cost is not None), default=1)


def sampling_text(results: Results) -> str:
    """How each model answered: `8 completions per prompt at temperature 1`."""
    count = results.num_candidates
    how = "" if results.temperature is None else f" at temperature {results.temperature:g}"
    return f"{count} completion{'s' if count > 1 else ''} per prompt{how}"


def pass_legend(results: Results) -> str:
    """What pass@k means here; empty without it."""
    if (pass_at := results.pass_at) is None:
        return ""
    return (
        f"pass@k: how often at least one of k completions is right (score of {pass_at.scorer} at least {pass_at.score:g}), "
        f"estimated from {results.num_candidates}."
    )


def disagreement_legend(results: Results) -> str:
    """What the members' standard deviation says; empty without an ensemble."""
    if not results.ensembles:
        return ""
    return (
        "members ±: standard deviation of an ensemble's members on a completion, in the mean; where it is above "
        f"{results.baseline}'s, they agree less on the model's completions than on {results.baseline}'s."
    )


def score_decimals(results: Results, measure: str) -> int:
    """Decimals for every value and difference of a scorer or a pass@k."""
    scores = [model.scores[measure] for model in results.models.values() if measure in model.scores]
    return decimals_of([*scores, *(score.delta for score in scores if score.delta is not None)])


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """The value with fixed decimals; a value that rounds to zero has no minus sign."""
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    # "-0.00" reads as a loss that the data does not show.
    return text if float(text) != 0 else text.replace("-", "+" if signed else "")


def estimate_text(estimate: Estimate, decimals: int, *, signed: bool = False) -> str:
    """`mean [low, high]`."""
    return f"{number(estimate.mean, decimals, signed=signed)} {interval_text(estimate, decimals, signed=signed)}"


def interval_text(estimate: Estimate, decimals: int, *, signed: bool = False) -> str:
    """`[low, high]`."""
    return "[" + ", ".join(number(end, decimals, signed=signed) for end in estimate.ci95) + "]"


def percent_text(estimate: Estimate) -> str:
    """A share as `68 % [64, 72]`."""
    return f"{100 * estimate.mean:.0f} % [{100 * estimate.ci95[0]:.0f}, {100 * estimate.ci95[1]:.0f}]"


def mark_of(delta: Difference, corrected_p: float | None = None) -> str:
    """Whether a difference to the baseline is separated from zero, and in which direction.

    Args:
        corrected_p: its p-value, corrected for the other comparisons that are marked with it; None where it stands alone.
    """
    if not delta.is_separated(corrected_p):
        return UNCLEAR
    return BETTER if delta.mean > 0 else WORSE


def row_mark(results: Results, name: str, measure: str) -> str:
    """The mark of a row's difference to the baseline, corrected for the other rows; empty for the baseline."""
    delta = results.models[name].scores[measure].delta
    return "" if delta is None else mark_of(delta, results.ranking[measure].p_to_baseline.get(name))


def p_text(p: float) -> str:
    """A p-value in two digits: 0.032, < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def marks_legend(results: Results) -> str:
    """What the marks mean, and for how many comparisons they are corrected."""
    compared = max(len(ranking.p_to_baseline) for ranking in results.ranking.values())
    if not compared:
        return MARKS_LEGEND
    return (
        f"{BETTER} better, {WORSE} worse: 95 % interval without 0, and p < 0.05 after Holm's correction "
        f"for {compared} comparisons.  {UNCLEAR} not separated."
    )


def interval_scope(results: Results) -> str:
    """What the intervals cover: prompts alone, or for the methods with several seeds their training too."""
    seeds = results.several_seeds
    if not seeds:
        return "Intervals cover the choice of prompts only, not training: another training seed would give other models."
    counts = listed([f"{count} seeds of {name}" for name, count in seeds.items()])
    others = "" if len(seeds) == len(results.trained_rows) - 1 else "; those of the other rows cover prompts only"
    return (
        f"Intervals cover prompts and training ({counts}{others}). "
        f"{results.baseline} is one training; what another would give, they do not cover."
    )


def listed(texts: list[str]) -> str:
    """`a, b and c`."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
