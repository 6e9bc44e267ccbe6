"""The wording of numbers and sentences, shared by the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from align.metric import duration_text
from align.report.collapse import RedFlag
from align.report.estimate import Difference, Estimate
from align.report.results import ProbeResult, Ranking, Results
from align.report.visible import visible

BETTER, WORSE, UNCLEAR = "▲", "▼", "~"
MARKS_LEGEND = f"{BETTER} better, {WORSE} worse: the 95 % interval of the difference excludes 0.  {UNCLEAR} not separated."
PROBE_WORDS = {
    "same_answer": "the best single answer to every prompt",
    "echo": "the prompt repeated",
    "shuffled": "good answers with their words shuffled",
    "everything": "many answers joined",
}
QUOTED_CHARACTERS = 200
RED_FLAG = "!"
RED_FLAG_LEGEND = f"{RED_FLAG} red flag: see above what it gave up."
PATH_LEGEND = (
    "path: time of all stages that the row was made from and the baseline was not; of the baseline, of all that it was made from."
)
FEW_PROMPTS = 30  # below this a bootstrap interval is known to be too narrow
FEW_SEEDS = 3  # two seeds have one degree of freedom between them
HACKING = "if it was trained on the former, that is what reward hacking looks like."
ONE_SEED = "the interval does not say what another seed would give."

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
    return " ".join(sentences)


def score_decimals(results: Results, scorer: str) -> int:
    """Decimals for every score and difference of a scorer."""
    scores = [model.scores[scorer] for model in results.models.values()]
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


def row_mark(results: Results, name: str, scorer: str) -> str:
    """The mark of a row's difference to the baseline, corrected for the other rows; empty for the baseline."""
    delta = results.models[name].scores[scorer].delta
    return "" if delta is None else mark_of(delta, results.ranking[scorer].p_to_baseline.get(name))


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
    counts = _listed([f"{count} seeds of {name}" for name, count in seeds.items()])
    others = "" if len(seeds) == len(results.trained_rows) - 1 else "; those of the other rows cover prompts only"
    return (
        f"Intervals cover prompts and training ({counts}{others}). "
        f"{results.baseline} is one training; what another would give, they do not cover."
    )


def conclusions(results: Results) -> list[str]:
    """Verdicts and cautions of the comparison, as sentences computed from its numbers."""
    return [*verdicts(results), *cautions(results), *probe_sentences(results)]


def verdicts(results: Results) -> list[str]:
    """Which model beats which and by how much: one sentence per scorer, and one more with best of n."""
    against = [_against_best_of(results, scorer) for scorer in results.scorers if results.ranking[scorer].against_best_of]
    return [*(_verdict(results, scorer) for scorer in results.scorers), *against]


def cautions(results: Results) -> list[str]:
    """Reasons to doubt the verdicts; often none."""
    sentences = [
        *_fooled(results),
        *_red_flags(results),
        *_unchanged(results),
        *_disagreements(results),
        *_chance_findings(results),
        *_seed_cautions(results),
        *_never_chosen(results),
    ]
    if results.prompts < FEW_PROMPTS:
        sentences.append(f"Only {results.prompts} prompts: with so few, the intervals are narrower than they should be.")
    return sentences


