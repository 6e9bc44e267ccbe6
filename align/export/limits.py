"""What is not known about a model, in sentences that follow from its manifests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align.export.lineage import Comparison, Step
from align.export.source import ModelSource
from align.report.caution import cautions

FEW_PROMPTS = 1000
"""With fewer prompts, intervals are so wide that a difference that matters in use may not be separated."""


def limits_of(source: ModelSource, steps: Sequence[Step], comparisons: Sequence[Comparison]) -> list[str]:
    """Sentences for the card, most specific first."""
    sentences = [sentence for comparison in comparisons for sentence in _of_comparison(comparison, steps)]
    if source.purpose == "reward":
        sentences.append(
            "A reward model is a proxy: it stands for the judgements it was trained on, not for what people want. What is "
            "optimised against it long enough rises on it and falls on everything else."
        )
    elif steps and not comparisons:
        sentences.append("No comparison of its run has this model: how good its completions are was not measured.")
    sentences += _of_training(steps)
    sentences.append("Truthfulness, safety and bias were not evaluated.")
    sentences.append("align does not record licences. Those of the base model and of the data apply; look them up before use.")
    return sentences


def _of_comparison(comparison: Comparison, steps: Sequence[Step]) -> Iterator[str]:
    results, config = comparison.results, comparison.manifest.config
    yield (
        f"Measured only on {results.prompts:,} prompts of `{config['prompts']}`, sampled as said above: this says nothing about "
        "other topics, languages, lengths or ways of sampling."
    )
    if results.prompts < FEW_PROMPTS:
        yield f"{results.prompts:,} prompts are few: the intervals are wide, and rare failures may not show."
    made_from = {step.fingerprint for step in steps}
    for scorer in results.scorers:
        if not comparison.is_trained_scorer(scorer):
            yield f"`{scorer}` is a set of rules about the text's surface; a completion can satisfy them without being good."
        elif comparison.scorer_fingerprints(scorer) & made_from:
            yield (
                f"`{scorer}` is a reward model, a proxy, and this model was trained or selected with it: its score says how "
                "well it was optimised rather than how good the completions are."
            )
        else:
            yield f"`{scorer}` is a reward model: a proxy for the judgements it was trained on."
    yield from cautions(results)


def _of_training(steps: Sequence[Step]) -> Iterator[str]:
    if not steps:
        yield "How this model was trained is not known to align: its folder has no manifest."
        return
    own = steps[-1].manifest
    if own is not None and own.seed is not None:
        yield f"This is one training run, with seed {own.seed}; the intervals do not say what another seed would give."
    lost = [f"`{step.name}`" for step in steps if step.manifest is None and step.source is None]
    if lost:
        yield f"What {', '.join(lost)} was made from is no longer in the store, so that part of the lineage is missing."
