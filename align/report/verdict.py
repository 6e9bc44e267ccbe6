"""Which model is best, by how much, and how sure that is, in sentences computed from the results."""

from __future__ import annotations

from align.report.caution import cautions, probe_sentences
from align.report.estimate import Difference
from align.report.pass_at import pass_name
from align.report.ranking import Ranking
from align.report.results import Results
from align.report.wording import (
    BETTER,
    UNCLEAR,
    WORSE,
    decimals_of,
    estimate_text,
    listed,
    mark_of,
    number,
    p_text,
    row_mark,
    score_decimals,
)


def conclusions(results: Results) -> list[str]:
    """Verdicts and cautions of the comparison, as sentences computed from its numbers."""
    return [*verdicts(results), *cautions(results), *probe_sentences(results)]


def verdicts(results: Results) -> list[str]:
    """Which model beats which and by how much: one sentence per scorer and pass@k, and one more with best of n.

    pass@1 has none: it says what the mean of its scorer says.
    """
    against = [_against_best_of(results, scorer) for scorer in results.scorers if results.ranking[scorer].against_best_of]
    # The deciding score first: it is the answer, and the others explain it.
    measures = [measure for measure in results.measures if measure != pass_name(1)]
    ordered = sorted(measures, key=lambda measure: measure != results.decider)
    return [*(_verdict(results, scorer) for scorer in ordered), *against]


def _verdict(results: Results, scorer: str) -> str:
    """The evidence, then whether the best is really the best, in two sentences at most."""
    ranking, baseline = results.ranking[scorer], results.baseline
    decimals = score_decimals(results, scorer)
    basis = _basis(results, ranking)
    best = results.models[ranking.best].scores[scorer]
    if ranking.difference is None:
        return f"On {scorer}, {baseline} scores {estimate_text(best, decimals)} {basis}; no other model was compared."
    # Only the baseline has no difference to itself: it is the best.
    if best.delta is None:
        return f"On {scorer}, no model beats {baseline} {basis}. {_best(ranking, ranking.difference, decimals)}"
    if row_mark(results, ranking.best, scorer) != UNCLEAR:
        first = f"On {scorer}, {ranking.best} beats {baseline} by {estimate_text(best.delta, decimals)} {basis}"
    else:
        first = (
            f"On {scorer}, {ranking.best} has the highest mean but is not separated from {baseline}: "
            f"{estimate_text(best.delta, decimals, signed=True)} {basis}{_other_winners(results, scorer, decimals)}"
        )
    first += f"{_range_of_seeds(results, ranking.best, scorer, decimals)}."
    # With two models the first sentence has said it all.
    more = [] if ranking.runner_up == baseline else [_best(ranking, ranking.difference, decimals)]
    if results.models[ranking.best].red_flags:
        more.append(f"But {ranking.best} has a red flag: a higher score need not mean better completions.")
    return " ".join([first, *more])


def _best(ranking: Ranking, difference: Difference, decimals: int) -> str:
    """Whether the model with the highest mean is separated from the second."""
    best, second = ranking.best, ranking.runner_up
    decimals = max(decimals, decimals_of([difference]))  # close models differ by less than the scores' decimals show
    p = ranking.p_to_best.get(second or "", difference.p)
    shown = "" if p is None else f" (p {'' if p < 0.001 else '= '}{p_text(p)})"
    if ranking.separated:
        return f"{best} is the best, separated from the second, {second}, by {estimate_text(difference, decimals)}{shown}."
    by = estimate_text(difference, decimals)
    return f"{best} is not separated from the second, {second}: {by}{shown}, so which of the two is better is not known."


def _basis(results: Results, ranking: Ranking) -> str:
    """The evidence behind a verdict, in parentheses."""
    prompts = str(ranking.prompts) if ranking.prompts == results.prompts else f"{ranking.prompts} of {results.prompts}"
    named = [name for name in (ranking.best, ranking.runner_up) if name in results.several_seeds]
    if not named:
        return f"({prompts} prompts, 95 % paired bootstrap)"
    seeds = ", ".join(f"{results.several_seeds[name]} seeds of {name}" for name in named)
    return f"({prompts} prompts, {seeds}, 95 % two-level bootstrap)"


def _range_of_seeds(results: Results, name: str, scorer: str, decimals: int) -> str:
    if name not in results.several_seeds:
        return ""
    deltas = [one.scores[scorer].delta for one in (results.models[name].replicates or {}).values()]
    means = [delta.mean for delta in deltas if delta is not None]
    return f"; its seeds range from {number(min(means), decimals, signed=True)} to {number(max(means), decimals, signed=True)}"


def _against_best_of(results: Results, scorer: str) -> str:
    """Whether training beats drawing more completions from the baseline."""
    ranking, chooser = results.ranking[scorer], ""
    groups: dict[str, list[str]] = {BETTER: [], UNCLEAR: [], WORSE: []}
    for name, difference in ranking.against_best_of.items():
        best_of = results.models[name].best_of
        assert best_of is not None
        chooser = best_of.scorer
        groups[mark_of(difference, ranking.p_to_best.get(name))].append(str(best_of.n))
    words = {BETTER: "beats", UNCLEAR: "is not separated from", WORSE: "is beaten by"}
    clauses = [f"{words[mark]} n = {listed(sizes)}" for mark, sizes in groups.items() if sizes]
    return (
        f"Against drawing n completions from {results.baseline} and keeping the best by {chooser}: "
        f"on {scorer}, {ranking.best} {listed(clauses)}."
    )


def _other_winners(results: Results, scorer: str, decimals: int) -> str:
    # A model with a lower mean can still beat the baseline more surely than the one with the highest.
    clauses = []
    for name in results.ranking[scorer].order[1:]:
        delta = results.models[name].scores[scorer].delta
        if delta is not None and row_mark(results, name, scorer) == BETTER:
            clauses.append(f"; {name} beats it by {estimate_text(delta, decimals)}")
    return "".join(clauses)