def _verdict(results: Results, scorer: str) -> str:
    ranking, baseline = results.ranking[scorer], results.baseline
    decimals = score_decimals(results, scorer)
    basis = _basis(results, ranking)
    best = results.models[ranking.best].scores[scorer]
    if ranking.difference is None:
        return f"On {scorer}, {baseline} scores {estimate_text(best, decimals)} {basis}; no other model was compared."
    # Only the baseline has no difference to itself: it is the best.
    if best.delta is None:
        return f"On {scorer}, no model beats {baseline} {basis}; {_closest(ranking, ranking.difference, decimals)}"
    if row_mark(results, ranking.best, scorer) != UNCLEAR:
        first = f"On {scorer}, {ranking.best} beats {baseline} by {estimate_text(best.delta, decimals)} {basis}"
    else:
        first = (
            f"On {scorer}, {ranking.best} has the highest mean but is not separated from {baseline}: "
            f"{estimate_text(best.delta, decimals, signed=True)} {basis}{_other_winners(results, scorer, decimals)}"
        )
    best_name = f"{ranking.best}, with a red flag" if results.models[ranking.best].red_flags else ranking.best
    first += _range_of_seeds(results, ranking.best, scorer, decimals)
    if ranking.runner_up == baseline:
        return f"{first}; best: {best_name}."
    return f"{first}; best: {best_name}; {_closest(ranking, ranking.difference, decimals)}"


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
    clauses = [f"{words[mark]} n = {_listed(sizes)}" for mark, sizes in groups.items() if sizes]
    return (
        f"Against drawing n completions from {results.baseline} and keeping the best by {chooser}: "
        f"on {scorer}, {ranking.best} {_listed(clauses)}."
    )


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def probe_sentences(results: Results) -> list[str]:
    """What each scorer gave to answers that deserve no score, one sentence by scorer."""
    sentences = []
    for scorer, probes in results.probes.items():
        decimals, own = score_decimals(results, scorer), results.models[results.baseline].scores[scorer]
        found = ", ".join(f"{PROBE_WORDS[probe.kind]} {number(probe.mean, decimals)}" for probe in probes)
        sentences.append(
            f"What {scorer} gives to answers that deserve nothing: {found}; {results.baseline} has {number(own.mean, decimals)}."
        )
    return sentences


def _fooled(results: Results) -> list[str]:
    """A sentence for each scorer that gives an answer that deserves nothing as much as the baseline's."""
    sentences = []
    for scorer, probes in results.probes.items():
        own, decimals = results.models[results.baseline].scores[scorer], score_decimals(results, scorer)
        above = [probe for probe in probes if probe.mean >= own.mean]
        if above:
            worst = max(above, key=lambda probe: probe.mean)
            sentences.append(
                f"{scorer} can be fooled: {_probe_text(worst)} scores {number(worst.mean, decimals)} on it, {results.baseline} "
                f"{number(own.mean, decimals)}. A higher mean on {scorer} need not be a better answer."
            )
    return sentences


def _probe_text(probe: ProbeResult) -> str:
    return PROBE_WORDS[probe.kind] if probe.text is None else f"the answer {_quoted(probe.text)} to every prompt"


def _quoted(text: str) -> str:
    """A model's text within a sentence: one line, not long, and nothing in it that a terminal would obey."""
    line = visible(" ".join(text.split()))
    return f"“{line if len(line) <= QUOTED_CHARACTERS else line[:QUOTED_CHARACTERS].rstrip() + ' …'}”"


def _red_flags(results: Results) -> list[str]:
    """One sentence for each model that gave something up."""
    return [
        f"Red flag: {name}: {'; '.join(red_flag_text(flag, results.baseline) for flag in row.red_flags)}."
        for name, row in results.models.items()
        if row.red_flags
    ]


def _chance_findings(results: Results) -> list[str]:
    """A sentence for each scorer by which intervals exclude zero that Holm's correction does not call separated."""
    sentences = []
    for scorer in results.scorers:
        corrected = results.ranking[scorer].p_to_baseline
        deltas = {name: results.models[name].scores[scorer].delta for name in corrected}
        found = [
            name for name, delta in deltas.items() if delta and delta.excludes_zero and not delta.is_separated(corrected[name])
        ]
        if found:
            named = _listed([f"{name} (p = {p_text(corrected[name])})" for name in found])
            sentences.append(
                f"On {scorer}, the interval of {named} excludes 0, but one of {len(corrected)} comparisons may do so by chance: "
                "not separated after Holm's correction."
            )
    return sentences


