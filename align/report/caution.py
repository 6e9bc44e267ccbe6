"""Reasons to doubt the verdicts of a comparison, in sentences computed from its results."""

from __future__ import annotations

from align.report.collapse import RedFlag
from align.report.results import ProbeResult, Results
from align.report.wording import BETTER, FEW_PROMPTS, WORSE, listed, number, p_text, row_mark, score_decimals
from align.visible import visible

PROBE_WORDS = {
    "same_answer": "the best single answer to every prompt",
    "echo": "the prompt repeated",
    "shuffled": "good answers with their words shuffled",
    "everything": "many answers joined",
}
QUOTED_CHARACTERS = 200
LENGTH_GAIN = 0.1  # share of wins; AlpacaEval warns of a difference of 10 points, too
FEW_SEEDS = 3  # two seeds have one degree of freedom between them
HACKING = "if it was trained on the former, that is what reward hacking looks like."
ONE_SEED = "the interval does not say what another seed would give."


def cautions(results: Results) -> list[str]:
    """Reasons to doubt the verdicts; often none."""
    sentences = [
        *_decided_by_what_was_optimised(results),
        *_won_by_length(results),
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


def _decided_by_what_was_optimised(results: Results) -> list[str]:
    """A sentence if the deciding score is one that the models learned to raise, or close to one."""
    decider = results.decider
    optimised = [name for name in results.optimised.get(decider, []) if name in results.trained_rows and name != results.baseline]
    if optimised:
        were = "was" if len(optimised) == 1 else "were"
        return [
            f"{decider} decides here, but {listed(optimised)} {were} trained or selected with it: this score can rise without "
            "better completions. Add a scorer that no training used, and name it in deciding_scorer."
        ]
    if twin := results.same_rows.get(decider):
        return [
            f"{decider} decides here, but learned from the same rows as {twin}, which training used: the two may share their "
            "mistakes. Train them on different parts of the rows."
        ]
    return []


def _won_by_length(results: Results) -> list[str]:
    """A sentence for each row that wins much less often where both completions are equally long."""
    sentences = []
    for name, row in results.models.items():
        for scorer, equal in (row.win_rate_at_equal_length or {}).items():
            wins = row.win_rate[scorer].mean if row.win_rate else 0.5
            if equal is not None and wins > 0.5 and wins - equal.mean >= LENGTH_GAIN:
                sentences.append(
                    f"{name} wins {100 * wins:.0f} % on {scorer}, but {100 * equal.mean:.0f} % at equal length: "
                    "a part of its wins comes from the length of its completions."
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
    """A sentence for each scorer or pass@k by which intervals exclude zero that Holm's correction does not call separated."""
    sentences = []
    for scorer in results.measures:
        corrected = results.ranking[scorer].p_to_baseline
        deltas = {name: results.models[name].scores[scorer].delta for name in corrected}
        found = [
            name for name, delta in deltas.items() if delta and delta.excludes_zero and not delta.is_separated(corrected[name])
        ]
        if found:
            named = listed([f"{name} (p = {p_text(corrected[name])})" for name in found])
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
        case "compression":
            return f"its answers resemble each other, they compress to 1/{number(value, 1)} ({baseline}: 1/{number(before, 1)})"
        case "repetition":
            said = f"{100 * value:.0f} % of an answer was said before in it"
            return f"its answers repeat themselves, {said} ({baseline}: {100 * before:.0f} %)"
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
        f"{listed(names)} {'has' if len(names) == 1 else 'have'} {count} seeds only: how much another seed would change is "
        f"hardly known, so {'its' if len(names) == 1 else 'their'} intervals are wide."
        for count, names in by_count.items()
    ]
    single = [name for name in results.trained_rows if name not in results.several_seeds and name != results.baseline]
    if results.several_seeds and single:
        sentences.append(f"{listed(single)} {'was' if len(single) == 1 else 'were'} trained with one seed: {ONE_SEED}")
    return sentences


def _never_chosen(results: Results) -> list[str]:
    for name in results.best_of_rows:
        best_of = results.models[name].best_of
        if best_of is not None and best_of.never_chosen:
            total = best_of.num_candidates * results.prompts
            return [f"Best of n: {best_of.never_chosen} of {total} candidates have no finite {best_of.scorer}; never chosen."]
    return []


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