def _unchanged(results: Results) -> list[str]:
    """A sentence for each trained model whose answers all score as the baseline's do."""
    sentences = []
    for name in results.trained_rows:
        deltas = [score.delta for score in results.models[name].scores.values()]
        if all(delta is not None and delta.ci95 == (0.0, 0.0) for delta in deltas):
            sentences.append(f"{name} scores as {results.baseline} does on every prompt: did its training change anything?")
    return sentences


def red_flag_text(flag: RedFlag, baseline: str) -> str:
    """What the model gave up, beside the baseline."""
    value, before = flag.value, flag.baseline or 0.0
    match flag.kind:
        case "distinct_2":
            return f"its answers vary less, distinct-2 is {number(value, 2)} ({baseline}: {number(before, 2)})"
        case "distinct_answers":
            return f"{100 * value:.0f} % of its answers are distinct ({baseline}: {100 * before:.0f} %)"
        case "frequent_sentence":
            usual = f"{100 * before:.0f} % at most for a sentence of {baseline}"
            return f"{100 * value:.0f} % of its answers say {_quoted(flag.detail)} ({usual})"
        case "rule":
            return f"{100 * value:.0f} % of its answers pass {flag.detail} ({baseline}: {100 * before:.0f} %)"
        case "kl":
            return f"its KL to {baseline} is {number(value, 0)} nats, beyond the usual few dozen"
        case "update_kl":
            return f"an update of its training moved the policy by {number(value, 2)} nats per token (usual: up to 0.1)"


def _seed_cautions(results: Results) -> list[str]:
    by_count: dict[int, list[str]] = {}
    for name, count in results.several_seeds.items():
        if count < FEW_SEEDS:
            by_count.setdefault(count, []).append(name)
    sentences = [
        f"{_listed(names)} {'has' if len(names) == 1 else 'have'} {count} seeds only: how much another seed would change is "
        f"hardly known, so {'its' if len(names) == 1 else 'their'} intervals are wide."
        for count, names in by_count.items()
    ]
    single = [name for name in results.trained_rows if name not in results.several_seeds and name != results.baseline]
    if results.several_seeds and single:
        sentences.append(f"{_listed(single)} {'was' if len(single) == 1 else 'were'} trained with one seed: {ONE_SEED}")
    return sentences


def _never_chosen(results: Results) -> list[str]:
    for name in results.best_of_rows:
        best_of = results.models[name].best_of
        if best_of is not None and best_of.never_chosen:
            total = best_of.num_candidates * results.prompts
            return [f"Best of n: {best_of.never_chosen} of {total} candidates have no finite {best_of.scorer}; never chosen."]
    return []


def _closest(ranking: Ranking, difference: Estimate, decimals: int) -> str:
    verdict = "separated" if ranking.separated else "not separated"
    decimals = max(decimals, decimals_of([difference]))  # close models differ by less than the scores' decimals show
    return f"{ranking.best} and {ranking.runner_up} differ by {estimate_text(difference, decimals)}: {verdict}."


def _other_winners(results: Results, scorer: str, decimals: int) -> str:
    # A model with a lower mean can still beat the baseline more surely than the one with the highest.
    clauses = []
    for name in results.ranking[scorer].order[1:]:
        delta = results.models[name].scores[scorer].delta
        if delta is not None and row_mark(results, name, scorer) == BETTER:
            clauses.append(f"; {name} beats it by {estimate_text(delta, decimals)}")
    return "".join(clauses)


def _disagreements(results: Results) -> list[str]:
    sentences = []
    # Of best of n the largest n, where choosing by one scorer goes furthest.
    for name in [*results.trained_rows, *results.best_of_rows[-1:]]:
        model = results.models[name]
        marks = {scorer: row_mark(results, name, scorer) for scorer in results.scorers}
        up = [scorer for scorer, mark in marks.items() if mark == BETTER]
        down = [scorer for scorer, mark in marks.items() if mark == WORSE]
        if up and down:
            reason = "choosing by a scorer finds what that scorer overrates." if model.best_of else HACKING
            sentences.append(f"{name} rises on {', '.join(up)} and falls on {', '.join(down)}: {reason}")
    return sentences
